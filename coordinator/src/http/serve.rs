//! Connections: HTTP/1 and HTTP/2 on a listener, each bounded in time and size.
//!
//! The listener is made elsewhere, by the one constructor of listeners. A connection that sends nothing, sends its head
//! byte by byte, takes nothing of its answer or has no request in flight is closed after a deadline.
//!
//! At shutdown readiness drops first. After a notice the gateway is drained: new requests are refused, on connections that
//! are still accepted, while requests in flight get a grace. What then still runs ends with a typed error, and its
//! connections have a moment to send it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::{ServiceExt, service_fn};
use tramontane_proto::net::Listener;

use super::App;
use super::connection::{Guarded, InFlight};

/// Largest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 100;
/// Most concurrent requests of one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// How often an HTTP/2 connection is probed, and how long the answer may take.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// How long connections may take to send what is left once every request has ended.
const FLUSH: Duration = Duration::from_secs(2);

/// Limits of the connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// Most connections at once; more wait to be accepted.
    pub max_connections: usize,
    /// Longest wait for a request's head; on a connection of HTTP/1 from the moment the last answer was sent.
    pub head_timeout: Duration,
    /// How long a connection may be without any request in flight.
    pub idle_timeout: Duration,
    /// How long bytes of an answer may wait until the client takes any.
    pub write_timeout: Duration,
    /// How long new requests are still taken in after shutdown began: until clients have noticed that readiness dropped.
    pub shutdown_notice: Duration,
    /// How long requests in flight may go on after that.
    pub shutdown_grace: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            write_timeout: Duration::from_secs(120),
            shutdown_notice: Duration::ZERO,
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
    let mut drained = std::pin::pin!(drain(&app, &options, &shutdown));
    loop {
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await.ok()?;
            Some((listener.accept().await, permit))
        };
        let (connection, permit) = tokio::select! {
            biased;
            () = &mut drained => break,
            accepted = accepted => match accepted {
                Some(accepted) => accepted,
                None => break,
            },
        };
        let guarded = Guarded::new(connection, options.head_timeout, options.write_timeout);
        let in_flight = InFlight::new();
        let (router, counted) = (app.router.clone(), in_flight.clone());
        let service = TowerToHyperService::new(service_fn(move |request: Request<_>| {
            let (router, request) = (router.clone(), request.map(Body::new));
            let guard = counted.enter();
            async move { Ok::<_, Infallible>(guard.until_sent(router.oneshot(request).await?)) }
        }));
        let builder = Arc::clone(&builder);
        let watcher = graceful.watcher();
        let idle_timeout = options.idle_timeout;
        tokio::spawn(async move {
            let served = builder.serve_connection(TokioIo::new(guarded), service);
            tokio::select! {
                served = watcher.watch(served.into_owned()) => if let Err(error) = served {
                    tracing::debug!(error, "connection closed");
                },
                () = in_flight.idle_for(idle_timeout) => tracing::debug!("idle connection closed"),
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
async fn drain(app: &App, options: &ServeOptions, shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    app.gateway.close();
    if !options.shutdown_notice.is_zero() {
        sleep(options.shutdown_notice).await;
    }
    app.gateway.drain();
    if timeout(options.shutdown_grace, app.gateway.drained())
        .await
        .is_err()
    {
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
