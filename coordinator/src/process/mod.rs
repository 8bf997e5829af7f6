//! A coordinator, running: raft, the controller, the gRPC services, the gateway and HTTP, from a configuration until
//! it is stopped.
//!
//! Parts are made and joined here and nothing is decided: placement is the controller's, requests are the gateway's.

mod admin;
mod announce;
mod lead;
mod loads;
mod members;
mod model;
pub mod routes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tramontane_model::checkpoint::CheckpointError;
use tramontane_model::ids::CoordinatorId;
use tramontane_model::spec::SpecError;
use tramontane_proto::FileServer;
use tramontane_proto::net::{Identity, Listener, NetError, Traffic, server};

use crate::config::CoordinatorConfig;
use crate::control::controller::{Controller, ControllerOptions};
use crate::control::state::{ClusterState, CoordinatorEntry};
use crate::gateway::{Gateway, GatewayOptions, GrpcHeads, Routes};
use crate::http::{self, Api, ApiLimits, ModelCard, ServeOptions};
use crate::raft::transport::PeerLinks;
use crate::raft::{
    self, Driver, HandOver, IdentityError, LogStore, Members, Node, NodeError, NodeOptions, RaftHandle,
    RaftThread, StoreError, TICK, end_process,
};
use crate::rpc::admin::{AdminService, Leader};
use crate::rpc::desk::desk;
use crate::rpc::membership::{Door, MembershipService};
use crate::rpc::raft::RaftService;
use crate::rpc::redirect::Directory;
use crate::text::TokenizerError;
use lead::Lead;
use model::ServedModel;

/// Longest wait for raft to hand over the lead and close its log.
const RAFT_STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for the lead to be taken over by another once the process is to stop.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for a task that was told to stop.
const TASK_DEADLINE: Duration = Duration::from_secs(10);

/// Why a coordinator could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Model(#[from] CheckpointError),
    /// Its params.json cannot be used.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Its tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The members make no cluster.
    #[error(transparent)]
    Members(#[from] IdentityError),
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] StoreError),
    /// The log cannot be used.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// An address or certificate cannot be used.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The gRPC services stopped.
    #[error("the gRPC services stopped: {0}")]
    Services(#[from] tonic::transport::Error),
    /// No randomness, no thread, or a task that panicked.
    #[error("{0}")]
    Internal(String),
}

/// Addresses that are listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// HTTP.
    pub http: SocketAddr,
    /// gRPC.
    pub rpc: SocketAddr,
}

/// Runs a coordinator until `stop`: then readiness drops and the lead is handed over, requests in flight get a grace,
/// and only when they have ended does the rest stop. `metrics` renders what the process counts; `bound` is told where it listens.
///
/// When raft cannot go on the process ends with it, unless it is the log that cannot be written: see [`end_process`].
pub async fn run(
    config: CoordinatorConfig,
    metrics: PrometheusHandle,
    stop: CancellationToken,
    bound: impl FnOnce(Bound),
) -> Result<(), CoordinatorError> {
    let identity = Identity::from_config(config.tls.as_ref())?;
    let http_listener = Listener::bind(config.http_listen, &identity).await?;
    let rpc_listener = Listener::bind(config.rpc_listen, &identity).await?;
    let addresses = Bound {
        http: http_listener.address(),
        rpc: rpc_listener.address(),
    };
    let served = open_model(&config).await?;
    // Both end with this function however it ends: HTTP first, which needs the rest to the end.
    let (closing, down) = (stop.child_token(), CancellationToken::new());
    let (closed, ended) = (closing.clone().drop_guard(), down.clone().drop_guard());
    let cluster = Members::new(
        config
            .initial_members
            .iter()
            .map(|member| CoordinatorId(member.id)),
    )?;
    let cluster = match config.join {
        true => raft::Identity::joining(&config.cluster, config.id, cluster)?,
        false => raft::Identity::new(&config.cluster, config.id, cluster)?,
    };
    let (cut_off, lost) = watch::channel(None);
    let (raft_thread, raft, directory) = start_raft(&config, &cluster, &identity, cut_off).await?;
    let raft_address = directory.address(config.id);
    if raft_address.is_none() {
        tracing::info!(
            "this coordinator takes part once it is added: tramontane cluster add {} {}",
            config.id,
            addresses.rpc
        );
    }
    let entry = CoordinatorEntry {
        raft_address: raft_address.unwrap_or_else(|| addresses.rpc.to_string()),
        http_address: addresses.http.to_string(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let (desk, inbox) = desk();
    let leads = raft.clone();
    let leader = Leader::new(
        config.id,
        entry.clone(),
        identity.clone(),
        directory.clone(),
        desk.clone(),
        move || leads.status().leader,
    );
    let (routes, followed) = watch::channel(Arc::new(Routes::unknown()));
    let options = ControllerOptions {
        id: config.id,
        entry: entry.clone(),
        model: served.entry.clone(),
        replicas: config.placement.replicas,
        wishes: config.placement.into(),
        standbys: config.placement.standbys,
        steps: config.steps,
        settle_ms: config.placement.settle_ms,
        leases: config.leases,
    };
    let lead = Lead::new(
        Controller::new(options),
        raft.clone(),
        directory.clone(),
        inbox,
        routes,
    )
    .map_err(|error| CoordinatorError::Internal(error.to_string()))?;
    let leading = tokio::spawn(lead.run(down.clone()));
    let announcing = announce::run(config.id, entry, leader.clone(), raft.clone(), down.clone());
    let announcing = tokio::spawn(announcing);
    let (parts, own) = (directory.clone(), raft.clone());
    // One that is to be removed votes until it is.
    let is_gone = move |id| parts.is_removed(id) && !own.status().members.contains(&id);
    let door = Door {
        join_token: config.join_token.clone(),
        fingerprint: served.entry.fingerprint,
        directory,
        identity: identity.clone(),
    };
    let services = server(Traffic::Control)
        .add_service(MembershipService::server(door, desk))
        .add_service(RaftService::server(cluster, raft.clone(), is_gone))
        .add_service(AdminService::server(leader.clone()))
        .add_service(FileServer::service(Arc::clone(&served.checkpoint)))
        .serve_with_incoming_shutdown(rpc_listener.into_stream(), down.clone().cancelled_owned());
    let gateway = gateway(&config, identity, followed.clone());
    let pause = Duration::from_millis(config.leases.heartbeat_ms.into());
    let held = gateway.clone();
    let hearing = loads::run(leader.clone(), followed, gateway.clone(), pause, down.clone());
    let hearing = tokio::spawn(hearing);
    let api = api(&config, served, leader, gateway, metrics);
    let options = ServeOptions {
        shutdown_notice: config.requests.shutdown_notice(),
        shutdown_grace: config.requests.shutdown_grace(),
        ..ServeOptions::default()
    };
    let mut serving = tokio::spawn(http::serve(
        http_listener,
        http::router(api),
        options,
        closing.clone(),
    ));
    let handing_over = tokio::spawn(hand_over(raft.clone(), closing));
    bound(addresses);
    tracing::info!(id = %config.id, http = %addresses.http, rpc = %addresses.rpc, "coordinator up");
    let outcome = tokio::select! {
        outcome = services => outcome.map_err(CoordinatorError::from),
        outcome = &mut serving => outcome.map_err(|error| CoordinatorError::Internal(error.to_string())),
        () = raft_ended(&raft, lost, &held) => Ok(()),
    };
    drop(closed);
    let requests = config.requests.shutdown_notice() + config.requests.shutdown_grace();
    finish("http", serving, requests + TASK_DEADLINE).await;
    drop(ended);
    finish("handing over the lead", handing_over, HAND_OVER_DEADLINE).await;
    let finish = async |name, task| finish(name, task, TASK_DEADLINE).await;
    finish("the controller", leading).await;
    finish("announcing", announcing).await;
    finish("hearing of loads", hearing).await;
    if tokio::time::timeout(RAFT_STOP_DEADLINE, raft_thread.stop())
        .await
        .is_err()
    {
        tracing::warn!("raft did not end within {RAFT_STOP_DEADLINE:?}");
    }
    outcome
}

/// Waits for a task that was told to stop.
async fn finish(name: &str, mut task: JoinHandle<()>, within: Duration) {
    if task.is_finished() {
        return;
    }
    match tokio::time::timeout(within, &mut task).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "{name} ended badly"),
        Err(_) => {
            tracing::warn!("{name} did not end in time");
            task.abort();
        }
    }
}

/// Waits until raft has ended. Where its log failed the process stays, to let requests end and to say what is wrong.
async fn raft_ended(
    raft: &RaftHandle<ClusterState>,
    mut lost: watch::Receiver<Option<String>>,
    gateway: &Gateway,
) {
    raft.ended().await;
    // Said before raft's end is, or never.
    let why = lost.borrow_and_update().clone();
    if let Some(why) = why {
        gateway.cut_off(why);
        std::future::pending::<()>().await;
    }
}

/// Hands the lead over once the process is to stop, so that the cluster does not have to notice the loss first.
async fn hand_over(raft: RaftHandle<ClusterState>, closing: CancellationToken) {
    closing.cancelled().await;
    let deadline = tokio::time::Instant::now() + HAND_OVER_DEADLINE;
    match raft.hand_over(deadline).await {
        HandOver::NotLeading => {}
        HandOver::Done(leader) => tracing::info!(%leader, "the lead was handed over"),
        HandOver::Nobody => tracing::info!("nobody is there to take over the lead"),
    }
}

async fn open_model(config: &CoordinatorConfig) -> Result<ServedModel, CoordinatorError> {
    let (dir, name) = (config.model_dir.clone(), config.model_name.clone());
    let (steps, block_tokens) = (config.steps, config.placement.kv_block_tokens);
    blocking(move || ServedModel::open(&dir, name, steps, block_tokens)).await
}

async fn start_raft(
    config: &CoordinatorConfig,
    cluster: &raft::Identity,
    identity: &Identity,
    cut_off: watch::Sender<Option<String>>,
) -> Result<(RaftThread, RaftHandle<ClusterState>, Directory), CoordinatorError> {
    let (directory, own) = (config.data_dir.clone(), cluster.clone());
    let node = blocking(move || {
        let store = LogStore::open(&directory, &own)?;
        Ok(Node::new(
            store,
            &own,
            NodeOptions::new(&own),
            ClusterState::default(),
        )?)
    })
    .await?;
    let (driver, handle) = Driver::new(node, TICK);
    let directory = Directory::new(&config.initial_members).following(handle.watch_state());
    let known = directory.clone();
    let links = PeerLinks::open(cluster, move |id| known.address(id), identity, &handle)?;
    let thread = driver
        .start(links, end_process(cut_off))
        .map_err(|error| CoordinatorError::Internal(format!("no thread could be started: {error}")))?;
    Ok((thread, handle, directory))
}

/// Runs what blocks off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CoordinatorError> + Send + 'static,
) -> Result<T, CoordinatorError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| CoordinatorError::Internal(error.to_string()))?
}

fn gateway(config: &CoordinatorConfig, identity: Identity, routes: watch::Receiver<Arc<Routes>>) -> Gateway {
    let options = GatewayOptions {
        max_live_requests: config.requests.max_live,
        request_timeout: config.requests.timeout(),
        serving_wait: Duration::from_secs(config.requests.serving_wait_s),
        routing: config.routing,
        block_tokens: config.placement.kv_block_tokens,
        ..GatewayOptions::default()
    };
    Gateway::new(routes, Arc::new(GrpcHeads::new(identity)), options)
}

fn api(
    config: &CoordinatorConfig,
    served: ServedModel,
    leader: Leader,
    gateway: Gateway,
    metrics: PrometheusHandle,
) -> Api {
    let card = ModelCard {
        name: served.entry.name,
        max_context: served.max_context,
        created: served.created,
    };
    let limits = ApiLimits {
        max_body_bytes: config.requests.max_body_bytes,
        log_prompts: config.log.prompts,
        ..ApiLimits::default()
    };
    Api::new(
        card,
        Arc::new(served.tokenizer),
        gateway,
        Arc::new(admin::LeaderAdmin(leader)),
        metrics,
        limits,
    )
}

/// Describes every metric of a coordinator to the recorder.
pub fn describe_metrics() {
    http::describe_metrics();
}
