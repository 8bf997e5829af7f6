//! What a controller is told once.

use tramontane_model::ids::CoordinatorId;
use tramontane_model::step::StepBounds;

use crate::config::LeaseConfig;
use crate::control::planner::Wishes;
use crate::control::state::{CoordinatorEntry, ModelEntry};

/// What a controller is told once.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// This coordinator.
    pub id: CoordinatorId,
    /// What it says of itself.
    pub entry: CoordinatorEntry,
    /// The model of its checkpoint.
    pub model: ModelEntry,
    /// Most replicas; absent: as many as fit.
    pub replicas: Option<u32>,
    /// What the planner is asked for.
    pub wishes: Wishes,
    /// Whether spare memory is filled with copies of weights.
    pub standbys: bool,
    /// Bounds of every replica's steps.
    pub steps: StepBounds,
    /// How long to wait for more workers before wishes are relaxed or the model is found not to fit, in milliseconds.
    pub settle_ms: u64,
    /// Heartbeat and lease.
    pub leases: LeaseConfig,
}
