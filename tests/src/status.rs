//! A cluster's status as operators' tools read it: the JSON of `GET /cluster/status`.

use serde::Deserialize;

/// The whole cluster.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Status {
    /// Id of the coordinator that leads.
    pub leader: Option<u64>,
    /// Its term.
    pub term: u64,
    /// Coordinators and workers.
    pub nodes: Vec<Node>,
    /// The coordinators as raft has them.
    pub members: Vec<Member>,
    /// The placement map.
    pub replicas: Vec<Replica>,
    /// How many are wanted; absent: as many as fit.
    pub replicas_wanted: Option<u32>,
    /// How many serve.
    pub replicas_serving: u32,
    /// Why there are fewer than wanted.
    pub replicas_short: Option<String>,
    /// Why nothing serves.
    pub missing: Option<String>,
}

/// A coordinator's part in raft.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// `host:port`.
    pub address: String,
    /// `voter`, `learner`, `joining`, `leaving` or `removed`.
    pub part: String,
    /// Whether the leader hears from it.
    pub active: bool,
}

/// A coordinator or a worker.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Node {
    /// Its name.
    pub id: String,
    /// `leader`, `follower` or `worker`.
    pub role: String,
    /// Process id.
    pub pid: u32,
    /// `host:port`.
    pub address: String,
    /// Whether it is there.
    pub state: String,
    /// Whether it is a worker that takes part in no placement.
    pub standby: bool,
    /// A worker's devices.
    pub devices: Vec<Device>,
}

/// A worker's device.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Device {
    /// Adapter name.
    pub adapter: String,
    /// Bytes that it may use.
    pub memory_bytes: u64,
    /// Bytes that it holds.
    pub held_bytes: u64,
    /// Bytes that the planner counts for it.
    pub planned_bytes: u64,
    /// What it does.
    pub state: String,
    /// What it keeps copies of.
    pub standby: Vec<String>,
    /// Bytes of copies that it has.
    pub standby_bytes: u64,
    /// Bytes of copies that it is to have.
    pub standby_total_bytes: u64,
}

/// A replica's cache.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Kv {
    /// Tokens per block.
    pub block_tokens: u32,
    /// Blocks.
    pub blocks: u32,
    /// `f16` or `f32`; none without a placement.
    pub format: Option<String>,
}

/// A serving copy of the model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Replica {
    /// Its id.
    pub id: u64,
    /// Its last generation.
    pub generation: u64,
    /// `loading`, `serving`, `broken` or `unplaceable`.
    pub phase: String,
    /// Its cache.
    pub kv: Kv,
    /// Why it does not serve.
    pub reason: Option<String>,
    /// Its pipeline stages.
    pub stages: Vec<Stage>,
    /// What the loss of the worker would cost whose loss costs the most.
    pub worst_loss: Option<Loss>,
}

/// What the loss of a worker would cost a replica.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Loss {
    /// The worker.
    pub worker: String,
    /// Bytes of weights that would have to be read.
    pub read_bytes: u64,
}

/// A pipeline stage.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Stage {
    /// First layer and one past the last.
    pub layers: (u32, u32),
    /// `worker/device`.
    pub owner: String,
    /// Its expert groups.
    pub groups: Vec<Group>,
}

/// An expert group.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Group {
    /// First expert and one past the last.
    pub experts: (u32, u32),
    /// `worker/device`.
    pub holder: String,
}

impl Status {
    /// A node by its name.
    pub fn node(&self, id: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The replica, if it serves.
    pub fn serving(&self) -> Result<&Replica, String> {
        let replica = self.replicas.first().ok_or("nothing is placed")?;
        if replica.phase == "serving" {
            Ok(replica)
        } else {
            Err(format!("{replica:?}, {:?}", self.missing))
        }
    }
}

impl Status {
    /// The replica and a worker that stands by for it: it serves, no worker's loss costs any reading, and one that
    /// computes nothing has all its copies.
    pub fn stood_by_for(&self) -> Result<(&Replica, &Node), String> {
        let replica = self.serving()?;
        if replica.worst_loss.as_ref().is_none_or(|loss| loss.read_bytes > 0) {
            return Err(format!("the worst loss is {:?}", replica.worst_loss));
        }
        let is_whole =
            |device: &Device| device.standby_bytes > 0 && device.standby_bytes == device.standby_total_bytes;
        let mut free = self
            .nodes
            .iter()
            .filter(|node| node.standby && node.state == "joined");
        let free = free.find(|node| node.devices.iter().all(is_whole));
        let free = free.ok_or_else(|| format!("none that computes nothing has copies: {:?}", self.nodes))?;
        Ok((replica, free))
    }
}

impl Replica {
    /// Layers of each stage.
    pub fn layers(&self) -> Vec<u32> {
        let layers = self.stages.iter().map(|stage| stage.layers.1 - stage.layers.0);
        layers.collect()
    }

    /// Every device that takes part, once.
    pub fn devices(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        for stage in &self.stages {
            let holders = stage.groups.iter().map(|group| &group.holder);
            all.extend(std::iter::once(&stage.owner).chain(holders).map(String::as_str));
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}
