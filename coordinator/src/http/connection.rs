//! One connection: what bounds it in time while no request of it has a deadline of its own.
//!
//! Its first bytes must come soon, what is written must be taken, and once no request is in flight the next one must
//! come in time. Heads and bodies have deadlines elsewhere.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};

/// Bytes that tell HTTP/1 from HTTP/2.
const PREFACE_BYTES: usize = 24;

/// Bytes in and out, with deadlines for the first ones in and for those that nobody takes.
pub(super) struct Guarded<T> {
    inner: T,
    preface_left: usize,
    preface: Pin<Box<Sleep>>,
    write_timeout: Duration,
    /// Runs while bytes wait to be taken.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<T> Guarded<T> {
    pub(super) fn new(inner: T, preface_timeout: Duration, write_timeout: Duration) -> Self {
        Self {
            inner,
            preface_left: PREFACE_BYTES,
            preface: Box::pin(sleep(preface_timeout)),
            write_timeout,
            stalled: None,
        }
    }

    /// Passes on what became of a write; an error if none has got on for too long.
    fn watched<R>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let within = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(within)));
        ready!(stalled.as_mut().poll(cx));
        self.stalled = None;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.preface_left > 0 && this.preface.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        this.preface_left = this.preface_left.saturating_sub(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watched(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watched(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.watched(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watched(cx, polled)
    }
}

/// How many requests of a connection are in flight.
#[derive(Clone)]
pub(super) struct InFlight(Arc<watch::Sender<usize>>);

impl InFlight {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// Counts one more, until the value is dropped.
    pub(super) fn enter(&self) -> InFlightGuard {
        self.0.send_modify(|count| *count += 1);
        InFlightGuard(Arc::clone(&self.0))
    }

    /// Ends once none has been in flight for so long.
    pub(super) async fn idle_for(&self, long: Duration) {
        let mut count = self.0.subscribe();
        let mut deadline = Instant::now() + long;
        loop {
            let busy = *count.borrow_and_update() > 0;
            tokio::select! {
                // The sender is this value's own: there always is one.
                _ = count.changed() => deadline = Instant::now() + long,
                () = tokio::time::sleep_until(deadline), if !busy => return,
            }
        }
    }
}

/// A request in flight.
pub(super) struct InFlightGuard(Arc<watch::Sender<usize>>);

impl InFlightGuard {
    /// Lets the request be in flight until its response has been sent or dropped.
    pub(super) fn until_sent(self, response: Response) -> Response {
        response.map(|body| {
            Body::new(body.map_err(move |error| {
                // Held for as long as the body is there.
                let _request = &self;
                error
            }))
        })
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
