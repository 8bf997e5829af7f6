//! What a node tells of itself.

use raft::{ProgressState, StateRole};
use tramontane_model::ids::CoordinatorId;

use super::Node;
use crate::raft::state_machine::StateMachine;

/// A member's part in the current term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it could win an election.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

impl Role {
    /// The role's name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
        }
    }
}

/// How a leader sends to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// One message at a time, to find where the peer's log ends.
    Probe,
    /// A stream of entries.
    Replicate,
    /// A checkpoint is on its way.
    Snapshot,
}

/// What a leader knows of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// The peer.
    pub id: CoordinatorId,
    /// The last entry that it confirmed.
    pub matched: u64,
    /// How it is sent to.
    pub replication: Replication,
    /// It was heard from within the last election timeout.
    pub recently_active: bool,
}

/// A node's state at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// This member.
    pub id: CoordinatorId,
    /// The latest term it knows.
    pub term: u64,
    /// Its part in that term.
    pub role: Role,
    /// Who leads, as far as it knows.
    pub leader: Option<CoordinatorId>,
    /// The last entry known to be committed.
    pub commit: u64,
    /// The last entry in its state.
    pub applied: u64,
    /// The first entry in its log.
    pub first_index: u64,
    /// The last entry in its log.
    pub last_index: u64,
    /// The last entry in its checkpoint.
    pub checkpoint_index: u64,
    /// The members, in ascending order.
    pub members: Vec<CoordinatorId>,
    /// Those of them that vote, in ascending order: in a joint state, those that are to.
    pub voters: Vec<CoordinatorId>,
    /// The votes are being changed.
    pub joint: bool,
    /// The other members, if it leads.
    pub peers: Vec<PeerProgress>,
}

impl<S: StateMachine> Node<S> {
    /// The node's state now.
    pub fn status(&self) -> RaftStatus {
        let (raft, store) = (&self.raw.raft, self.raw.store());
        let mut members: Vec<_> = raft.prs().iter().map(|(id, _)| CoordinatorId(*id)).collect();
        members.sort_unstable();
        let conf = self.conf_state();
        let mut peers = Vec::new();
        if self.is_leader() {
            let others = raft.prs().iter().filter(|(id, _)| **id != self.id.0);
            peers.extend(others.map(|(id, progress)| PeerProgress {
                id: CoordinatorId(*id),
                matched: progress.matched,
                replication: match progress.state {
                    ProgressState::Probe => Replication::Probe,
                    ProgressState::Replicate => Replication::Replicate,
                    ProgressState::Snapshot => Replication::Snapshot,
                },
                recently_active: self.is_active(*id),
            }));
            peers.sort_unstable_by_key(|peer| peer.id);
        }
        RaftStatus {
            id: self.id,
            term: raft.term,
            role: match raft.state {
                StateRole::Follower => Role::Follower,
                StateRole::PreCandidate => Role::PreCandidate,
                StateRole::Candidate => Role::Candidate,
                StateRole::Leader => Role::Leader,
            },
            leader: self.leader(),
            commit: raft.raft_log.committed,
            applied: self.applied.index,
            first_index: store.first(),
            last_index: raft.raft_log.last_index(),
            checkpoint_index: store.checkpoint_index(),
            members,
            voters: conf.voters.iter().map(|&id| CoordinatorId(id)).collect(),
            joint: !conf.voters_outgoing.is_empty(),
            peers,
        }
    }
}
