//! What the rest of the coordinator holds of raft: a cheap handle that never blocks.
//!
//! Everything goes through one inbox, bounded in number and bytes. A full inbox refuses; nothing waits for room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tramontane_model::ids::CoordinatorId;

use super::budget::{ByteBudget, Reserved};
use super::metrics;
use super::node::{MAX_MESSAGE_BYTES, ProposeError, RaftStatus, ReadError, Role};
use super::state_machine::StateMachine;
use super::storage::Position;

/// Most inputs that wait for the node.
pub(super) const MAX_INBOX: usize = 4096;
/// Most bytes that wait for the node: a checkpoint, and everything else beside it.
pub(super) const MAX_INBOX_BYTES: usize = 2 * MAX_MESSAGE_BYTES;

/// Pause before a lead that nobody took is offered again.
const HAND_OVER_PAUSE: Duration = Duration::from_millis(250);

/// Where an answer goes.
pub(super) type Answer<T, E> = oneshot::Sender<Result<T, E>>;

/// What the node is asked, or told.
pub(super) enum Input<S: StateMachine> {
    Propose {
        entry: Vec<u8>,
        within: Duration,
        answer: Answer<S::Outcome, ProposeError>,
    },
    Read {
        within: Duration,
        answer: Answer<AppliedState<S>, ReadError>,
    },
    Message {
        from: CoordinatorId,
        bytes: Vec<u8>,
        _reserved: Reserved,
    },
    /// Give the lead away.
    HandOver,
    Unreachable(CoordinatorId),
    SnapshotSent {
        to: CoordinatorId,
        sent: bool,
    },
}

/// What came of giving the lead away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// It was not here.
    NotLeading,
    /// Another leads.
    Done(CoordinatorId),
    /// Nobody took it in time.
    Nobody,
}

/// An applied state, with the last entry in it.
#[derive(Debug)]
pub struct Applied<V> {
    /// The last entry that was applied.
    pub last: Position,
    /// The state after it.
    pub view: V,
}

/// An applied state, shared by all who look at it.
pub type AppliedState<S> = Arc<Applied<<S as StateMachine>::View>>;

/// Raft, as seen by everybody else. Clones are the same.
pub struct RaftHandle<S: StateMachine> {
    pub(super) inbox: SyncSender<Input<S>>,
    pub(super) budget: ByteBudget,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) status: watch::Receiver<RaftStatus>,
    pub(super) state: watch::Receiver<AppliedState<S>>,
}

impl<S: StateMachine> Clone for RaftHandle<S> {
    fn clone(&self) -> Self {
        Self {
            inbox: self.inbox.clone(),
            budget: self.budget.clone(),
            stop: self.stop.clone(),
            status: self.status.clone(),
            state: self.state.clone(),
        }
    }
}

impl<S: StateMachine> RaftHandle<S> {
    /// Proposes an entry and waits until it is applied here. Only the leader takes proposals; the error of any
    /// other names it.
    pub async fn propose(&self, entry: Vec<u8>, deadline: Instant) -> Result<S::Outcome, ProposeError> {
        let (answer, answered) = oneshot::channel();
        let within = deadline.saturating_duration_since(Instant::now());
        let result = match self.put(Input::Propose {
            entry,
            within,
            answer,
        }) {
            Ok(()) => match tokio::time::timeout_at(deadline, answered).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(ProposeError::ShuttingDown),
                Err(_) => Err(ProposeError::TimedOut),
            },
            Err(Full::Busy) => Err(ProposeError::Busy),
            Err(Full::Gone) => Err(ProposeError::ShuttingDown),
        };
        metrics::proposal(&result);
        result
    }

    /// The state that holds everything committed anywhere before the call. Any member may ask.
    pub async fn read(&self, deadline: Instant) -> Result<AppliedState<S>, ReadError> {
        let (answer, answered) = oneshot::channel();
        let within = deadline.saturating_duration_since(Instant::now());
        match self.put(Input::Read { within, answer }) {
            Ok(()) => match tokio::time::timeout_at(deadline, answered).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(ReadError::ShuttingDown),
                Err(_) => Err(ReadError::TimedOut),
            },
            Err(Full::Busy) => Err(ReadError::Busy),
            Err(Full::Gone) => Err(ReadError::ShuttingDown),
        }
    }

    /// Takes a message that `from` sent. Whoever calls has made sure that it was `from`. A message for which there
    /// is no room is dropped: raft sends again what matters. Returns false once raft has ended.
    #[must_use]
    pub fn deliver(&self, from: CoordinatorId, bytes: Vec<u8>) -> bool {
        let put = match self.budget.reserve(bytes.len()) {
            Some(reserved) => self.put(Input::Message {
                from,
                bytes,
                _reserved: reserved,
            }),
            None => Err(Full::Busy),
        };
        match put {
            Ok(()) => true,
            Err(Full::Busy) => {
                metrics::refused("inbox_full");
                true
            }
            Err(Full::Gone) => false,
        }
    }

    /// A message to this peer could not be sent.
    pub fn report_unreachable(&self, peer: CoordinatorId) {
        // Without room for it raft finds out by itself, by the answers that do not come.
        let _ = self.put(Input::Unreachable(peer));
    }

    /// The checkpoint on its way to this peer was handed over to the network, or was not.
    pub fn report_snapshot(&self, to: CoordinatorId, sent: bool) {
        // Without room for it the node counts the checkpoint as lost after a while.
        let _ = self.put(Input::SnapshotSent { to, sent });
    }

    /// The node's state.
    pub fn status(&self) -> RaftStatus {
        self.status.borrow().clone()
    }

    /// The node's state, and when it changes.
    pub fn watch_status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }

    /// The state as applied here, which may lag behind other members'.
    pub fn state(&self) -> AppliedState<S> {
        self.state.borrow().clone()
    }

    /// The state as applied here, and when it changes.
    pub fn watch_state(&self) -> watch::Receiver<AppliedState<S>> {
        self.state.clone()
    }

    /// Waits until raft has ended.
    pub async fn ended(&self) {
        let mut status = self.status.clone();
        // The sender goes with the node.
        while status.changed().await.is_ok() {}
    }

    /// Gives the lead away, if it is here, and waits until another has it. This member goes on as a follower.
    pub async fn hand_over(&self, deadline: Instant) -> HandOver {
        let mut status = self.status.clone();
        let mut led = false;
        loop {
            let now = status.borrow_and_update().clone();
            match now.role {
                Role::Leader if now.peers.is_empty() => return HandOver::Nobody,
                Role::Leader => {
                    led = true;
                    // Asked again, as raft gives up on a peer that does not take it.
                    let _ = self.put(Input::HandOver);
                }
                Role::Follower | Role::PreCandidate | Role::Candidate => match now.leader {
                    _ if !led => return HandOver::NotLeading,
                    Some(leader) => return HandOver::Done(leader),
                    None => {}
                },
            }
            if Instant::now() >= deadline {
                return HandOver::Nobody;
            }
            let again = deadline.min(Instant::now() + HAND_OVER_PAUSE);
            if let Ok(Err(_)) = tokio::time::timeout_at(again, status.changed()).await {
                return HandOver::Nobody;
            }
        }
    }

    /// Asks the node to hand over the lead, to answer everything that waits, and to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn put(&self, input: Input<S>) -> Result<(), Full> {
        self.inbox.try_send(input).map_err(|refused| match refused {
            TrySendError::Full(_) => Full::Busy,
            TrySendError::Disconnected(_) => Full::Gone,
        })
    }
}

enum Full {
    Busy,
    Gone,
}
