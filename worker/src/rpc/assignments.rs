//! What this worker does for each replica: turns directives into device assignments, stage runners and heads.
//!
//! **PL-3:** a directive of a generation lower than the one that is served changes nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tramontane_model::ids::{DeviceIndex, DeviceRef, Fence, ReplicaId, WorkerId};
use tramontane_model::members::SchedulerLoad;
use tramontane_model::placement::{KvFormat, PlacementError, Replica};
use tramontane_model::spec::ModelSpec;
use tramontane_model::standby::Share;
use tramontane_proto::Directive;
use tramontane_proto::net::{Identity, NetError, Traffic, channel};

use super::expert::{Holdings, PeerExperts};
use super::head::{Head, HeadHandle};
use super::pipeline::{Downstream, HeadEnds};
use super::stage::{LinkEnds, STEP_DEADLINE, StageRunner};
use crate::executor::{Assignment, DeviceError, DeviceHandle, LocalLinks};
use crate::scheduler::{CacheKey, SchedulerConfig};
use crate::weights::{Copies, DeviceSlices};

/// Longest wait for the tasks of an old placement to end.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// Why a directive cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum AssignmentError {
    /// The placement does not tile the model.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// A worker without an address.
    #[error("the assignment names worker {0} but not its address")]
    UnknownPeer(WorkerId),
    /// An address that cannot be used.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A device refuses.
    #[error("device {device}: {source}")]
    Device {
        /// Which device.
        device: DeviceRef,
        /// Why.
        source: Box<DeviceError>,
    },
    /// The scheduler cannot work with what was placed.
    #[error(transparent)]
    Scheduler(#[from] crate::scheduler::ConfigError),
    /// The operating system gave no random bytes for the prefix cache's key.
    #[error("no random bytes for the key of the prefix cache: {0}")]
    Random(#[from] getrandom::Error),
}

/// The heads that this worker hosts, by replica.
#[derive(Clone, Default)]
pub struct Heads(Arc<Mutex<HashMap<ReplicaId, HeadHandle>>>);

impl Heads {
    /// The head of exactly this generation.
    pub fn get(&self, fence: Fence) -> Option<HeadHandle> {
        let heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heads
            .get(&fence.replica)
            .filter(|head| head.fence() == fence)
            .cloned()
    }

    fn set(&self, replica: ReplicaId, head: Option<HeadHandle>) {
        let mut heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match head {
            Some(head) => heads.insert(replica, head),
            None => heads.remove(&replica),
        };
    }
}

/// What the schedulers of this worker are doing, by replica.
pub type SchedulerLoads = BTreeMap<ReplicaId, SchedulerLoad>;

/// Follows directives.
pub struct Assignments {
    /// This worker.
    pub worker: WorkerId,
    /// The model it serves.
    pub spec: Arc<ModelSpec>,
    /// Its devices, by index.
    pub devices: Vec<DeviceHandle>,
    /// Who it is on the wire.
    pub identity: Identity,
    /// Its ends of links.
    pub ends: LinkEnds,
    /// The expert groups it holds.
    pub holdings: Holdings,
    /// The heads it hosts.
    pub heads: Heads,
    /// What its schedulers are doing.
    pub loads: watch::Sender<SchedulerLoads>,
    /// What the leader said last of the worker's leaving.
    pub leave: watch::Sender<Option<LeaveAnswer>>,
}

/// Whether the worker may go; if not, why it cannot be done without.
pub type LeaveAnswer = Result<(), String>;

/// What runs for a replica.
struct Running {
    replica: Replica,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Assignments {
    /// Follows directives until they end or `stop`, then ends everything that runs.
    pub async fn run(self, mut directives: mpsc::Receiver<Directive>, stop: CancellationToken) {
        let mut running: BTreeMap<ReplicaId, Running> = BTreeMap::new();
        loop {
            let directive = tokio::select! {
                () = stop.cancelled() => break,
                directive = directives.recv() => match directive {
                    Some(directive) => directive,
                    None => break,
                },
            };
            match directive {
                Directive::Welcome { .. } => {}
                Directive::Assign { replica, peers } => self.assign(&mut running, replica, &peers).await,
                Directive::Release(fence) => self.release(&mut running, fence).await,
                Directive::StandBy(copies) => self.stand_by(&copies),
                Directive::Leave { refused } => {
                    self.leave.send_replace(Some(refused.map_or(Ok(()), Err)));
                }
            }
        }
        for (_, one) in std::mem::take(&mut running) {
            self.end(one).await;
        }
    }

    async fn assign(
        &self,
        running: &mut BTreeMap<ReplicaId, Running>,
        replica: Replica,
        peers: &BTreeMap<WorkerId, String>,
    ) {
        let fence = replica.fence();
        if let Some(current) = running.get(&replica.id) {
            if current.replica.generation > replica.generation {
                metrics::counter!("tramontane_fenced_messages_total").increment(1);
                tracing::warn!(%fence, serving = %current.replica.fence(), "outdated assignment ignored");
                return;
            }
            if current.replica == replica {
                return;
            }
        }
        if let Some(old) = running.remove(&replica.id) {
            self.end(old).await;
        }
        let (stages, kv) = (replica.stages.len(), replica.kv);
        tracing::info!(%fence, stages, kv_blocks = kv.blocks, kv_format = %kv.format, "assigned");
        match self.start(replica, peers) {
            Ok(started) => {
                running.insert(fence.replica, started);
            }
            Err(error) => tracing::error!(%fence, %error, "assignment cannot be followed"),
        }
    }

    async fn release(&self, running: &mut BTreeMap<ReplicaId, Running>, fence: Fence) {
        if running
            .get(&fence.replica)
            .is_some_and(|one| one.replica.generation <= fence.generation)
            && let Some(old) = running.remove(&fence.replica)
        {
            self.end(old).await;
        }
        for device in &self.devices {
            if let Err(error) = device.release(fence) {
                tracing::warn!(%fence, device = %device.index(), %error, "release refused");
            }
        }
    }

    fn stand_by(&self, copies: &BTreeMap<DeviceIndex, Vec<Share>>) {
        for device in &self.devices {
            let shares = copies.get(&device.index()).map_or(&[][..], Vec::as_slice);
            let told: Vec<String> = shares.iter().map(ToString::to_string).collect();
            tracing::info!(device = %device.index(), copies = ?told, "stands by");
            if let Err(error) = device.keep_copies(Copies::of(
                shares,
                &self.spec,
                KvFormat::usual(device.info().is_cpu),
            )) {
                tracing::warn!(device = %device.index(), %error, "copies refused");
            }
        }
    }

    async fn end(&self, mut old: Running) {
        let fence = old.replica.fence();
        self.heads.set(fence.replica, None);
        self.holdings.set(fence, []);
        old.stop.cancel();
        let ended = async { while old.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(END_DEADLINE, ended).await.is_err() {
            tracing::warn!(%fence, "tasks of an old placement were aborted");
            old.tasks.abort_all();
        }
    }

    fn own(&self, device: &DeviceHandle) -> DeviceRef {
        DeviceRef {
            worker: self.worker.clone(),
            device: device.index(),
        }
    }

    fn start(
        &self,
        replica: Replica,
        peers: &BTreeMap<WorkerId, String>,
    ) -> Result<Running, AssignmentError> {
        let spec = &self.spec;
        replica.validate(spec.n_layers, spec.n_experts(), spec.moe_layers().start)?;
        let fence = replica.fence();
        let stop = CancellationToken::new();
        let peers = Peers {
            own: &self.worker,
            addresses: peers,
            identity: &self.identity,
        };
        self.assign_devices(&replica, &peers, &stop)?;
        let mut tasks = JoinSet::new();
        let stages = (0_u32..).zip(&replica.stages);
        let mut next_channels = Vec::new();
        for (index, stage) in stages
            .clone()
            .filter(|(_, stage)| stage.owner.worker == self.worker)
        {
            let next = replica.stages.get(index as usize + 1).or(replica.stages.first());
            let next_worker = next.map_or(&self.worker, |next| &next.owner.worker);
            next_channels.push((index, stage, next_worker.clone(), peers.channel(next_worker)?));
        }
        for (index, stage, next_worker, next_channel) in next_channels {
            let Some(device) = self.devices.get(stage.owner.device.0 as usize) else {
                continue;
            };
            let downstream = Downstream {
                fence,
                from_stage: index,
                dim: spec.dim,
                ends: self.ends.clone(),
                peer: next_worker.to_string(),
                channel: next_channel,
            };
            let runner = StageRunner {
                fence,
                stage: index,
                dim: spec.dim,
                max_rows: replica.steps.max_rows,
                device: device.clone(),
                upstream: self.ends.open((fence, index)),
                downstream: Box::new(downstream),
            };
            tasks.spawn(runner.run(stop.clone()));
        }
        if replica.head().is_some_and(|head| head.worker == self.worker) {
            self.start_head(&replica, &mut tasks, &stop)?;
        }
        Ok(Running { replica, stop, tasks })
    }

    fn assign_devices(
        &self,
        replica: &Replica,
        peers: &Peers<'_>,
        stop: &CancellationToken,
    ) -> Result<(), AssignmentError> {
        let fence = replica.fence();
        let mut channels = BTreeMap::new();
        for holder in replica.devices() {
            if let Some(channel) = peers.channel(&holder.worker)? {
                channels.insert(holder.clone(), channel);
            }
        }
        let experts = Arc::new(PeerExperts::new(Handle::current(), channels, stop.clone()));
        let local = LocalLinks::new(
            self.worker.clone(),
            self.devices.clone(),
            Some(experts),
            STEP_DEADLINE,
        );
        let links = Arc::new(local);
        let mut held = Vec::new();
        for device in &self.devices {
            let own = self.own(device);
            let followed = match DeviceSlices::of(replica, &own, &self.spec) {
                Some(slices) => {
                    let groups = slices.experts.iter();
                    held.extend(groups.map(|slice| ((fence, slice.stage, slice.group), device.clone())));
                    device.assign(Assignment {
                        fence,
                        slices,
                        links: links.clone(),
                    })
                }
                None => device.release(fence),
            };
            followed.map_err(|error| AssignmentError::Device {
                device: own,
                source: Box::new(error),
            })?;
        }
        self.holdings.set(fence, held);
        Ok(())
    }

    fn start_head(
        &self,
        replica: &Replica,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Result<(), AssignmentError> {
        let fence = replica.fence();
        let stages = replica.stages.len();
        // One for each stage: every further one makes every step's batch smaller, and weights are read once a step.
        let steps_in_flight = stages;
        let config = SchedulerConfig {
            fence,
            kv: replica.kv,
            steps_in_flight,
            capacity: replica.steps.capacity(),
            max_prefill_rows: replica.steps.max_prefill_rows as usize,
            max_sequences: replica.steps.max_sequences as usize,
            max_waiting: replica.steps.max_waiting as usize,
            max_waiting_tokens: replica.steps.max_waiting_tokens,
            prefix_cache: replica.steps.prefix_cache,
            target_ms: replica.steps.target_ms,
            max_positions: self.spec.max_context,
            vocab_size: self.spec.vocab_size,
        };
        let end = (fence, u32::try_from(stages).unwrap_or(u32::MAX));
        let results = self.ends.open(end);
        let opener = HeadEnds {
            fence,
            ends: self.ends.clone(),
            results,
        };
        let mut cache_key = CacheKey::default();
        getrandom::fill(&mut cache_key)?;
        let (head, handle) = Head::new(config, cache_key, self.loads.clone())?;
        tasks.spawn(head.run(opener, stop.clone()));
        self.heads.set(fence.replica, Some(handle));
        Ok(())
    }
}

/// Where the other workers of a placement are.
struct Peers<'a> {
    own: &'a WorkerId,
    addresses: &'a BTreeMap<WorkerId, String>,
    identity: &'a Identity,
}

impl Peers<'_> {
    /// A channel to another worker; none to this one.
    fn channel(&self, worker: &WorkerId) -> Result<Option<Channel>, AssignmentError> {
        if worker == self.own {
            return Ok(None);
        }
        let address = self
            .addresses
            .get(worker)
            .ok_or_else(|| AssignmentError::UnknownPeer(worker.clone()))?;
        Ok(Some(channel(address, self.identity, Traffic::Tensors)?))
    }
}
