//! What changes the replicated state, and what comes of it.
//!
//! A command states a fact or a decision of the leader; it carries all that its effect depends on, so that applying
//! it needs no clock and no planner.

use serde::{Deserialize, Serialize};
use tramontane_model::ids::{CoordinatorId, DeviceRef, Fence, Generation, ReplicaId, WorkerId};
use tramontane_model::members::WorkerInfo;
use tramontane_model::placement::{PlacementError, Replica};
use tramontane_model::standby::{Share, Standby};

use super::footprint::{CapacityError, FootprintError};
use super::state::{CoordinatorEntry, ModelEntry};

/// One change of the replicated state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// A coordinator has started. It says nothing of who votes: that is raft's own membership.
    CoordinatorStarted {
        /// Which coordinator.
        coordinator: CoordinatorId,
        /// What it says of itself.
        entry: CoordinatorEntry,
    },
    /// A coordinator is to take part in raft. Its id was never used before.
    CoordinatorAdded {
        /// Which coordinator.
        coordinator: CoordinatorId,
        /// Where its peers and workers reach it, `host:port`.
        address: String,
    },
    /// A coordinator is to take part no more; its id is never used again.
    CoordinatorRemoved {
        /// Which coordinator.
        coordinator: CoordinatorId,
    },
    /// This is the model to serve. Another model breaks every placement of the one before.
    ModelDescribed {
        /// The model.
        model: ModelEntry,
    },
    /// A worker is a member. If it is one already with another incarnation, that one counts as lost first.
    WorkerJoined {
        /// What it says of itself.
        info: WorkerInfo,
    },
    /// A worker is to be given nothing new, and what it has is to move.
    WorkerDraining {
        /// Which worker.
        worker: WorkerId,
        /// Which start of it.
        incarnation: u64,
        /// Even where no replica can be served without it.
        force: bool,
    },
    /// A worker that drains may be given work again.
    WorkerUndrained {
        /// Which worker.
        worker: WorkerId,
        /// Which start of it.
        incarnation: u64,
    },
    /// A worker is no member any more; placements that used it are broken.
    WorkerLost {
        /// Which worker.
        worker: WorkerId,
        /// Which start of it.
        incarnation: u64,
    },
    /// A replica is placed, for the first time (generation 1) or anew.
    Place {
        /// The placement, with its id and new generation.
        replica: Replica,
        /// The placement map that it was planned on.
        expected_version: u64,
    },
    /// These devices are to keep copies of weights, and no others. It changes no placement and no generation.
    StandBy {
        /// All standbys, in the order of their devices.
        standbys: Vec<Standby>,
        /// The placement map that they were chosen for.
        expected_version: u64,
    },
    /// Every device of the placement is ready.
    ReplicaServing {
        /// The placement.
        fence: Fence,
    },
    /// A device of the placement failed.
    DeviceFailed {
        /// The placement.
        fence: Fence,
        /// The device.
        device: DeviceRef,
        /// Why, as its worker says.
        reason: String,
    },
    /// The replica can be placed nowhere.
    Unplaced {
        /// The replica; the next new id if there is none yet.
        replica: ReplicaId,
        /// Why, for people.
        reason: String,
        /// Bytes of device memory that are missing.
        missing_bytes: u64,
        /// The placement map that it was planned on.
        expected_version: u64,
    },
    /// The replica is no more: it is placed nowhere, or there are more than are wanted. Its id is not given again.
    Retired {
        /// Which replica.
        replica: ReplicaId,
        /// The placement map that this was decided on.
        expected_version: u64,
    },
}

/// A command as the log holds it.
///
/// A proposer numbers its proposals upwards and may send one again until it sees it applied: it is applied once.
/// One that arrives after a later one of the same proposer is not applied at all, so a proposer with several in flight
/// must look at the state, not at the log, to learn what became of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Who proposes: a number of its own for each start of a coordinator.
    pub proposer: u64,
    /// Grows with each proposal of that proposer; the first is at least 1.
    pub sequence: u64,
    /// What to do.
    pub command: Command,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The state says so now.
    Applied,
    /// The proposal, or a later one of its proposer, was applied before: nothing was done.
    Duplicate,
    /// It does not agree with the state: nothing was done.
    Refused(Refusal),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A text or list is longer, or a number larger, than it may be.
    #[error("{field} is {found}, at most {limit} is allowed")]
    TooLarge {
        /// Which field.
        field: &'static str,
        /// Its length or value.
        found: u64,
        /// The most it may be.
        limit: u64,
    },
    /// A worker's devices are not numbered 0, 1, ... in order, or there are none.
    #[error("worker {worker} must list at least one device, with indexes 0, 1, ... in order")]
    DeviceIndexes {
        /// Which worker.
        worker: WorkerId,
    },
    /// An id that was given to a coordinator before.
    #[error(
        "coordinator {coordinator} was removed from this cluster; ids are never used again: take another one"
    )]
    Removed {
        /// Which coordinator.
        coordinator: CoordinatorId,
    },
    /// A coordinator that was added with another address.
    #[error("coordinator {coordinator} was added already, at {address}")]
    Added {
        /// Which coordinator.
        coordinator: CoordinatorId,
        /// Its address.
        address: String,
    },
    /// A model that cannot be planned.
    #[error("model {name}: {error}")]
    Model {
        /// Its name.
        name: String,
        /// What is wrong with it.
        error: FootprintError,
    },
    /// A placement before there is a model.
    #[error("no model is described yet, so nothing can be placed")]
    NoModel,
    /// The worker is no member, or was started again since.
    #[error("worker {worker} with incarnation {incarnation} is not a member")]
    NotMember {
        /// Which worker.
        worker: WorkerId,
        /// Which start of it.
        incarnation: u64,
    },
    /// The map changed since it was planned on.
    #[error("planned on placement version {expected}, the placement is at version {found}")]
    Version {
        /// The version planned on.
        expected: u64,
        /// The version that is.
        found: u64,
    },
    /// A replica id that is neither known nor the next.
    #[error("replica {replica} is not known and the next new one is {next}")]
    UnknownReplica {
        /// The id.
        replica: ReplicaId,
        /// The id that a new one must have.
        next: ReplicaId,
    },
    /// A placement that is not one generation on (PL-3), or word of one that is not the last.
    #[error("{fence} is stale: the replica's last generation is {last}")]
    Generation {
        /// The fence.
        fence: Fence,
        /// The replica's last generation.
        last: Generation,
    },
    /// The replica is in a phase that this cannot follow.
    #[error("{fence} is {phase}, so it cannot become {wanted}")]
    Phase {
        /// The fence.
        fence: Fence,
        /// Its phase.
        phase: &'static str,
        /// The phase that was to follow.
        wanted: &'static str,
    },
    /// A device that takes no part in the placement.
    #[error("device {device} takes no part in {fence}")]
    ForeignDevice {
        /// The fence.
        fence: Fence,
        /// The device.
        device: DeviceRef,
    },
    /// A device that another replica has.
    #[error("device {device} is part of replica {replica}")]
    Taken {
        /// The device.
        device: DeviceRef,
        /// The replica that has it.
        replica: ReplicaId,
    },
    /// Standbys that are not in order, or keep nothing.
    #[error(
        "standbys must be listed in the order of their devices, each device once and with a copy to keep"
    )]
    StandbyOrder,
    /// A copy of what the model does not have.
    #[error("device {device} is to keep a copy of {share}, which the model does not have")]
    ForeignShare {
        /// The device.
        device: DeviceRef,
        /// The copy.
        share: Share,
    },
    /// A copy of what the device holds anyway.
    #[error("device {device} is to keep a copy of {share}, some of which it holds already")]
    HeldTwice {
        /// The device.
        device: DeviceRef,
        /// The copy.
        share: Share,
    },
    /// The placement breaks PL-1.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The placement breaks PL-2.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
}
