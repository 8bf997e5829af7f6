//! What raft makes ready, and what becomes of it.

use std::collections::VecDeque;

use tramontane_coordinator::control::command::Outcome;
use tramontane_coordinator::control::controller::{Event, ProposalResult};
use tramontane_coordinator::raft::node::{Effects, Outbound, StepError, Ticket};
use tramontane_coordinator::raft::storage::Position;
use tramontane_coordinator::raft::{NodeError, ProposeError, ReadError, Role, StoreError};
use tramontane_model::ids::CoordinatorId;
use tramontane_sim::Disk;

use super::Running;
use super::leading::publish;
use crate::simulation::history::{self, Machine};
use crate::simulation::invariants::{Violation, ensure, rf2};
use crate::simulation::network::Proc;
use crate::simulation::world::{Happening, World};

/// What a node gave out during one call, each with the disk's syncs by then.
struct Outbox<'a> {
    disk: &'a Disk,
    sent: Vec<(Outbound, u64)>,
    applied: Vec<(Position, u64)>,
    proposed: Vec<(Ticket, Result<Outcome, ProposeError>, u64)>,
}

impl Effects<Machine> for Outbox<'_> {
    fn send(&mut self, message: Outbound) {
        self.sent.push((message, self.disk.syncs()));
    }
    fn applied(&mut self, _machine: &Machine, last: Position) {
        self.applied.push((last, self.disk.syncs()));
    }
    fn proposed(&mut self, ticket: Ticket, result: Result<Outcome, ProposeError>) {
        self.proposed.push((ticket, result, 0));
    }
    fn read(&mut self, _ticket: Ticket, _result: Result<u64, ReadError>) {}
}

/// What became of a proposal, as the program tells its controller.
pub(super) fn result(proposed: Result<Outcome, ProposeError>) -> ProposalResult {
    match proposed {
        Ok(outcome) => ProposalResult::Committed(outcome),
        Err(ProposeError::TimedOut | ProposeError::Unknown | ProposeError::ShuttingDown) => {
            ProposalResult::Unknown
        }
        Err(
            error @ (ProposeError::NotLeader { .. }
            | ProposeError::Empty
            | ProposeError::TooLarge { .. }
            | ProposeError::Busy
            | ProposeError::Dropped),
        ) => ProposalResult::Dropped {
            reason: error.to_string(),
        },
    }
}

impl World {
    /// What raft has made ready. Says whether the disk took it.
    pub(super) fn drive(&mut self, id: u64, running: &mut Running, events: &mut VecDeque<Event>) -> bool {
        let disk = self.coordinators[&id].disk.clone();
        let mut outbox = Outbox {
            disk: &disk,
            sent: Vec::new(),
            applied: Vec::new(),
            proposed: Vec::new(),
        };
        running.durable.syncs = disk.syncs();
        let ready = running.node.ready(&mut outbox);
        let Outbox {
            sent,
            applied,
            proposed,
            ..
        } = outbox;
        let durable = running.durable;
        for (message, syncs) in sent {
            self.check(rf2::check_sent(durable, &message, syncs));
            self.coverage.checkpoints_sent += u64::from(message.is_snapshot);
            for at in self.net.datagram(self.now, &mut self.rng) {
                let happening = Happening::Raft {
                    from: id,
                    to: message.to.0,
                    is_snapshot: message.is_snapshot,
                    bytes: message.bytes.clone(),
                };
                self.at(at, happening);
            }
        }
        for (last, syncs) in &applied {
            self.check(rf2::check_applied(durable, last.index, *syncs));
        }
        let changes = running.node.machine().0.commands;
        if proposed.iter().any(|(_, result, _)| result.is_ok()) {
            history::with(|history| history.log.acknowledged(changes));
        }
        match ready {
            Ok(()) => {}
            Err(NodeError::Store(StoreError::Write { .. })) => {
                self.coverage.torn += 1;
                return false;
            }
            Err(error) => {
                let what = format!("coordinator {id} cannot go on: {error}");
                self.check(Err(Violation { rule: "RF-1", what }));
            }
        }
        let status = running.node.status();
        running.durable.last = status.last_index;
        running.durable.term = status.term;
        self.follow(id, running, events);
        if !applied.is_empty() {
            events.push_back(Event::StateChanged);
            publish(running);
        }
        for (ticket, proposed, _) in proposed {
            if let Some(sequence) = running.tickets.remove(&ticket) {
                let result = result(proposed);
                events.push_back(Event::Proposed { sequence, result });
            }
        }
        true
    }

    /// Tells the controller who leads, if that has changed.
    pub(super) fn follow(&mut self, id: u64, running: &mut Running, events: &mut VecDeque<Event>) {
        let status = running.node.status();
        let known = match status.role {
            Role::Leader => (Some(status.term), None),
            Role::Follower | Role::Candidate | Role::PreCandidate => {
                (None, status.leader.filter(|leader| *leader != status.id))
            }
        };
        if running.known.replace(known) == Some(known) {
            return;
        }
        let now = self.now;
        match known {
            (Some(term), _) => {
                running.leads_since = now;
                running.heard.clear();
                let checked = history::with(|history| history.log.leads(term, id));
                self.check(checked);
                self.trace
                    .add(now, || format!("coordinator {id} leads in term {term}"));
                events.push_back(Event::Leads { term });
            }
            (None, leader) => events.push_back(Event::Follows { leader }),
        }
    }

    pub(in super::super) fn raft_message(&mut self, from: u64, to: u64, is_snapshot: bool, bytes: &[u8]) {
        let lost = self.net.is_cut(Proc::Coordinator(from), Proc::Coordinator(to));
        if is_snapshot && self.rng.chance(70) && !self.frozen.contains_key(&Proc::Coordinator(from)) {
            let sent = !lost && self.rng.chance(80);
            self.with_coordinator(from, |_, running| {
                running.node.report_snapshot(CoordinatorId(to), sent);
                Vec::new()
            });
        }
        if lost {
            return;
        }
        if self.coordinators[&to].up.is_none() {
            if self.frozen.contains_key(&Proc::Coordinator(from)) {
                return;
            }
            return self.with_coordinator(from, |_, running| {
                running.node.report_unreachable(CoordinatorId(to));
                Vec::new()
            });
        }
        self.with_coordinator(to, |world, running| {
            let (what, fatal) = match running.node.step(CoordinatorId(from), bytes) {
                Ok(()) => return Vec::new(),
                Err(StepError::Refused(error)) => (error.to_string(), false),
                Err(StepError::Fatal(error)) => (error.to_string(), true),
            };
            let checked = ensure("RF-1", false, || {
                format!("coordinator {to} took a message of {from} badly (fatal: {fatal}): {what}")
            });
            world.check(checked);
            Vec::new()
        });
    }
}
