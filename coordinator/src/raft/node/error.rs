//! Why a node cannot go on, why a proposal or a read did not succeed, why a message was refused.

use tramontane_model::ids::CoordinatorId;

use crate::raft::storage::StoreError;

/// The node must end: going on could break a promise. The process that hosts it ends with it.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The log failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// raft-rs refused its configuration or a call.
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
    /// The options contradict each other.
    #[error("raft options: {0}")]
    Options(String),
    /// A checkpoint, from the log or from the leader, is no state.
    #[error(
        "the checkpoint at entry {index} cannot be restored: {source}; all coordinators must run versions that read each other's state"
    )]
    Restore {
        /// Last entry that the checkpoint holds.
        index: u64,
        /// The state machine's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An entry that the state machine cannot read; skipping it would make members differ.
    #[error("entry {index} cannot be applied: {source}; use the version that wrote it")]
    Apply {
        /// The entry.
        index: u64,
        /// The state machine's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An entry of a kind that this version cannot apply; skipping it would make members differ.
    #[error("entry {index} is {kind}, which this version cannot apply; use the version that wrote it")]
    UnknownEntry {
        /// The entry.
        index: u64,
        /// What it is.
        kind: &'static str,
    },
    /// The leader counts on entries that this coordinator confirmed and no longer has.
    #[error(
        "leader {leader} counts on entry {confirmed}, which this coordinator had confirmed, but its log ends at {last}: the data directory was emptied or put back to an older state; remove this coordinator (tramontane cluster remove ID) and add it anew under an id never used before, with join = true and an empty directory"
    )]
    LogLost {
        /// Who leads.
        leader: CoordinatorId,
        /// An entry that was confirmed.
        confirmed: u64,
        /// The last entry there is.
        last: u64,
    },
}

/// What became of a proposal that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It was not proposed: only the leader may. Ask `leader`, if there is one.
    #[error("this coordinator does not lead{}", match .leader { Some(id) => format!("; coordinator {id} does"), None => ", and no leader is known; try again".to_owned() })]
    NotLeader {
        /// Who leads, as far as is known here.
        leader: Option<CoordinatorId>,
    },
    /// It was not proposed: it has no bytes.
    #[error("an empty proposal cannot be told from raft's own entries")]
    Empty,
    /// It was not proposed: it is too long.
    #[error("the proposal has {bytes} bytes, at most {limit} are taken")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// It was not proposed: too many proposals wait already. Try again later.
    #[error("too many proposals are waiting; try again later")]
    Busy,
    /// It did not happen: another leader's entry took its place.
    #[error("another leader took over before the proposal was committed; propose it again")]
    Dropped,
    /// It may still happen: the deadline passed first. The state machine must recognise a repetition.
    #[error("the proposal was not committed within its deadline; it may still be")]
    TimedOut,
    /// It may have happened: a checkpoint from a new leader leaped over its place in the log.
    #[error("another leader took over and whether the proposal was committed is not known here")]
    Unknown,
    /// It may still happen: this coordinator is going down.
    #[error("this coordinator is shutting down")]
    ShuttingDown,
}

/// Why a linearizable read was not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Too many reads wait already.
    #[error("too many reads are waiting; try again later")]
    Busy,
    /// No leader with a quorum confirmed it in time.
    #[error("no leader confirmed the read within its deadline")]
    TimedOut,
    /// This coordinator is going down.
    #[error("this coordinator is shutting down")]
    ShuttingDown,
}

/// A peer's message that was not taken; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Longer than any message of raft can be.
    #[error("the message has {bytes} bytes, at most {limit} are taken")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Not the encoding of a raft message, or more parts than one can have.
    #[error("the message cannot be decoded: {0}")]
    Malformed(String),
    /// It claims another sender than the one that delivered it.
    #[error("coordinator {from} delivered a message in the name of {claimed}")]
    Sender {
        /// Who delivered it.
        from: CoordinatorId,
        /// Whom it names.
        claimed: u64,
    },
    /// It is for somebody else.
    #[error("the message is for coordinator {to}, this is {id}")]
    Recipient {
        /// Whom it names.
        to: u64,
        /// This coordinator.
        id: CoordinatorId,
    },
    /// Its sender was removed.
    #[error("coordinator {from} was removed from this cluster")]
    Removed {
        /// Who delivered it.
        from: CoordinatorId,
    },
    /// No correct member sends this.
    #[error("coordinator {from} sent a message that no member may send: {detail}")]
    Forbidden {
        /// Who delivered it.
        from: CoordinatorId,
        /// What is wrong with it.
        detail: String,
    },
}

/// What came of delivering a message.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The message was not taken; the node goes on.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The node must end.
    #[error(transparent)]
    Fatal(#[from] NodeError),
}
