//! The only place that starts a coordinator or a worker within this process.

use std::net::SocketAddr;

use anyhow::Result;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tramontane_coordinator::config::CoordinatorConfig;
use tramontane_worker::config::{DeviceConfig, WorkerConfig};
use tramontane_worker::executor::{DeviceError, DeviceHandle, DeviceOptions};
use tramontane_worker::reference::CpuBackend;

/// Where a coordinator listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) http: SocketAddr,
    pub(crate) rpc: SocketAddr,
}

/// Runs a coordinator until `stop`.
pub(crate) async fn coordinator(
    config: CoordinatorConfig,
    metrics: PrometheusHandle,
    stop: CancellationToken,
    bound: impl FnOnce(Bound) + Send + 'static,
) -> Result<()> {
    // Until the coordinator's process is there.
    let _ = (config, metrics, stop, bound);
    anyhow::bail!("this build has no coordinator process")
}

/// Runs a worker until `stop`.
pub(crate) async fn worker(
    config: WorkerConfig,
    stop: CancellationToken,
    bound: impl FnOnce(SocketAddr) + Send + 'static,
) -> Result<()> {
    Ok(tramontane_worker::process::run(config, stop, open_device, bound).await?)
}

/// Until devices on GPUs are there: the CPU twins.
fn open_device(device: &DeviceConfig, options: DeviceOptions) -> Result<DeviceHandle, DeviceError> {
    const MEMORY_BYTES: u64 = 1 << 30;
    const MAX_BINDING_BYTES: u64 = 128 << 20;
    let memory = device.memory_bytes.unwrap_or(MEMORY_BYTES);
    DeviceHandle::spawn(options, move || Ok(CpuBackend::new(memory, MAX_BINDING_BYTES)))
}
