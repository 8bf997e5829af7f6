//! The process's metrics: one recorder, and the endpoint of a worker that has no HTTP side of its own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tramontane_proto::net::{Connection, Identity, Listener};

/// Version 0.0.4 of the text exposition format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Bounds of histograms of seconds: from a step of a small model to a long answer.
const SECONDS: [f64; 17] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
/// Bounds of histograms of times between tokens, which are felt, and of steps: finer where readers tell them apart.
const GAPS: [f64; 20] = [
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 2.5, 10.0,
];
const OF_GAPS: [&str; 3] = ["_between_tokens_seconds", "_step_seconds", "_bubble_seconds"];
/// Bounds of histograms of rows and of sequences.
const ROWS: [f64; 12] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0,
];
/// Bounds of histograms of tokens: none is a bucket of its own.
const TOKENS: [f64; 12] = [
    0.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0,
];
/// How often what histograms have gathered is folded.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Most connections to the endpoint at once.
const MAX_CONNECTIONS: usize = 16;
/// Longest wait for a request's head, and the longest that a connection lives.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const CONNECTION_DEADLINE: Duration = Duration::from_secs(300);

/// Installs the recorder of the process. Must be called within a runtime, once.
pub(crate) fn install() -> Result<PrometheusHandle> {
    let handle = with_bounds()
        .context("the metrics' histograms")?
        .install_recorder()
        .context("the metrics' recorder cannot be installed")?;
    let kept = handle.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            ticks.tick().await;
            kept.run_upkeep();
        }
    });
    Ok(handle)
}

/// Every histogram has its bounds: by the end of its name, or those of seconds.
fn with_bounds() -> Result<PrometheusBuilder, BuildError> {
    let others = [("_rows", &ROWS[..]), ("_sequences", &ROWS), ("_tokens", &TOKENS)];
    let gaps = OF_GAPS.map(|suffix| (suffix, &GAPS[..]));
    let builder = PrometheusBuilder::new().set_buckets(&SECONDS)?;
    gaps.into_iter()
        .chain(others)
        .try_fold(builder, |builder, (suffix, bounds)| {
            builder.set_buckets_for_metric(Matcher::Suffix(suffix.to_owned()), bounds)
        })
}

/// Serves `GET /metrics` until `stop`. Beyond loopback as everything else: mutual TLS.
pub(crate) async fn serve(
    address: SocketAddr,
    identity: &Identity,
    metrics: PrometheusHandle,
    stop: CancellationToken,
) -> Result<()> {
    let mut listener = Listener::bind(address, identity).await?;
    tracing::info!(address = %listener.address(), "metrics served");
    tokio::spawn(async move {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = async {
                let permit = Arc::clone(&room).acquire_owned().await.ok()?;
                Some((listener.accept().await, permit))
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = accepted => accepted,
            };
            let Some((connection, permit)) = accepted else {
                return;
            };
            let (metrics, stop) = (metrics.clone(), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = tokio::time::timeout(CONNECTION_DEADLINE, connection_served(connection, metrics)) => {}
                }
                drop(permit);
            });
        }
    });
    Ok(())
}

async fn connection_served(connection: Connection, metrics: PrometheusHandle) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &metrics);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE);
    builder.http2().timer(TokioTimer::new());
    let served = builder.serve_connection(TokioIo::new(connection), service);
    if let Err(error) = served.await {
        tracing::debug!(error, "connection closed");
    }
}

fn answer(method: &Method, path: &str, metrics: &PrometheusHandle) -> Response<Full<Bytes>> {
    if method != Method::GET || path != "/metrics" {
        let mut response = Response::new(Full::from("only GET /metrics is served here\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let mut response = Response::new(Full::from(metrics.render()));
    let format = hyper::header::HeaderValue::from_static(TEXT_FORMAT);
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, format);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_metrics_are_served() {
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let status = |method, path| answer(&method, path, &metrics).status();
        assert_eq!(status(Method::GET, "/metrics"), StatusCode::OK);
        assert_eq!(status(Method::POST, "/metrics"), StatusCode::NOT_FOUND);
        assert_eq!(status(Method::GET, "/"), StatusCode::NOT_FOUND);
    }

    #[test]
    fn bounds_of_histograms_grow() {
        for bounds in [&SECONDS[..], &GAPS, &ROWS, &TOKENS] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
        with_bounds().expect("bounds");
    }
}
