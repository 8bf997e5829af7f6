//! The replicated state as raft applies it, with everything that must hold of it checked once for each change.

use std::cell::RefCell;
use std::collections::BTreeSet;

use tramontane_coordinator::control::codec::CodecError;
use tramontane_coordinator::control::command::{Outcome, Proposal};
use tramontane_coordinator::control::footprint::ModelFootprint;
use tramontane_coordinator::control::state::{ClusterState, ReplicaEntry};
use tramontane_coordinator::raft::StateMachine;
use tramontane_model::ids::{DeviceRef, Fence};

use super::invariants::{Checked, Violation, copies, pl1, pl2, pl3, pl4, rf1};

/// What the world knows of the log of its cluster.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) log: rf1::Log,
    pub(super) violation: Option<Violation>,
    /// Devices that were ready for a placement at some time.
    pub(super) ready: BTreeSet<(DeviceRef, Fence)>,
    /// Somebody asked to plan anew.
    pub(super) asked: bool,
    model: Option<ModelFootprint>,
    /// Placements after a loss of which every device holds already what it computes with.
    pub(super) promoted: u64,
}

thread_local! {
    /// A world runs on one thread, and a state machine is made by raft alone.
    static HISTORY: RefCell<History> = RefCell::default();
}

pub(super) fn begin(model: ModelFootprint) {
    HISTORY.set(History {
        model: Some(model),
        ..History::default()
    });
}

pub(super) fn with<T>(look: impl FnOnce(&mut History) -> T) -> T {
    HISTORY.with_borrow_mut(look)
}

/// The cluster's state, watched.
#[derive(Debug, Default)]
pub(super) struct Machine(pub(super) ClusterState);

impl StateMachine for Machine {
    type Outcome = Outcome;
    type View = ();
    type Error = CodecError;

    fn apply(&mut self, entry: &[u8]) -> Result<Outcome, CodecError> {
        let number = self.0.commands + 1;
        let is_first = with(|history| {
            let applied = history.log.applied(number, entry);
            let is_first = applied.as_ref().is_ok_and(|first| *first);
            history.note(applied.map(|_| ()));
            is_first
        });
        let before = is_first.then(|| self.0.clone());
        let outcome = StateMachine::apply(&mut self.0, entry)?;
        if let Some(before) = before {
            let proposal = Proposal::decode(entry)?;
            with(|history| {
                let checked = history.check(&before, &proposal, &self.0);
                history.note(checked);
            });
        }
        Ok(outcome)
    }

    fn snapshot(&self) -> Result<Vec<u8>, CodecError> {
        StateMachine::snapshot(&self.0)
    }

    fn restore(bytes: &[u8]) -> Result<Self, CodecError> {
        <ClusterState as StateMachine>::restore(bytes).map(Self)
    }

    fn view(&self) {}
}

impl History {
    pub(super) fn note(&mut self, checked: Checked) {
        if let Err(violation) = checked {
            self.violation.get_or_insert(violation);
        }
    }

    fn check(&mut self, before: &ClusterState, proposal: &Proposal, after: &ClusterState) -> Checked {
        let Some(model) = &self.model else { return Ok(()) };
        self.promoted += u64::from(copies::is_promotion(before, &proposal.command, after));
        copies::check(model, before, after)?;
        for entry in after.replicas.values() {
            if let Some(placement) = entry.live()
                && before.replicas.get(&placement.id).and_then(ReplicaEntry::live) != Some(placement)
            {
                pl1::check(model, placement)?;
                pl2::check(model, after, placement)?;
            }
        }
        pl3::check(before, after, &self.ready)?;
        pl4::check(before, &proposal.command, after, self.asked)
    }
}
