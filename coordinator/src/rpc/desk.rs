//! What the services ask of the one task that owns the controller, and how its answers come back.
//!
//! Two bounded queues, one for workers' sessions and one for everything else, so that neither can fill up the other.
//! Nothing is decided here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::error::{SendTimeoutError, TrySendError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tramontane_model::ids::{CoordinatorId, Fence, WorkerId};
use tramontane_model::members::{SchedulerLoad, WorkerInfo, WorkerReport};
use tramontane_proto::{Directive, v1 as pb};

pub use crate::control::controller::{AskRefusal as AskError, Change, SessionId};
use crate::control::state::CoordinatorEntry;

/// Session events that wait for the task.
const MAX_SESSION_EVENTS: usize = 1024;
/// Asks that wait for the task.
const MAX_ASKS: usize = 256;
/// Longest wait for room in a queue.
const QUEUE_DEADLINE: Duration = Duration::from_secs(5);
/// Directives that wait for one worker; what a worker needs is said in far fewer.
const MAX_DIRECTIVES: usize = 64;

/// What happens on sessions.
#[derive(Debug)]
pub enum SessionEvent {
    /// A worker with the right token asks to be let in.
    Joined {
        /// What it says of itself.
        info: WorkerInfo,
        /// Its session; the first directive on it is the welcome.
        session: Session,
        /// Whether it is let in.
        answer: oneshot::Sender<Result<(), AskError>>,
    },
    /// A worker reported.
    Reported {
        /// Which session.
        session: SessionId,
        /// Which worker.
        worker: WorkerId,
        /// What it said.
        report: WorkerReport,
    },
    /// A session is over.
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
}

/// What else is asked of the leader.
#[derive(Debug)]
pub enum Ask {
    /// The cluster as the leader sees it, as JSON.
    Status {
        /// The coordinator that asks.
        id: CoordinatorId,
        /// What it says of itself.
        entry: CoordinatorEntry,
        /// The answer.
        answer: oneshot::Sender<Result<Bytes, AskError>>,
    },
    /// What the schedulers of replicas that serve are doing.
    Loads {
        /// The answer.
        answer: oneshot::Sender<Result<Vec<SchedulerLoad>, AskError>>,
    },
    /// Plan anew over everything that has joined.
    Replan {
        /// The replica and its new generation.
        answer: oneshot::Sender<Result<Fence, AskError>>,
    },
    /// Change who takes part.
    Change {
        /// What is to be changed.
        change: Change,
        /// Whether the state says so now.
        answer: oneshot::Sender<Result<(), AskError>>,
    },
}

/// The services' end of the queues. Clones are the same.
#[derive(Clone, Debug)]
pub struct Desk {
    sessions: mpsc::Sender<SessionEvent>,
    asks: mpsc::Sender<Ask>,
}

/// The task's end of the queues.
#[derive(Debug)]
pub struct Inbox {
    /// From sessions, each session's events in order.
    pub sessions: mpsc::Receiver<SessionEvent>,
    /// From everybody else.
    pub asks: mpsc::Receiver<Ask>,
}

/// Both ends.
pub fn desk() -> (Desk, Inbox) {
    let (sessions, session_events) = mpsc::channel(MAX_SESSION_EVENTS);
    let (asks, asked) = mpsc::channel(MAX_ASKS);
    let inbox = Inbox {
        sessions: session_events,
        asks: asked,
    };
    (Desk { sessions, asks }, inbox)
}

impl Desk {
    /// Hands an event over, waiting a while for room.
    pub async fn tell(&self, event: SessionEvent) -> Result<(), AskError> {
        let sent = self.sessions.send_timeout(event, QUEUE_DEADLINE).await;
        sent.map_err(|refused| match refused {
            SendTimeoutError::Timeout(_) => AskError::Unavailable(BUSY),
            SendTimeoutError::Closed(_) => AskError::Unavailable(ENDING),
        })
    }

    /// The cluster as the leader sees it, asked by the coordinator `id`; answered by the leader only.
    pub async fn status(
        &self,
        id: CoordinatorId,
        entry: CoordinatorEntry,
        within: Duration,
    ) -> Result<Bytes, AskError> {
        self.ask(|answer| Ask::Status { id, entry, answer }, within).await
    }

    /// What the schedulers of replicas that serve are doing; answered by the leader only.
    pub async fn loads(&self, within: Duration) -> Result<Vec<SchedulerLoad>, AskError> {
        self.ask(|answer| Ask::Loads { answer }, within).await
    }

    /// Plans anew; answered by the leader only.
    pub async fn replan(&self, within: Duration) -> Result<Fence, AskError> {
        self.ask(|answer| Ask::Replan { answer }, within).await
    }

    /// Changes who takes part; answered by the leader only.
    pub async fn change(&self, change: Change, within: Duration) -> Result<(), AskError> {
        self.ask(|answer| Ask::Change { change, answer }, within).await
    }

    async fn ask<T>(
        &self,
        ask: impl FnOnce(oneshot::Sender<Result<T, AskError>>) -> Ask,
        within: Duration,
    ) -> Result<T, AskError> {
        let (answer, answered) = oneshot::channel();
        self.asks.try_send(ask(answer)).map_err(|refused| match refused {
            TrySendError::Full(_) => AskError::Unavailable(BUSY),
            TrySendError::Closed(_) => AskError::Unavailable(ENDING),
        })?;
        match tokio::time::timeout(within, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(AskError::Unavailable(ENDING)),
            Err(_) => Err(AskError::Unavailable("the leader did not answer in time")),
        }
    }
}

const BUSY: &str = "this coordinator has too much to do at present; try again";
const ENDING: &str = "this coordinator is shutting down";

/// The task's side of a worker's session. Dropping every clone ends it.
#[derive(Clone, Debug)]
pub struct Session {
    id: SessionId,
    outbox: mpsc::Sender<Result<pb::CoordinatorMessage, Status>>,
    over: Arc<CancellationToken>,
}

/// A worker that does not take its directives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotTaken;

impl Session {
    /// A session, and what its worker hears.
    pub fn new(id: SessionId) -> (Self, mpsc::Receiver<Result<pb::CoordinatorMessage, Status>>) {
        let (outbox, heard) = mpsc::channel(MAX_DIRECTIVES);
        let over = Arc::default();
        (Self { id, outbox, over }, heard)
    }

    /// Which session.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Queues a directive.
    pub fn send(&self, directive: Directive) -> Result<(), NotTaken> {
        self.outbox.try_send(Ok(directive.into())).map_err(|_| NotTaken)
    }

    /// Ends the session and tells the worker why, if it still listens.
    pub fn end(&self, why: Status) {
        // A worker that has not taken what came before learns from the end of the stream.
        let _ = self.outbox.try_send(Err(why));
        self.over.cancel();
    }

    /// Resolves when the worker hung up or the session was ended here.
    pub async fn over(&self) {
        tokio::select! {
            () = self.over.cancelled() => {}
            () = self.outbox.closed() => {}
        }
    }
}
