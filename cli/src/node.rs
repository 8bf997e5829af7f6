//! The only place that starts a coordinator or a worker within this process.

use std::net::SocketAddr;

use anyhow::Result;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tramontane_coordinator::config::CoordinatorConfig;
pub(crate) use tramontane_coordinator::process::Bound;
use tramontane_worker::config::WorkerConfig;

use crate::process::Told;

/// Runs a coordinator until `stop`.
pub(crate) async fn coordinator(
    config: CoordinatorConfig,
    metrics: PrometheusHandle,
    stop: CancellationToken,
    bound: impl FnOnce(Bound) + Send + 'static,
) -> Result<()> {
    tramontane_coordinator::process::describe_metrics();
    Ok(tramontane_coordinator::process::run(config, metrics, stop, bound).await?)
}

/// Runs a worker until it is told to stop and has left the cluster.
pub(crate) async fn worker(
    config: WorkerConfig,
    told: Told,
    bound: impl FnOnce(SocketAddr) + Send + 'static,
) -> Result<()> {
    tramontane_worker::process::describe_metrics();
    Ok(tramontane_worker::process::run(
        config,
        told.stop,
        told.at_once,
        tramontane_worker::process::spawn_gpu,
        bound,
    )
    .await?)
}
