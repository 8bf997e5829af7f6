//! A cluster's status as the command line reads it: the JSON of `GET /cluster/status`.

use serde::Deserialize;

/// The whole cluster.
#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    pub(crate) model: String,
    pub(crate) leader: Option<u64>,
    pub(crate) term: u64,
    pub(crate) nodes: Vec<Node>,
    /// The coordinators as raft has them.
    #[serde(default)]
    pub(crate) members: Vec<Member>,
    pub(crate) replicas: Vec<Replica>,
    /// How many are wanted; absent: as many as fit.
    pub(crate) replicas_wanted: Option<u32>,
    pub(crate) replicas_serving: u32,
    /// Why there are fewer than wanted.
    pub(crate) replicas_short: Option<String>,
    pub(crate) missing: Option<String>,
}

/// A coordinator or a worker.
#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) role: String,
    pub(crate) pid: u32,
    pub(crate) address: String,
    /// Where a coordinator serves HTTP.
    pub(crate) http_address: Option<String>,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) standby: bool,
    #[serde(default)]
    pub(crate) devices: Vec<Device>,
}

/// A coordinator's part in raft.
#[derive(Debug, Deserialize)]
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) address: String,
    /// `voter`, `learner`, `joining`, `leaving` or `removed`.
    pub(crate) part: String,
    pub(crate) active: bool,
    pub(crate) matched: u64,
}

/// A worker's device.
#[derive(Debug, Deserialize)]
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) adapter: String,
    pub(crate) memory_bytes: u64,
    pub(crate) held_bytes: u64,
    #[serde(default)]
    pub(crate) planned_bytes: u64,
    pub(crate) state: String,
    /// What it keeps copies of.
    #[serde(default)]
    pub(crate) standby: Vec<String>,
    #[serde(default)]
    pub(crate) standby_bytes: u64,
    #[serde(default)]
    pub(crate) standby_total_bytes: u64,
}

/// A serving copy of the model.
#[derive(Debug, Deserialize)]
pub(crate) struct Replica {
    pub(crate) id: u64,
    pub(crate) generation: u64,
    pub(crate) phase: String,
    pub(crate) reason: Option<String>,
    pub(crate) stages: Vec<Stage>,
    pub(crate) kv: Kv,
    pub(crate) load: Option<Load>,
    pub(crate) loading: Option<Loading>,
    /// What the loss of the worker would cost whose loss costs the most.
    pub(crate) worst_loss: Option<Loss>,
}

/// What the loss of a worker would cost.
#[derive(Debug, Deserialize)]
pub(crate) struct Loss {
    pub(crate) worker: String,
    pub(crate) read_bytes: u64,
}

/// A pipeline stage.
#[derive(Debug, Deserialize)]
pub(crate) struct Stage {
    pub(crate) layers: (u32, u32),
    pub(crate) owner: String,
    pub(crate) groups: Vec<Group>,
}

/// An expert group.
#[derive(Debug, Deserialize)]
pub(crate) struct Group {
    pub(crate) experts: (u32, u32),
    pub(crate) holder: String,
}

/// The KV cache.
#[derive(Debug, Deserialize)]
pub(crate) struct Kv {
    pub(crate) block_tokens: u32,
    pub(crate) blocks: u32,
    /// How values are stored; absent without a placement.
    #[serde(default)]
    pub(crate) format: Option<String>,
}

/// What a replica's scheduler is doing.
#[derive(Debug, Deserialize)]
pub(crate) struct Load {
    pub(crate) running: u32,
    pub(crate) waiting: u32,
    pub(crate) kv_blocks_used: u32,
    pub(crate) kv_blocks_total: u32,
}

/// How far a placement's devices are.
#[derive(Debug, Deserialize)]
pub(crate) struct Loading {
    pub(crate) loaded_bytes: u64,
    pub(crate) total_bytes: u64,
    #[serde(default)]
    pub(crate) bytes_per_second: u64,
    /// Absent while it is not known.
    pub(crate) seconds_left: Option<u64>,
}
