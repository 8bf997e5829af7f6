//! The leader's decisions: who is a member, what is placed, what each worker is told.
//!
//! Pure: an event goes in, effects come out, time is an argument. No tokio, clock, randomness or I/O. Nothing is
//! decided from what a proposal was meant to do, only from the state: a leader that knows nothing yet and one that
//! lost an answer do the same.

mod event;
mod options;
mod view;

use std::collections::BTreeMap;

use tramontane_model::ids::{CoordinatorId, Fence};
use tramontane_model::time::Tick;

pub use event::{AskId, AskRefusal, Effect, Event, ProposalResult, SessionId};
pub use options::ControllerOptions;
pub use view::{
    DeviceView, GroupView, KvView, LoadView, NodeView, Progress, ReplicaView, StageView, StatusView,
};

use super::state::ClusterState;

/// The controller of one coordinator. It follows until it is told that it leads.
#[derive(Debug)]
pub struct Controller {
    options: ControllerOptions,
    leader: Option<CoordinatorId>,
}

impl Controller {
    /// A controller that follows and knows of no leader.
    pub fn new(options: ControllerOptions) -> Self {
        Self {
            options,
            leader: None,
        }
    }

    /// Takes an event and appends what is to be done. `state` is the newest state that was applied here; `now` never
    /// goes back.
    pub fn step(&mut self, now: Tick, state: &ClusterState, event: Event, effects: &mut Vec<Effect>) {
        let _ = (now, state, event, effects);
    }

    /// Whether this coordinator leads, as far as the controller was told.
    pub fn leads(&self) -> bool {
        self.leader == Some(self.options.id)
    }

    /// The cluster as this coordinator sees it. What workers reported is known to the leader only.
    pub fn status(&self, state: &ClusterState) -> StatusView {
        StatusView {
            model: state
                .model
                .as_ref()
                .map_or_else(String::new, |model| model.name.clone()),
            leader: self.leader.map(|id| id.0),
            term: 0,
            nodes: Vec::new(),
            replicas: Vec::new(),
            missing: None,
        }
    }

    /// How far the devices of each placement that loads are; empty if this coordinator does not lead.
    pub fn progress(&self, state: &ClusterState) -> BTreeMap<Fence, Progress> {
        let _ = state;
        BTreeMap::new()
    }
}
