//! What one step of the controller works with.

use tramontane_model::time::Tick;

use super::event::{AskRefusal, Effect, SessionId};
use super::options::ControllerOptions;
use crate::control::state::ClusterState;

/// One step.
pub(super) struct Turn<'a> {
    pub(super) now: Tick,
    /// The term in which this coordinator leads.
    pub(super) term: u64,
    pub(super) state: &'a ClusterState,
    pub(super) options: &'a ControllerOptions,
    pub(super) sequence: &'a mut u64,
    pub(super) effects: &'a mut Vec<Effect>,
}

impl Turn<'_> {
    pub(super) fn next_sequence(&mut self) -> u64 {
        *self.sequence = self.sequence.saturating_add(1);
        *self.sequence
    }

    pub(super) fn refuse(&mut self, session: SessionId, error: AskRefusal) {
        self.effects.push(Effect::Refuse { session, error });
    }

    pub(super) fn end(&mut self, session: SessionId, why: AskRefusal) {
        self.effects.push(Effect::EndSession { session, why });
    }

    pub(super) fn lease_ms(&self) -> u64 {
        self.options.leases.lease_ms.into()
    }

    pub(super) fn heartbeat_ms(&self) -> u64 {
        self.options.leases.heartbeat_ms.into()
    }
}
