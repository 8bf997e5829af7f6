//! The leader's decisions: who is a member, what is placed, what each worker is told.
//!
//! Pure: an event goes in, effects come out, time is an argument. No tokio, clock, randomness or I/O. Nothing is
//! decided from what a proposal was meant to do, only from the state: a leader that knows nothing yet and one that
//! lost an answer do the same.

mod changes;
mod directing;
mod draining;
mod event;
mod failures;
mod leader;
mod members;
mod options;
mod placing;
mod plans;
mod proposals;
mod standbys;
mod status;
#[cfg(test)]
mod tests;
mod turn;
mod view;
mod watching;

use std::collections::BTreeMap;

use tramontane_model::ids::{CoordinatorId, Fence};
use tramontane_model::members::DeviceState;
use tramontane_model::time::Tick;

pub use event::{AskId, AskRefusal, Change, Effect, Event, ProposalResult, SessionId};
pub use options::ControllerOptions;
pub use view::{
    DeviceView, GroupView, KvView, LoadView, LossView, MemberView, NodeView, Progress, ReplicaView,
    StageView, StatusView,
};

use self::leader::Leader;
use self::turn::Turn;
use super::limits::MAX_COORDINATORS;
use super::state::{ClusterState, CoordinatorEntry, Phase};

/// What coordinators said of themselves.
type Seen = BTreeMap<CoordinatorId, CoordinatorEntry>;

#[derive(Debug)]
enum Role {
    Following { leader: Option<CoordinatorId> },
    Leading(Box<Leader>),
}

/// The controller of one coordinator. It follows until it is told that it leads.
#[derive(Debug)]
pub struct Controller {
    options: ControllerOptions,
    role: Role,
    sequence: u64,
    seen: Seen,
}

impl Controller {
    /// A controller that follows and knows of no leader.
    pub fn new(options: ControllerOptions) -> Self {
        let seen = BTreeMap::from([(options.id, options.entry.clone())]);
        Self {
            options,
            role: Role::Following { leader: None },
            sequence: 0,
            seen,
        }
    }

    /// Takes an event and appends what is to be done. `state` is the newest state that was applied here; `now` never
    /// goes back.
    pub fn step(&mut self, now: Tick, state: &ClusterState, event: Event, effects: &mut Vec<Effect>) {
        let event = match event {
            Event::Leads { term } => {
                if self.term() != Some(term) {
                    self.follow(None, effects);
                    self.role = Role::Leading(Box::new(Leader::new(now, term)));
                }
                Event::StateChanged
            }
            Event::Follows { leader } => return self.follow(leader, effects),
            Event::CoordinatorSeen { id, entry } => {
                if self.seen.len() < MAX_COORDINATORS || self.seen.contains_key(&id) {
                    self.seen.insert(id, entry);
                }
                Event::StateChanged
            }
            other @ (Event::StateChanged
            | Event::Joined { .. }
            | Event::Reported { .. }
            | Event::Ended { .. }
            | Event::Gone { .. }
            | Event::Replan { .. }
            | Event::Change { .. }
            | Event::Proposed { .. }
            | Event::Elapsed) => other,
        };
        let leader = match &mut self.role {
            Role::Following { leader } => return refuse(*leader, event, effects),
            Role::Leading(leader) => leader,
        };
        let mut turn = Turn {
            now,
            term: leader.term,
            state,
            options: &self.options,
            sequence: &mut self.sequence,
            effects,
        };
        match event {
            Event::Joined { session, info } => leader.members.join(&mut turn, session, info),
            Event::Reported {
                session,
                worker,
                report,
            } => leader.members.reported(&turn, session, &worker, report),
            Event::Ended { session, worker } => leader.members.ended(&turn, session, &worker),
            Event::Gone { worker, incarnation } => leader.members.gone(&turn, &worker, incarnation),
            Event::Replan { ask } => leader.ask(&mut turn, ask),
            Event::Change { ask, change } => leader.changes.ask(&mut turn, ask, change),
            Event::Proposed { sequence, result } => leader.proposed(&mut turn, sequence, &result),
            Event::Leads { .. }
            | Event::Follows { .. }
            | Event::CoordinatorSeen { .. }
            | Event::StateChanged
            | Event::Elapsed => {}
        }
        leader.act(&mut turn, &self.seen);
    }

    fn follow(&mut self, leader: Option<CoordinatorId>, effects: &mut Vec<Effect>) {
        match std::mem::replace(&mut self.role, Role::Following { leader }) {
            Role::Following { .. } => {}
            Role::Leading(leading) => leading.dismiss(leader, effects),
        }
    }

    fn term(&self) -> Option<u64> {
        match &self.role {
            Role::Following { .. } => None,
            Role::Leading(leader) => Some(leader.term),
        }
    }

    /// Whether this coordinator leads, as far as the controller was told.
    pub fn leads(&self) -> bool {
        self.term().is_some()
    }

    /// How far the devices of each placement that loads are; empty if this coordinator does not lead.
    pub fn progress(&self, state: &ClusterState) -> BTreeMap<Fence, Progress> {
        let Role::Leading(leader) = &self.role else {
            return BTreeMap::new();
        };
        let loading = state.replicas.values().filter_map(|entry| match &entry.phase {
            Phase::Loading { placement } => Some(placement),
            Phase::Serving { .. } | Phase::Broken { .. } | Phase::Unplaceable { .. } => None,
        });
        loading
            .map(|placement| (placement.fence(), leader.progress(placement)))
            .collect()
    }
}

/// What a follower says.
fn refuse(leader: Option<CoordinatorId>, event: Event, effects: &mut Vec<Effect>) {
    let error = AskRefusal::NotLeader { leader };
    match event {
        Event::Joined { session, .. } => effects.push(Effect::Refuse { session, error }),
        Event::Replan { ask } => {
            let result = Err(error);
            effects.push(Effect::Answer { ask, result });
        }
        Event::Change { ask, .. } => {
            let result = Err(error);
            effects.push(Effect::Changed { ask, result });
        }
        Event::Leads { .. }
        | Event::Follows { .. }
        | Event::StateChanged
        | Event::Reported { .. }
        | Event::Ended { .. }
        | Event::Gone { .. }
        | Event::CoordinatorSeen { .. }
        | Event::Proposed { .. }
        | Event::Elapsed => {}
    }
}
