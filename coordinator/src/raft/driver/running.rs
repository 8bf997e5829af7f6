//! The loop of raft's thread, and where the node's effects go.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tramontane_model::ids::CoordinatorId;

use super::{Driver, Dropped, Transport};
use crate::raft::handle::{Answer, Applied, AppliedState, Input};
use crate::raft::identity::ELECTION_TICKS;
use crate::raft::metrics;
use crate::raft::node::{
    Effects, Node, NodeError, Outbound, ProposeError, RaftStatus, ReadError, StepError, Ticket,
};
use crate::raft::state_machine::StateMachine;
use crate::raft::storage::Position;

/// Inputs that are taken before what they made ready is done.
const INPUTS_PER_READY: usize = 256;
/// Ticks between two warnings about messages that were refused.
const WARNING_TICKS: u64 = 100;
/// Ticks that a leader which is told to end waits for another to take over.
const HAND_OVER_TICKS: u64 = ELECTION_TICKS as u64;

pub(super) struct Running<S: StateMachine, T> {
    node: Node<S>,
    tick: Duration,
    ticks: u64,
    next_warning: u64,
    inbox: Receiver<Input<S>>,
    stop: Arc<AtomicBool>,
    status: watch::Sender<RaftStatus>,
    outlet: Outlet<S, T>,
}

impl<S: StateMachine, T: Transport> Running<S, T> {
    pub(super) fn new(driver: Driver<S>, transport: T) -> Self {
        Self {
            node: driver.node,
            tick: driver.tick,
            ticks: 0,
            next_warning: 0,
            inbox: driver.inbox,
            stop: driver.stop,
            status: driver.status,
            outlet: Outlet {
                transport,
                state: driver.state,
                proposals: HashMap::new(),
                reads: HashMap::new(),
                unreachable: BTreeSet::new(),
                unsent_snapshots: BTreeSet::new(),
            },
        }
    }

    pub(super) fn run(&mut self) -> Result<(), NodeError> {
        self.ready()?;
        let mut next_tick = Instant::now() + self.tick;
        while !self.stop.load(Ordering::Relaxed) {
            if !self.wait(next_tick)? {
                break;
            }
            next_tick = self.tick_if_due(next_tick);
            self.ready()?;
        }
        self.hand_over()?;
        self.node.shut_down(&mut self.outlet);
        Ok(())
    }

    /// Takes inputs until the next tick is due. Returns false when nobody is left to send any.
    fn wait(&mut self, until: Instant) -> Result<bool, NodeError> {
        let mut input = match self
            .inbox
            .recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
        };
        let mut left = INPUTS_PER_READY;
        while let Some(next) = input.take() {
            self.take(next)?;
            left -= 1;
            input = if left > 0 {
                self.inbox.try_recv().ok()
            } else {
                None
            };
        }
        Ok(true)
    }

    /// Ticks that a slow disk made late are not made up for: the heartbeats of that time wait in the inbox, and a
    /// burst of ticks would take the leader for dead before they are read.
    fn tick_if_due(&mut self, due: Instant) -> Instant {
        let now = Instant::now();
        if now < due {
            return due;
        }
        self.ticks += 1;
        self.node.tick();
        (due + self.tick).max(now)
    }

    fn take(&mut self, input: Input<S>) -> Result<(), NodeError> {
        match input {
            Input::Propose {
                entry,
                within,
                answer,
            } => {
                match self.node.propose(entry, self.ticks_in(within)) {
                    Ok(ticket) => drop(self.outlet.proposals.insert(ticket, answer)),
                    // Whoever asked may have gone.
                    Err(error) => drop(answer.send(Err(error))),
                }
            }
            Input::Read { within, answer } => match self.node.read(self.ticks_in(within)) {
                Ok(ticket) => drop(self.outlet.reads.insert(ticket, answer)),
                Err(error) => drop(answer.send(Err(error))),
            },
            Input::Message {
                from,
                bytes,
                _reserved,
            } => match self.node.step(from, &bytes) {
                Ok(()) => {}
                Err(StepError::Refused(refusal)) => {
                    metrics::refused("not_valid");
                    if self.ticks >= self.next_warning {
                        self.next_warning = self.ticks + WARNING_TICKS;
                        tracing::warn!("a raft message was refused: {refusal}");
                    }
                }
                Err(StepError::Fatal(error)) => return Err(error),
            },
            Input::HandOver => drop(self.node.hand_over()),
            Input::Unreachable(peer) => self.node.report_unreachable(peer),
            Input::SnapshotSent { to, sent } => self.node.report_snapshot(to, sent),
        }
        Ok(())
    }

    /// The ticks in a span of time, rounded up.
    fn ticks_in(&self, span: Duration) -> u64 {
        let ticks = span.as_nanos().div_ceil(self.tick.as_nanos().max(1));
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    fn ready(&mut self) -> Result<(), NodeError> {
        self.node.ready(&mut self.outlet)?;
        // Taken into account with the next input or tick; raft-rs sends again by itself.
        for peer in std::mem::take(&mut self.outlet.unreachable) {
            self.node.report_unreachable(peer);
        }
        for peer in std::mem::take(&mut self.outlet.unsent_snapshots) {
            self.node.report_snapshot(peer, false);
        }
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        let status = self.node.status();
        self.status.send_if_modified(|shown| {
            if *shown == status {
                return false;
            }
            if (shown.term, shown.leader) != (status.term, status.leader) {
                match status.leader {
                    Some(leader) => tracing::info!(term = status.term, %leader, "raft follows a leader"),
                    None => tracing::info!(term = status.term, "raft has no leader"),
                }
            }
            metrics::status(&status);
            *shown = status;
            true
        });
    }

    /// Gives the lead away before the end, so that the cluster does not have to notice the loss first.
    fn hand_over(&mut self) -> Result<(), NodeError> {
        if !self.node.hand_over() {
            return Ok(());
        }
        self.ready()?;
        let give_up = self.ticks + HAND_OVER_TICKS;
        let mut next_tick = Instant::now() + self.tick;
        while self.node.is_leader() && self.ticks < give_up {
            if !self.wait(next_tick)? {
                break;
            }
            next_tick = self.tick_if_due(next_tick);
            self.ready()?;
        }
        Ok(())
    }
}

/// Where the node's effects go.
struct Outlet<S: StateMachine, T> {
    transport: T,
    state: watch::Sender<AppliedState<S>>,
    /// Bounded by what the node lets wait, as are the reads.
    proposals: HashMap<Ticket, Answer<S::Outcome, ProposeError>>,
    reads: HashMap<Ticket, Answer<AppliedState<S>, ReadError>>,
    unreachable: BTreeSet<CoordinatorId>,
    unsent_snapshots: BTreeSet<CoordinatorId>,
}

impl<S: StateMachine, T: Transport> Effects<S> for Outlet<S, T> {
    fn send(&mut self, message: Outbound) {
        let (to, is_snapshot) = (message.to, message.is_snapshot);
        if self.transport.send(message) == Err(Dropped) {
            if is_snapshot {
                self.unsent_snapshots.insert(to);
            } else {
                self.unreachable.insert(to);
            }
        }
    }

    fn applied(&mut self, machine: &S, last: Position) {
        self.state.send_replace(Arc::new(Applied {
            last,
            view: machine.view(),
        }));
    }

    fn proposed(&mut self, ticket: Ticket, result: Result<S::Outcome, ProposeError>) {
        if let Some(answer) = self.proposals.remove(&ticket) {
            // Whoever asked may have gone.
            let _ = answer.send(result);
        }
    }

    fn read(&mut self, ticket: Ticket, result: Result<u64, ReadError>) {
        if let Some(answer) = self.reads.remove(&ticket) {
            let _ = answer.send(result.map(|_| self.state.borrow().clone()));
        }
    }
}
