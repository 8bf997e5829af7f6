//! The raft node as pure code: messages, ticks and proposals in; messages, answers and applied states out.
//!
//! No tokio, no clock, no randomness and no threads: time is counted in ticks by the caller, and whoever calls
//! decides when. The log is the only thing it touches, through [`LogStore`]. What happens to a message on its way
//! is not known here; the caller reports what it learns.
//!
//! **Invariant RF-1:** a proposal is answered with its outcome only once its entry is durable on a majority.
//! **Invariant RF-2:** no entry is applied, and nothing is promised to a peer, before it is durable here.

mod error;
mod inbound;
mod membership;
mod options;
mod proposals;
mod reads;
mod ready;
mod status;
mod step;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use raft::eraftpb::Snapshot;
use raft::{Config, RawNode, ReadOnlyOption, SnapshotStatus, StateRole, Storage};
use tramontane_model::ids::CoordinatorId;

pub use self::error::{NodeError, ProposeError, ReadError, Refusal, StepError};
pub use self::membership::{check_add, check_remove};
pub use self::options::NodeOptions;
pub use self::status::{PeerProgress, RaftStatus, Replication, Role};

use self::proposals::{Fate, Proposals};
use self::reads::Reads;
use super::identity::{ELECTION_TICKS, HEARTBEAT_TICKS, Identity};
use super::logger;
use super::state_machine::StateMachine;
use super::storage::{LogStore, Position};

/// Longest proposal, in bytes.
pub const MAX_PROPOSAL_BYTES: usize = 4 << 20;
/// Longest state that can be sent to a peer, in bytes.
pub const MAX_STATE_BYTES: usize = 64 << 20;
/// Longest message between members, in bytes: a state with what describes it.
pub const MAX_MESSAGE_BYTES: usize = MAX_STATE_BYTES + (1 << 20);
/// Entries that one message carries, in bytes.
const MAX_APPEND_BYTES: u64 = 4 << 20;
/// Entries that a leader holds uncommitted, in bytes.
const MAX_UNCOMMITTED_BYTES: u64 = 32 << 20;
/// Entries that are applied at a time, in bytes.
const MAX_APPLY_BYTES: u64 = 4 << 20;
/// Unanswered appends on their way to one peer.
const MAX_INFLIGHT_APPENDS: usize = 64;
/// Ticks after which a checkpoint on its way counts as lost.
const SNAPSHOT_TICKS: u64 = 10 * ELECTION_TICKS as u64;
const _: () = assert!(MAX_PROPOSAL_BYTES as u64 <= MAX_APPEND_BYTES);
const _: () = assert!(4 * MAX_APPEND_BYTES <= MAX_MESSAGE_BYTES as u64);
const _: () = assert!(proposals::MAX_WAITING_BYTES as u64 <= MAX_UNCOMMITTED_BYTES);

/// Names a proposal or a read until it is answered; never used twice by one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A message for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// Whom it is for.
    pub to: CoordinatorId,
    /// It carries a checkpoint, so that its fate must be told to [`Node::report_snapshot`].
    pub is_snapshot: bool,
    /// raft-rs's encoding.
    pub bytes: Vec<u8>,
}

/// Takes what a node gives out, in the order in which it must happen.
pub trait Effects<S: StateMachine> {
    /// Send this, best effort.
    fn send(&mut self, message: Outbound);
    /// The state changed; `last` is the last entry in it.
    fn applied(&mut self, machine: &S, last: Position);
    /// A proposal is decided. Called after [`Effects::applied`] for the state it led to.
    fn proposed(&mut self, ticket: Ticket, result: Result<S::Outcome, ProposeError>);
    /// A read may go on, at a state that holds at least the entry given; or it failed.
    fn read(&mut self, ticket: Ticket, result: Result<u64, ReadError>);
}

/// One member of the cluster.
pub struct Node<S: StateMachine> {
    raw: RawNode<LogStore>,
    id: CoordinatorId,
    options: NodeOptions,
    machine: S,
    /// The last entry that `machine` holds.
    applied: Position,
    now: u64,
    last_ticket: u64,
    proposals: Proposals,
    /// Proposals that failed outside [`Node::ready`].
    failed: Vec<Fate>,
    reads: Reads,
    /// The entry at which no checkpoint could be made.
    checkpoint_failed: u64,
    /// Checkpoints on their way, by peer, with the tick they were sent at.
    snapshots: BTreeMap<u64, u64>,
    /// When each peer was last heard from, in ticks.
    heard: BTreeMap<u64, u64>,
    /// The members changed since the last checkpoint, which those that were added cannot use.
    members_changed: bool,
}

impl<S: StateMachine> Node<S> {
    /// Starts from the log: from its checkpoint, or from `initial` if there is none yet. The entries that
    /// are known to be committed are applied by the first [`Node::ready`].
    pub fn new(
        store: LogStore,
        identity: &Identity,
        options: NodeOptions,
        initial: S,
    ) -> Result<Self, NodeError> {
        options.check()?;
        let index = store.checkpoint_index();
        let machine = if index == 0 {
            initial
        } else {
            restore(store.checkpoint())?
        };
        let applied = Position {
            index,
            term: store.term(index)?,
        };
        let config = Config {
            id: identity.id().0,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: index,
            max_size_per_msg: MAX_APPEND_BYTES,
            max_inflight_msgs: MAX_INFLIGHT_APPENDS,
            check_quorum: true,
            pre_vote: true,
            // A range of one value: raft-rs would draw the timeout from a generator that cannot be seeded.
            min_election_tick: options.election_timeout_ticks,
            max_election_tick: options.election_timeout_ticks + 1,
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
            max_committed_size_per_ready: MAX_APPLY_BYTES,
            ..Config::default()
        };
        let reads = Reads::new(store.starts());
        let alone = store.conf_state().voters == [identity.id().0];
        let mut raw = RawNode::new(&config, store, &logger::tracing_logger())?;
        if alone {
            // Nobody else can lead, so there is nothing to wait for.
            raw.campaign()?;
        }
        Ok(Self {
            raw,
            id: identity.id(),
            options,
            machine,
            applied,
            now: 0,
            last_ticket: 0,
            proposals: Proposals::default(),
            failed: Vec::new(),
            reads,
            checkpoint_failed: 0,
            snapshots: BTreeMap::new(),
            heard: BTreeMap::new(),
            members_changed: false,
        })
    }

    /// Lets one tick pass. Call [`Node::ready`] afterwards, as after every other call.
    pub fn tick(&mut self) {
        self.now += 1;
        self.raw.tick();
        self.failed.extend(self.proposals.expire(self.now));
        let now = self.now;
        let lost: Vec<u64> = self
            .snapshots
            .iter()
            .filter(|(_, sent)| now >= **sent + SNAPSHOT_TICKS)
            .map(|(p, _)| *p)
            .collect();
        for peer in lost {
            self.report_snapshot(CoordinatorId(peer), false);
        }
        self.follow_membership();
    }

    /// Proposes an entry; only the leader can. The answer comes through [`Effects::proposed`] within
    /// `deadline_ticks`.
    pub fn propose(&mut self, entry: Vec<u8>, deadline_ticks: u64) -> Result<Ticket, ProposeError> {
        let bytes = entry.len();
        if bytes == 0 {
            return Err(ProposeError::Empty);
        }
        if bytes > MAX_PROPOSAL_BYTES {
            return Err(ProposeError::TooLarge {
                bytes,
                limit: MAX_PROPOSAL_BYTES,
            });
        }
        // raft-rs would pass a follower's proposal on and never tell what became of it.
        if self.raw.raft.state != StateRole::Leader {
            return Err(ProposeError::NotLeader {
                leader: self.leader(),
            });
        }
        if !self.proposals.has_room(bytes) {
            return Err(ProposeError::Busy);
        }
        // Refused while too much is uncommitted or the lead is being handed over.
        self.raw
            .propose(Vec::new(), entry)
            .map_err(|_| ProposeError::Busy)?;
        let place = (self.raw.raft.raft_log.last_index(), self.raw.raft.term);
        let ticket = self.next_ticket();
        let deadline = self.now.saturating_add(deadline_ticks);
        self.failed
            .extend(self.proposals.wait(ticket, place, bytes, deadline));
        Ok(ticket)
    }

    /// Asks that everything committed anywhere by now be applied here. The answer comes through
    /// [`Effects::read`] within `deadline_ticks`; any member may ask.
    pub fn read(&mut self, deadline_ticks: u64) -> Result<Ticket, ReadError> {
        let ticket = self.next_ticket();
        self.reads.add(ticket, self.now.saturating_add(deadline_ticks))?;
        Ok(ticket)
    }

    /// A message to this peer could not be sent.
    pub fn report_unreachable(&mut self, peer: CoordinatorId) {
        self.raw.report_unreachable(peer.0);
    }

    /// The checkpoint on its way to this peer was sent, or was not.
    pub fn report_snapshot(&mut self, peer: CoordinatorId, sent: bool) {
        if self.snapshots.remove(&peer.0).is_some() {
            let status = if sent {
                SnapshotStatus::Finish
            } else {
                SnapshotStatus::Failure
            };
            self.raw.report_snapshot(peer.0, status);
        }
    }

    /// Hands the lead, if it is here, to the voter that has most of the log, so that going down costs the cluster
    /// no election timeout. Returns whether there was anything to hand over and anyone to take it.
    pub fn hand_over(&mut self) -> bool {
        if self.raw.raft.state != StateRole::Leader {
            return false;
        }
        let id = self.id.0;
        let voters = self.conf_state().voters;
        let progress = self.raw.raft.prs().iter();
        let peers = progress.filter(|(peer, _)| {
            let peer = **peer;
            let stays = !self.machine.is_removed(CoordinatorId(peer));
            peer != id && voters.contains(&peer) && self.is_active(peer) && stays
        });
        let Some((_, peer)) = peers.map(|(peer, progress)| (progress.matched, *peer)).max() else {
            return false;
        };
        self.raw.transfer_leader(peer);
        true
    }

    /// Fails everything that waits, because this coordinator goes down.
    pub fn shut_down(&mut self, effects: &mut impl Effects<S>) {
        self.failed.extend(self.proposals.shut_down());
        self.answer_failed(effects);
        for ticket in self.reads.shut_down() {
            effects.read(ticket, Err(ReadError::ShuttingDown));
        }
    }

    /// The state as applied so far.
    pub fn machine(&self) -> &S {
        &self.machine
    }

    /// The last entry that the state holds.
    pub fn applied(&self) -> Position {
        self.applied
    }

    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn leader(&self) -> Option<CoordinatorId> {
        match self.raw.raft.leader_id {
            raft::INVALID_ID => None,
            id => Some(CoordinatorId(id)),
        }
    }

    fn next_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }
}

/// The state that a checkpoint holds.
fn restore<S: StateMachine>(checkpoint: &Snapshot) -> Result<S, NodeError> {
    S::restore(&checkpoint.data).map_err(|source| NodeError::Restore {
        index: checkpoint.get_metadata().index,
        source: Box::new(source),
    })
}
