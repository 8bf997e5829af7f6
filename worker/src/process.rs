//! A worker, running: its devices, its services and its membership, from a configuration until it is stopped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tramontane_model::checkpoint::CheckpointError;
use tramontane_model::ids::{DeviceIndex, WorkerId};
use tramontane_model::members::{DeviceInfo, WorkerInfo, WorkerReport};
use tramontane_proto::FileServer;
use tramontane_proto::net::{
    Identity, Listener, MAX_CONTROL_MESSAGE_BYTES, MAX_TENSOR_MESSAGE_BYTES, NetError, Traffic, server,
};
use tramontane_proto::v1::checkpoint_server::CheckpointServer;
use tramontane_proto::v1::expert_server::ExpertServer as ExpertService;
use tramontane_proto::v1::serving_server::ServingServer as ServingService;
use tramontane_proto::v1::stage_server::StageServer as StageService;

use crate::config::WorkerConfig;
use crate::executor::{DeviceError, DeviceHandle, DeviceOptions};
use crate::rpc::assignments::{Assignments, Heads, LeaveAnswer, SchedulerLoads};
use crate::rpc::expert::{ExpertServer, Holdings};
use crate::rpc::loading::{self, LoadLog};
use crate::rpc::serving::ServingServer;
use crate::rpc::session::{Session, SessionError};
use crate::rpc::stage::{LinkEnds, StageServer};
use crate::weights::{Mirror, MirrorError, ModelFiles, mirror};
use tramontane_kernels::gpu::{self, DeviceConfig};

/// Directives that wait to be followed.
const MAX_DIRECTIVES: usize = 16;
/// How often devices are looked at for changes to report.
const REPORT_INTERVAL: Duration = Duration::from_millis(50);
/// Longest wait for a device's thread to end.
const DEVICE_STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Why a worker could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Model(#[from] CheckpointError),
    /// Its files cannot be fetched.
    #[error("the model's files: {0}")]
    Mirror(#[from] MirrorError),
    /// A device cannot be opened.
    #[error("device {index}: {source}")]
    Device {
        /// Which of the configured devices.
        index: usize,
        /// Why.
        source: Box<DeviceError>,
    },
    /// An address or certificate cannot be used.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The services stopped.
    #[error("the gRPC services stopped: {0}")]
    Services(#[from] tonic::transport::Error),
    /// The cluster will not have this worker.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// No randomness, or a task that panicked.
    #[error("{0}")]
    Internal(String),
}

/// Opens one configured device: called where blocking is allowed.
pub trait OpenDevice: Fn(&DeviceConfig, DeviceOptions) -> Result<DeviceHandle, DeviceError> {}
impl<F: Fn(&DeviceConfig, DeviceOptions) -> Result<DeviceHandle, DeviceError>> OpenDevice for F {}

/// Starts a device thread on the adapter; opens it again after a failure. An [`OpenDevice`].
pub fn spawn_gpu(device: &DeviceConfig, options: DeviceOptions) -> Result<DeviceHandle, DeviceError> {
    let config = device.clone();
    let cache_dir = options.cache_dir.clone();
    DeviceHandle::spawn(options, move || {
        gpu::open_with_cache(&config, cache_dir.as_deref())
    })
}

/// Describes every metric of a worker to the recorder.
pub fn describe_metrics() {
    crate::rpc::telemetry::describe();
}

/// Runs a worker until `stop`, or until it has left: once `leave` is cancelled it asks the leader to be done without, and
/// goes when nothing lies on it any more, or after its grace. `open` opens its devices; `bound` is told the address that
/// is listened on.
pub async fn run(
    config: WorkerConfig,
    leave: CancellationToken,
    stop: CancellationToken,
    open: impl OpenDevice + Send + Sync + 'static,
    bound: impl FnOnce(SocketAddr),
) -> Result<(), WorkerError> {
    let identity = Identity::from_config(config.tls.as_ref())?;
    let listener = Listener::bind(config.listen, &identity).await?;
    let address = listener.address();
    let model = open_model(&config, &identity).await?;
    let devices = open_devices(&config, &model, Arc::new(open)).await?;
    bound(address);
    let info = worker_info(&config, address, &model, &devices)?;
    // A child ends with this function however it ends.
    let stop = stop.child_token();
    let ended = stop.clone().drop_guard();
    let (ends, holdings, heads) = (LinkEnds::default(), Holdings::default(), Heads::default());
    let services = server(Traffic::Tensors)
        .add_service(
            ServingService::new(ServingServer::new(heads.clone()))
                .max_decoding_message_size(MAX_CONTROL_MESSAGE_BYTES),
        )
        .add_optional_service(files(&model))
        .add_service(limited_stage(StageServer::new(ends.clone(), stop.clone())))
        .add_service(limited_expert(ExpertServer::new(holdings.clone(), stop.clone())))
        .serve_with_incoming_shutdown(listener.into_stream(), stop.clone().cancelled_owned());
    let (loads, load_changes) = watch::channel(SchedulerLoads::new());
    let (report, reports) = watch::channel(report(&devices, &load_changes.borrow(), false));
    let (leave_answer, leave_answers) = watch::channel(None);
    let (sender, directives) = mpsc::channel(MAX_DIRECTIVES);
    let assignments = Assignments {
        worker: config.name.clone(),
        spec: Arc::new(model.spec.clone()),
        devices: devices.clone(),
        identity: identity.clone(),
        ends,
        holdings,
        heads,
        loads,
        leave: leave_answer,
    };
    let session = Session {
        info,
        join_token: config.join_token,
        coordinators: config.coordinators,
        identity,
        report: reports,
        directives: sender,
    };
    let following = tokio::spawn(assignments.run(directives, stop.clone()));
    let outcome = tokio::select! {
        outcome = services => outcome.map_err(WorkerError::from),
        outcome = session.run(stop.clone()) => outcome.map_err(WorkerError::from),
        () = keep_reports(&config.name, &devices, load_changes, &leave, report) => Ok(()),
        () = left(&leave, config.drain_grace, leave_answers) => Ok(()),
    };
    drop(ended);
    if let Err(error) = following.await {
        tracing::error!(%error, "following assignments ended badly");
    }
    for device in &devices {
        if let Err(error) = device.stop(DEVICE_STOP_DEADLINE).await {
            tracing::warn!(device = %device.index(), %error, "device left running");
        }
    }
    outcome
}

/// Gives out the checkpoint's files, if this worker has all of them.
fn files(model: &ModelFiles) -> Option<CheckpointServer<FileServer>> {
    let whole = model.mirror.is_none();
    whole.then(|| FileServer::service(Arc::clone(&model.checkpoint)))
}

fn limited_stage(service: StageServer) -> StageService<StageServer> {
    StageService::new(service).max_decoding_message_size(MAX_TENSOR_MESSAGE_BYTES)
}

fn limited_expert(service: ExpertServer) -> ExpertService<ExpertServer> {
    ExpertService::new(service)
        .max_decoding_message_size(MAX_TENSOR_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_TENSOR_MESSAGE_BYTES)
}

/// Opens the checkpoint, or makes a folder that is filled as devices need it.
async fn open_model(config: &WorkerConfig, identity: &Identity) -> Result<Arc<ModelFiles>, WorkerError> {
    let (dir, sources) = (config.model_dir.clone(), &config.model_sources);
    let mirror = match sources.is_empty() || mirror::is_whole(&dir) {
        true => None,
        false => Some(Mirror::open(&dir, sources, identity).await?),
    };
    let opened = tokio::task::spawn_blocking(move || ModelFiles::open(&dir)).await;
    let mut model = opened.map_err(|error| WorkerError::Internal(error.to_string()))??;
    if let Some(mirror) = mirror {
        let (found, told) = (model.checkpoint.fingerprint(), mirror.fingerprint());
        if found != told {
            return Err(WorkerError::Internal(format!(
                "the files that were fetched have the fingerprint {found}, their source said {told}"
            )));
        }
        tracing::info!(dir = %config.model_dir.display(), "weights are fetched as they are placed");
        model.mirror = Some(mirror);
    }
    Ok(Arc::new(model))
}

/// Opens the configured devices, one after the other: drivers do not like it otherwise.
async fn open_devices(
    config: &WorkerConfig,
    model: &Arc<ModelFiles>,
    open: Arc<impl OpenDevice + Send + Sync + 'static>,
) -> Result<Vec<DeviceHandle>, WorkerError> {
    let best = [DeviceConfig::default()];
    let configured = if config.devices.is_empty() {
        &best[..]
    } else {
        &config.devices[..]
    };
    let mut devices = Vec::with_capacity(configured.len());
    for (index, device) in configured.iter().enumerate() {
        let options = DeviceOptions {
            index: DeviceIndex(u32::try_from(index).unwrap_or(u32::MAX)),
            model: Arc::clone(model),
            timeout: config.device_timeout,
            cache_dir: config.cache_dir.clone(),
        };
        let (open, device) = (Arc::clone(&open), device.clone());
        let opening = tokio::task::spawn_blocking(move || open(&device, options));
        let opened = opening
            .await
            .map_err(|error| WorkerError::Internal(error.to_string()))?;
        let handle = opened.map_err(|error| WorkerError::Device {
            index,
            source: Box::new(error),
        })?;
        let found = handle.info();
        tracing::info!(
            device = index,
            adapter = found.name,
            driver = found.driver,
            memory_bytes = found.memory_bytes,
            "device open"
        );
        devices.push(handle);
    }
    Ok(devices)
}

fn worker_info(
    config: &WorkerConfig,
    address: SocketAddr,
    model: &ModelFiles,
    devices: &[DeviceHandle],
) -> Result<WorkerInfo, WorkerError> {
    let device = |handle: &DeviceHandle| {
        let found = handle.info();
        DeviceInfo {
            index: handle.index(),
            adapter: found.name.clone(),
            driver: found.driver.clone(),
            kind: found.kind.clone(),
            is_cpu: found.is_cpu,
            memory_bytes: found.memory_bytes,
            max_binding_bytes: handle.max_binding_bytes(),
        }
    };
    Ok(WorkerInfo {
        worker: config.name.clone(),
        incarnation: incarnation(),
        address: config.advertise.clone().unwrap_or_else(|| address.to_string()),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model_fingerprint: model.checkpoint.fingerprint().0,
        devices: devices.iter().map(device).collect(),
    })
}

/// Random for each start of the process: the keys of the standard library's hash maps are.
fn incarnation() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

/// Waits until the worker is to leave and the leader lets it go, or its grace is over.
async fn left(leave: &CancellationToken, grace: Duration, mut answers: watch::Receiver<Option<LeaveAnswer>>) {
    leave.cancelled().await;
    tracing::info!(
        grace_s = grace.as_secs(),
        "leaving: the leader is asked to do without this worker"
    );
    let asked = Instant::now();
    let let_go = async {
        // The sender lives as long as the worker does.
        while answers.changed().await.is_ok() {
            match &*answers.borrow_and_update() {
                Some(Ok(())) => return,
                Some(Err(why)) => tracing::warn!(why, "this worker cannot be done without at present"),
                None => {}
            }
        }
        std::future::pending().await
    };
    match tokio::time::timeout(grace, let_go).await {
        Ok(()) => tracing::info!(waited = ?asked.elapsed(), "left: the cluster does without this worker"),
        Err(_) => tracing::warn!(
            waited = ?asked.elapsed(),
            "the grace is over: this worker goes although the cluster does not do without it"
        ),
    }
}

fn report(devices: &[DeviceHandle], loads: &SchedulerLoads, leaving: bool) -> WorkerReport {
    WorkerReport {
        devices: devices.iter().map(DeviceHandle::report).collect(),
        loads: loads.values().copied().collect(),
        leaving,
    }
}

/// Keeps the report current: a device's change of state shows at once, everything else within a tick.
async fn keep_reports(
    worker: &WorkerId,
    devices: &[DeviceHandle],
    loads: watch::Receiver<SchedulerLoads>,
    leave: &CancellationToken,
    reports: watch::Sender<WorkerReport>,
) {
    let mut loads_begun = LoadLog::default();
    let mut ticks = tokio::time::interval(REPORT_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut states: Vec<_> = devices.iter().map(DeviceHandle::state).collect();
    loop {
        // A device that is ready is waited for.
        let changes = states.iter_mut().map(|state| Box::pin(state.changed()));
        tokio::select! {
            _ = ticks.tick() => {}
            (Ok(()), ..) = select_all(changes) => {}
        }
        let current = report(devices, &loads.borrow(), leave.is_cancelled());
        for device in &current.devices {
            let labels = [
                ("worker", worker.to_string()),
                ("device", device.index.to_string()),
            ];
            metrics::gauge!("tramontane_device_held_bytes", &labels).set(device.held_bytes as f64);
            loading::show(&labels, &device.state);
            loads_begun.look(Instant::now(), device);
            metrics::gauge!("tramontane_standby_bytes", &labels).set(device.standby.loaded_bytes as f64);
        }
        reports.send_if_modified(|published| {
            let changed = *published != current;
            *published = current;
            changed
        });
    }
}
