//! Connections: HTTP/1 and HTTP/2 on a listener, each bounded in time and size.
//!
//! The listener is made elsewhere, by the one constructor of listeners. A connection that sends nothing, or sends its
//! head byte by byte, is closed after a deadline.
//!
//! At shutdown the gateway is drained first: readiness drops and new requests are refused, on connections that are still
//! accepted, while requests in flight get a grace. What then still runs ends with a typed error, and its connections
//! have a moment to send it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tramontane_proto::net::Listener;

use super::App;

/// Largest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 100;
/// Most concurrent requests of one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// Bytes that tell HTTP/1 from HTTP/2.
const PREFACE_BYTES: usize = 24;
/// How often an HTTP/2 connection is probed, and how long the answer may take.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// How long connections may take to send what is left once every request has ended.
const FLUSH: Duration = Duration::from_secs(2);

/// Limits of the connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// Most connections at once; more wait to be accepted.
    pub max_connections: usize,
    /// Longest wait for a request's head.
    pub head_timeout: Duration,
    /// How long requests in flight may go on after shutdown began.
    pub shutdown_grace: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            head_timeout: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// Serves `app` on `listener` until `shutdown`, then gives requests in flight their grace.
pub async fn serve(mut listener: Listener, app: App, options: ServeOptions, shutdown: CancellationToken) {
    let limit = options.max_connections.clamp(1, Semaphore::MAX_PERMITS);
    let room = Arc::new(Semaphore::new(limit));
    let graceful = GracefulShutdown::new();
    let builder = Arc::new(builder(options.head_timeout));
    let mut drained = std::pin::pin!(drain(&app, options.shutdown_grace, &shutdown));
    loop {
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await.ok()?;
            Some((listener.accept().await?, permit))
        };
        let (connection, permit) = tokio::select! {
            biased;
            () = &mut drained => break,
            accepted = accepted => match accepted {
                Some(accepted) => accepted,
                None => break,
            },
        };
        let io = TokioIo::new(PrefaceDeadline::new(connection, options.head_timeout));
        let service = TowerToHyperService::new(app.router.clone());
        let builder = Arc::clone(&builder);
        let watcher = graceful.watcher();
        tokio::spawn(async move {
            let served = builder.serve_connection(io, service);
            if let Err(error) = watcher.watch(served.into_owned()).await {
                tracing::debug!(error, "connection closed");
            }
            drop(permit);
        });
    }
    drop(listener);
    if timeout(FLUSH, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still open at the end of the shutdown");
    }
}

/// Waits for the shutdown and then for live requests, no longer than the grace; ends those that are left.
async fn drain(app: &App, grace: Duration, shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    app.gateway.drain();
    if timeout(grace, app.gateway.drained()).await.is_err() {
        tracing::warn!("requests were still in flight after the grace of the shutdown");
        app.gateway.end_all();
    }
}

fn builder(head_timeout: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32);
    builder
}

/// A connection whose first bytes must come in time: nothing else watches over it before its protocol is known.
struct PrefaceDeadline<T> {
    inner: T,
    left: usize,
    deadline: Pin<Box<Sleep>>,
}

impl<T> PrefaceDeadline<T> {
    fn new(inner: T, within: Duration) -> Self {
        Self {
            inner,
            left: PREFACE_BYTES,
            deadline: Box::pin(sleep(within)),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for PrefaceDeadline<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.left > 0 && this.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        this.left = this.left.saturating_sub(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for PrefaceDeadline<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
