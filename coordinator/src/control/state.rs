//! The replicated state: members and the placement map.
//!
//! Pure data in ordered maps: members that applied the same log hold equal bytes. No leases, reports or addresses of
//! clients here: they are known to the leader or to one gateway only.
//!
//! **Invariant PL-2:** no device is given more bytes than it reported; [`crate::control::apply`] refuses the command
//! that would.
//! **Invariant PL-3:** at most one placement per (replica, generation), and generations only grow.
//! **Invariant PL-4:** no device is in two replicas that load or serve.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use tramontane_model::ids::{CoordinatorId, DeviceIndex, DeviceRef, Fence, Generation, ReplicaId, WorkerId};
use tramontane_model::members::{DeviceInfo, WorkerInfo};
use tramontane_model::placement::Replica;
use tramontane_model::standby::Standby;

use super::footprint::ModelFootprint;

/// What a coordinator said of itself when it last started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorEntry {
    /// Where its peers and workers reach it, `host:port`.
    pub raft_address: String,
    /// Where clients reach it, `host:port`.
    pub http_address: String,
    /// Its process id, for operators.
    pub pid: u32,
    /// Its program version.
    pub version: String,
}

/// A coordinator whose part in raft is not that of a first member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// It was added.
    Added {
        /// Where its peers and workers reach it, `host:port`.
        address: String,
    },
    /// It was removed.
    Removed {
        /// Where it was reached if it had been added: it takes part until raft has let it go.
        address: Option<String>,
    },
}

/// The one model that the cluster serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelEntry {
    /// Its name in requests.
    pub name: String,
    /// Fingerprint of its checkpoint; a worker with another is never planned on.
    pub fingerprint: [u8; 32],
    /// What it needs of devices.
    pub footprint: ModelFootprint,
}

/// Whether a worker may be given work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It may.
    Joined,
    /// It is given nothing new, and what it has moves elsewhere.
    Draining {
        /// Where it fits nowhere else it stops serving; else it stays.
        force: bool,
    },
}

impl Standing {
    /// Whether what it has is to move.
    pub fn drains(self) -> bool {
        match self {
            Self::Joined => false,
            Self::Draining { .. } => true,
        }
    }
}

/// A worker that is a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerEntry {
    /// What it said of itself when it joined.
    pub info: WorkerInfo,
    /// Whether it may be given work.
    pub standing: Standing,
}

/// Why a placement cannot serve any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// A worker that takes part was lost.
    WorkerLost {
        /// Which worker.
        worker: WorkerId,
    },
    /// A device could not load its part, or failed later.
    Device {
        /// Which device.
        device: DeviceRef,
        /// Why, as its worker says.
        reason: String,
    },
    /// The cluster was given another model.
    ModelChanged,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WorkerLost { worker } => write!(f, "worker {worker} was lost"),
            Self::Device { device, reason } => write!(f, "device {device} failed: {reason}"),
            Self::ModelChanged => f.write_str("the cluster was given another model"),
        }
    }
}

/// How far a replica is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Placed; its devices load.
    Loading {
        /// The placement.
        placement: Replica,
    },
    /// Placed and loaded: it answers.
    Serving {
        /// The placement.
        placement: Replica,
    },
    /// Placed, but it cannot answer; a new generation follows.
    Broken {
        /// The placement that broke.
        placement: Replica,
        /// Why.
        fault: Fault,
    },
    /// Placed nowhere.
    Unplaceable {
        /// Why, for people.
        reason: String,
        /// Bytes of device memory that are missing.
        missing_bytes: u64,
    },
}

impl Phase {
    /// The phase as one word, for messages and status.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Loading { .. } => "loading",
            Self::Serving { .. } => "serving",
            Self::Broken { .. } => "broken",
            Self::Unplaceable { .. } => "unplaceable",
        }
    }
}

/// A replica of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaEntry {
    /// Its last generation; 0 before the first placement.
    pub generation: Generation,
    /// How far it is.
    pub phase: Phase,
}

impl ReplicaEntry {
    /// The placement, whether it serves or not.
    pub fn placement(&self) -> Option<&Replica> {
        match &self.phase {
            Phase::Loading { placement } | Phase::Serving { placement } | Phase::Broken { placement, .. } => {
                Some(placement)
            }
            Phase::Unplaceable { .. } => None,
        }
    }

    /// The placement, if devices are to hold it: it loads or serves.
    pub fn live(&self) -> Option<&Replica> {
        match &self.phase {
            Phase::Loading { placement } | Phase::Serving { placement } => Some(placement),
            Phase::Broken { .. } | Phase::Unplaceable { .. } => None,
        }
    }

    /// The placement, if it answers.
    pub fn serving(&self) -> Option<&Replica> {
        match &self.phase {
            Phase::Serving { placement } => Some(placement),
            Phase::Loading { .. } | Phase::Broken { .. } | Phase::Unplaceable { .. } => None,
        }
    }

    /// Whether a worker takes part in a placement that loads or serves.
    pub fn uses(&self, worker: &WorkerId) -> bool {
        let placement = self.live();
        placement.is_some_and(|replica| replica.devices().iter().any(|device| device.worker == *worker))
    }
}

/// How far the commands of one proposer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposerEntry {
    /// Its last applied sequence.
    pub sequence: u64,
    /// [`ClusterState::commands`] when that was applied: the lowest is forgotten first.
    pub at: u64,
}

/// What every coordinator knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Proposals applied so far, whatever came of them.
    pub commands: u64,
    /// Grows with every change of [`Self::replicas`], of [`Self::standbys`] and of a worker's standing.
    pub version: u64,
    /// The id that the next replica gets, less 1.
    pub replicas_named: u64,
    /// The model, once a leader has described it.
    pub model: Option<ModelEntry>,
    /// Coordinators by id.
    pub coordinators: BTreeMap<CoordinatorId, CoordinatorEntry>,
    /// Coordinators that were added or removed since the cluster began.
    #[serde(default)]
    pub parts: BTreeMap<CoordinatorId, Part>,
    /// Workers by name.
    pub workers: BTreeMap<WorkerId, WorkerEntry>,
    /// Replicas by id.
    pub replicas: BTreeMap<ReplicaId, ReplicaEntry>,
    /// Devices that keep copies of weights beside what they compute with, in the order of devices; each keeps some.
    #[serde(default)]
    pub standbys: Vec<Standby>,
    /// Last sequence of each proposer.
    pub proposers: BTreeMap<u64, ProposerEntry>,
}

impl ClusterState {
    /// Whether a coordinator was removed.
    pub fn is_removed(&self, coordinator: CoordinatorId) -> bool {
        matches!(self.parts.get(&coordinator), Some(Part::Removed { .. }))
    }

    /// Coordinators that were added, with their addresses.
    pub fn added(&self) -> impl Iterator<Item = (CoordinatorId, &str)> {
        self.parts.iter().filter_map(|(&id, part)| match part {
            Part::Added { address } => Some((id, address.as_str())),
            Part::Removed { .. } => None,
        })
    }

    /// The id that the next new replica must have.
    pub fn next_replica(&self) -> ReplicaId {
        ReplicaId(self.replicas_named.saturating_add(1))
    }

    /// A device of a member.
    pub fn device(&self, device: &DeviceRef) -> Option<&DeviceInfo> {
        let DeviceIndex(index) = device.device;
        let worker = self.workers.get(&device.worker)?;
        worker.info.devices.get(usize::try_from(index).ok()?)
    }

    /// The replica, if the fence names its last generation.
    pub fn current(&self, fence: Fence) -> Option<&ReplicaEntry> {
        let entry = self.replicas.get(&fence.replica)?;
        (entry.generation == fence.generation).then_some(entry)
    }
}
