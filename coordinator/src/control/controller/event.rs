//! What the controller hears and what it wants done.

use tramontane_model::ids::{CoordinatorId, Fence, WorkerId};
use tramontane_model::members::{WorkerInfo, WorkerReport};
use tramontane_proto::Directive;

use crate::control::command::{Command, Outcome};
use crate::control::state::CoordinatorEntry;

/// Tells the sessions of one process apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Tells asks of one process apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// What operators change of who takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing is to lie on a worker any more.
    Drain {
        /// Which worker.
        worker: WorkerId,
        /// Even where no replica can be served without it.
        force: bool,
    },
    /// A worker that drains may be given work again.
    Undrain {
        /// Which worker.
        worker: WorkerId,
    },
    /// A coordinator is to take part in raft.
    AddCoordinator {
        /// Which coordinator.
        id: CoordinatorId,
        /// Where its peers and workers reach it, `host:port`.
        address: String,
    },
    /// A coordinator is to take part no more.
    RemoveCoordinator {
        /// Which coordinator.
        id: CoordinatorId,
    },
}

/// Why something was not done, or a session is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskRefusal {
    /// Only the leader does this.
    #[error("this coordinator does not lead{}", match .leader { Some(id) => format!("; coordinator {id} does"), None => ", and no leader is known: an election is on, or no majority of the coordinators can be reached; requests go on, changes wait; try again".to_owned() })]
    NotLeader {
        /// Who leads, as far as is known here.
        leader: Option<CoordinatorId>,
    },
    /// It does not agree with the state of the cluster.
    #[error("{0}")]
    Refused(String),
    /// Not now; trying again may help.
    #[error("{0}")]
    Unavailable(&'static str),
}

/// What became of a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposalResult {
    /// It was applied here, with this outcome. The state given with the event has it.
    Committed(Outcome),
    /// It did not happen and will not: not the leader, no room, too long, or another leader's entry took its place.
    Dropped {
        /// Why, for the log.
        reason: String,
    },
    /// It may have happened, or may still.
    Unknown,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// This coordinator leads.
    Leads {
        /// Its term.
        term: u64,
    },
    /// This coordinator does not lead.
    Follows {
        /// Who does, as far as is known.
        leader: Option<CoordinatorId>,
    },
    /// The state changed.
    StateChanged,
    /// A worker that was checked at the door asks to be let in. Answered by [`Effect::Admit`] or [`Effect::Refuse`].
    Joined {
        /// Its session.
        session: SessionId,
        /// What it says of itself.
        info: WorkerInfo,
    },
    /// A worker reported.
    Reported {
        /// On which session.
        session: SessionId,
        /// Which worker.
        worker: WorkerId,
        /// What it said.
        report: WorkerReport,
    },
    /// A session is over, whoever ended it.
    Ended {
        /// Which session.
        session: SessionId,
        /// Which worker.
        worker: WorkerId,
    },
    /// After the end of its session, nobody listens any more where a worker did.
    Gone {
        /// Which worker.
        worker: WorkerId,
        /// Which start of it.
        incarnation: u64,
    },
    /// A coordinator said what it is, this one included.
    CoordinatorSeen {
        /// Which coordinator.
        id: CoordinatorId,
        /// What it says of itself.
        entry: CoordinatorEntry,
    },
    /// Somebody wants everything planned anew. Answered by [`Effect::Answer`].
    Replan {
        /// Whom to answer.
        ask: AskId,
    },
    /// An operator changes who takes part. Answered by [`Effect::Changed`].
    Change {
        /// Whom to answer.
        ask: AskId,
        /// What is to be changed.
        change: Change,
    },
    /// What became of [`Effect::Propose`].
    Proposed {
        /// Which proposal.
        sequence: u64,
        /// What became of it.
        result: ProposalResult,
    },
    /// Time has passed; to be said at least once a heartbeat.
    Elapsed,
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Propose a command; the answer is [`Event::Proposed`]. To be handed to raft in the order of the sequences.
    Propose {
        /// Its sequence; strictly grows over the life of the controller, from 1.
        sequence: u64,
        /// The command.
        command: Command,
    },
    /// Let the worker of this session in. Its [`Directive::Welcome`] follows.
    Admit {
        /// Which session.
        session: SessionId,
    },
    /// Do not let it in; nothing more is said of this session.
    Refuse {
        /// Which session.
        session: SessionId,
        /// Why.
        error: AskRefusal,
    },
    /// Tell an admitted worker something.
    Direct {
        /// On which session.
        session: SessionId,
        /// What.
        directive: Directive,
    },
    /// End an admitted session; nothing more is said of it.
    EndSession {
        /// Which session.
        session: SessionId,
        /// Why.
        why: AskRefusal,
    },
    /// Answer an ask.
    Answer {
        /// Which ask.
        ask: AskId,
        /// The replica and its new generation.
        result: Result<Fence, AskRefusal>,
    },
    /// Answer [`Event::Change`]: the state says so now, or why it does not.
    Changed {
        /// Which ask.
        ask: AskId,
        /// What came of it.
        result: Result<(), AskRefusal>,
    },
}
