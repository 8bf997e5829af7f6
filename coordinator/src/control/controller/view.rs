//! The cluster's status as JSON, for the command line and for people.

use std::fmt;

use serde::Serialize;
use tramontane_model::members::LoadReport;

/// The whole cluster, as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatusView {
    /// The model's name.
    pub model: String,
    /// Who leads, as far as is known.
    pub leader: Option<u64>,
    /// The leader's term; 0 if this coordinator does not lead.
    pub term: u64,
    /// Coordinators, then workers.
    pub nodes: Vec<NodeView>,
    /// The coordinators as raft has them, and those that were removed.
    pub members: Vec<MemberView>,
    /// The placement map.
    pub replicas: Vec<ReplicaView>,
    /// Replicas that are wanted; absent: as many as fit.
    pub replicas_wanted: Option<u32>,
    /// How many serve.
    pub replicas_serving: u32,
    /// Why there are fewer than wanted, as far as the leader knows.
    pub replicas_short: Option<String>,
    /// Why nothing serves, if nothing does.
    pub missing: Option<String>,
}

/// A coordinator or a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeView {
    /// `coordinator-1`, or the worker's name.
    pub id: String,
    /// `leader`, `follower` or `worker`.
    pub role: &'static str,
    /// Process id.
    pub pid: u32,
    /// `host:port`: a coordinator's raft address, a worker's own.
    pub address: String,
    /// Where a coordinator serves HTTP, `host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_address: Option<String>,
    /// Coordinators: `up`, or `silent` for one that the leader does not hear from. Workers:
    /// `joined`, `draining`, `drained` (nothing lies on it any more), `silent` (no session), `left` (it drained first) or
    /// `lost`.
    pub state: &'static str,
    /// Whether it is a worker that takes part in no placement: it may keep copies for others.
    pub standby: bool,
    /// A worker's devices.
    pub devices: Vec<DeviceView>,
}

/// A coordinator's part in raft.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberView {
    /// Its id.
    pub id: u64,
    /// Where its peers reach it, `host:port`.
    pub address: String,
    /// `voter`, `learner`, `joining` (it was added and does not learn yet), `leaving` (it was removed and still takes
    /// part) or `removed`.
    pub part: &'static str,
    /// Whether the leader hears from it.
    pub active: bool,
    /// The last entry of the log that it is known to have.
    pub matched: u64,
}

/// A worker's device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceView {
    /// Which of the worker's devices.
    pub index: u32,
    /// Adapter name.
    pub adapter: String,
    /// Bytes that it has.
    pub memory_bytes: u64,
    /// Bytes that it holds.
    pub held_bytes: u64,
    /// Bytes that the planner counts for what lies on it, its copies included.
    pub planned_bytes: u64,
    /// What it does, for people.
    pub state: String,
    /// How far it is, if it loads.
    pub loading: Option<Progress>,
    /// What it stands by for, for people; each with its layers.
    pub standby: Vec<String>,
    /// Bytes of copies that it keeps for that.
    pub standby_bytes: u64,
    /// Bytes of copies that it will keep.
    pub standby_total_bytes: u64,
}

/// A replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplicaView {
    /// Its id.
    pub id: u64,
    /// Its last generation.
    pub generation: u64,
    /// `loading`, `serving`, `broken` or `unplaceable`.
    pub phase: &'static str,
    /// Why it does not serve, if there is more to say.
    pub reason: Option<String>,
    /// Its stages.
    pub stages: Vec<StageView>,
    /// Its KV cache.
    pub kv: KvView,
    /// What its scheduler does, if it told.
    pub load: Option<LoadView>,
    /// How far its devices are, while they load.
    pub loading: Option<Progress>,
    /// The worker whose loss costs the most, while the replica serves and as far as the leader knows.
    pub worst_loss: Option<LossView>,
}

/// What the loss of a worker would cost a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LossView {
    /// The worker.
    pub worker: String,
    /// Bytes of weights that would have to be read before the replica serves again: those that no standby has.
    pub read_bytes: u64,
}

/// A pipeline stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StageView {
    /// First layer and one past the last.
    pub layers: (u32, u32),
    /// `worker/device`.
    pub owner: String,
    /// Its expert groups.
    pub groups: Vec<GroupView>,
}

/// An expert group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupView {
    /// First expert and one past the last.
    pub experts: (u32, u32),
    /// `worker/device`.
    pub holder: String,
}

/// A KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KvView {
    /// Tokens per block.
    pub block_tokens: u32,
    /// Blocks.
    pub blocks: u32,
    /// How values are stored, `f16` or `f32`; none without a placement.
    pub format: Option<&'static str>,
}

/// What a scheduler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LoadView {
    /// Sequences that hold cache blocks.
    pub running: u32,
    /// Sequences that wait.
    pub waiting: u32,
    /// Cache blocks in use.
    pub kv_blocks_used: u32,
    /// Cache blocks in all.
    pub kv_blocks_total: u32,
}

/// How far a device is, or a placement's devices together, as far as they told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Bytes on devices so far.
    pub loaded_bytes: u64,
    /// Bytes in the end.
    pub total_bytes: u64,
    /// What those that load read in a second, in the mean since each began.
    pub bytes_per_second: u64,
    /// Until the last of them is done at its rate; absent while the rate of one is not known.
    pub seconds_left: Option<u64>,
}

impl From<LoadReport> for Progress {
    fn from(load: LoadReport) -> Self {
        Self {
            loaded_bytes: load.loaded_bytes,
            total_bytes: load.total_bytes,
            bytes_per_second: load.bytes_per_second,
            seconds_left: load.seconds_left(),
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.loaded_bytes, self.total_bytes)?;
        match self.seconds_left {
            Some(left) if self.bytes_per_second > 0 => {
                write!(f, " at {} bytes/s, {left} s left", self.bytes_per_second)
            }
            Some(_) | None => Ok(()),
        }
    }
}
