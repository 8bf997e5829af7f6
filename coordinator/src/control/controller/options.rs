//! What a controller is told once.

use tramontane_model::ids::CoordinatorId;

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
    /// What the planner is asked for.
    pub wishes: Wishes,
    /// How long to wait for more workers before wishes are relaxed or the model is found not to fit, in milliseconds.
    pub settle_ms: u64,
    /// Heartbeat and lease.
    pub leases: LeaseConfig,
}
