//! What a leader knows beyond the state, and its turn.
//!
//! Built anew with each term; nothing of it is kept when another leads.

use tramontane_model::ids::{CoordinatorId, Fence};
use tramontane_model::members::LoadReport;
use tramontane_model::placement::Replica;
use tramontane_model::time::Tick;

use super::changes::Changes;
use super::directing::direct;
use super::draining::answer_leavers;
use super::event::{AskId, AskRefusal, Effect, ProposalResult};
use super::members::Members;
use super::placing::{Around, Placing};
use super::proposals::{Proposals, Purpose};
use super::turn::Turn;
use super::view::Progress;
use super::{DeviceState, Seen};
use crate::control::command::{Command, Outcome, Refusal};

/// A leader.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) term: u64,
    pub(super) members: Members,
    pub(super) placing: Placing,
    pub(super) changes: Changes,
    proposals: Proposals,
}

impl Leader {
    pub(super) fn new(now: Tick, term: u64) -> Self {
        Self {
            term,
            members: Members::new(now),
            placing: Placing::default(),
            changes: Changes::default(),
            proposals: Proposals::default(),
        }
    }

    pub(super) fn ask(&mut self, turn: &mut Turn<'_>, ask: AskId) {
        self.placing.ask(turn, ask);
    }

    pub(super) fn proposed(&mut self, turn: &mut Turn<'_>, sequence: u64, result: &ProposalResult) {
        if let Some(purpose) = self.proposals.answered(sequence) {
            self.answered(turn, purpose, result);
        }
    }

    /// Goes on after a proposal. What was refused or did not get through is tried again a heartbeat later, if the state
    /// still asks for it; what was planned on an older placement map is planned again at once.
    fn answered(&mut self, turn: &mut Turn<'_>, purpose: Purpose, result: &ProposalResult) {
        if let Purpose::Join(session) = purpose {
            self.members.answered(turn, session, result);
            return;
        }
        if let Purpose::Change(ask) = purpose {
            self.changes.answered(ask, result);
        }
        let at_once = match result {
            ProposalResult::Committed(Outcome::Applied | Outcome::Refused(Refusal::Version { .. })) => true,
            ProposalResult::Committed(Outcome::Duplicate | Outcome::Refused(_))
            | ProposalResult::Dropped { .. }
            | ProposalResult::Unknown => false,
        };
        if !at_once {
            let until = turn.now.after_ms(turn.heartbeat_ms());
            self.proposals.pause(purpose, until);
        }
    }

    /// Does what the state and what is known ask for.
    pub(super) fn act(&mut self, turn: &mut Turn<'_>, seen: &Seen) {
        for purpose in self.proposals.expire(turn.now) {
            self.answered(turn, purpose, &ProposalResult::Unknown);
        }
        self.members.follow_state(turn);
        self.describe(turn, seen);
        self.members.expire(turn, &mut self.proposals);
        let mut around = Around {
            members: &self.members,
            proposals: &mut self.proposals,
        };
        self.placing.follow_state(turn);
        self.changes.act(turn, &mut self.placing, &mut around);
        let leavers = answer_leavers(turn, &mut self.placing, &mut around);
        self.placing.act(turn, &mut around);
        self.members.tell_leavers(turn, leavers);
        self.members.let_in(turn, &mut self.proposals);
        direct(turn, &mut self.members);
    }

    /// Proposes the model and the coordinators that the state does not have as they are.
    fn describe(&mut self, turn: &mut Turn<'_>, seen: &Seen) {
        let model = &turn.options.model;
        if turn.state.model.as_ref() != Some(model) {
            let command = Command::ModelDescribed { model: model.clone() };
            self.proposals.propose(turn, Purpose::Model, command);
        }
        let seen = seen.iter().filter(|(id, _)| !turn.state.is_removed(**id));
        for (&coordinator, entry) in seen {
            if turn.state.coordinators.get(&coordinator) != Some(entry) {
                let entry = entry.clone();
                let command = Command::CoordinatorStarted { coordinator, entry };
                self.proposals
                    .propose(turn, Purpose::Coordinator(coordinator), command);
            }
        }
    }

    /// Ends everything: somebody else leads.
    pub(super) fn dismiss(self, leader: Option<CoordinatorId>, effects: &mut Vec<Effect>) {
        let why = AskRefusal::NotLeader { leader };
        self.members.dismiss(effects, &why);
        self.placing.dismiss(effects, &why);
        self.changes.dismiss(effects, &why);
    }

    /// How far the devices of a placement are.
    pub(super) fn progress(&self, placement: &Replica) -> Progress {
        let fence: Fence = placement.fence();
        let mut progress = Progress {
            seconds_left: Some(0),
            ..Progress::default()
        };
        for device in placement.devices() {
            let report = self.members.report(&device.worker);
            let report =
                report.and_then(|report| report.devices.iter().find(|one| one.index == device.device));
            let report = report.filter(|report| report.state.fence() == Some(fence));
            let load = match report.map(|report| &report.state) {
                Some(DeviceState::Loading { load, .. }) => *load,
                Some(DeviceState::Ready { .. }) => {
                    let held = report.map_or(0, |report| report.held_bytes);
                    LoadReport {
                        loaded_bytes: held,
                        total_bytes: held,
                        bytes_per_second: 0,
                    }
                }
                // One that has not begun takes no one knows how long.
                Some(DeviceState::Idle | DeviceState::Failed { .. }) | None => LoadReport::default(),
            };
            progress.loaded_bytes = progress.loaded_bytes.saturating_add(load.loaded_bytes);
            progress.total_bytes = progress.total_bytes.saturating_add(load.total_bytes);
            progress.bytes_per_second = progress.bytes_per_second.saturating_add(load.bytes_per_second);
            let lefts = progress.seconds_left.zip(load.seconds_left());
            progress.seconds_left = lefts.map(|(others, own)| others.max(own));
        }
        progress
    }
}
