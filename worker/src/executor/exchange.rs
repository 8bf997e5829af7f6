//! Expert work between devices: what an owner asks of the holders of its stage's remote groups.
//!
//! Three sides: [`ExpertLinks`] carries work to other devices and is implemented by the peer links;
//! [`ExpertExchange`] is what a running step sees of it; [`ExpertAnswer`] is how an answer comes back, through the
//! owner's own inbox. Two owners may hold a group of each other's stage, so whoever waits for an answer keeps serving
//! requests: that is why [`ExchangeEvent`] has both.

use std::fmt;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tramontane_model::ids::DeviceRef;
use tramontane_proto::{ExpertResults, ExpertWork};

use super::DeviceError;
use super::command::Command;

/// Carries expert work to other devices, of this process or of others.
pub trait ExpertLinks: Send + Sync + 'static {
    /// Hands work on without waiting for anything. What becomes of it comes through `answer`, also if this fails.
    fn send(&self, holder: &DeviceRef, work: ExpertWork, answer: ExpertAnswer);
}

/// Where the answer to one request goes. Dropped without an answer, it tells whoever asked that the link was lost.
pub struct ExpertAnswer {
    deliver: Option<Deliver>,
}

type Deliver = Box<dyn FnOnce(Result<ExpertResults, String>) + Send>;

impl fmt::Debug for ExpertAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExpertAnswer").finish_non_exhaustive()
    }
}

impl ExpertAnswer {
    /// An answer that is given to `deliver`, which must not wait.
    pub fn new(deliver: impl FnOnce(Result<ExpertResults, String>) + Send + 'static) -> Self {
        Self {
            deliver: Some(Box::new(deliver)),
        }
    }

    /// An answer in the inbox of the owner's device.
    pub(super) fn to_inbox(ticket: u64, inbox: SyncSender<Command>, place: OwnedSemaphorePermit) -> Self {
        Self::new(move |results| {
            // The permit reserves the place. The send fails only when the owner's thread has ended: nobody waits then.
            let _ = inbox.try_send(Command::Answer(Answer {
                ticket,
                results,
                _place: place,
            }));
        })
    }

    /// Brings the answer to whoever asked, or the reason why there is none.
    pub fn deliver(mut self, results: Result<ExpertResults, String>) {
        if let Some(deliver) = self.deliver.take() {
            deliver(results);
        }
    }
}

impl Drop for ExpertAnswer {
    fn drop(&mut self) {
        if let Some(deliver) = self.deliver.take() {
            deliver(Err("the link closed before the answer came".to_owned()));
        }
    }
}

/// An answer in the owner's inbox.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) ticket: u64,
    pub(super) results: Result<ExpertResults, String>,
    /// The place in the inbox, free again once the answer is taken.
    pub(super) _place: OwnedSemaphorePermit,
}

/// Somebody's request for experts that this device holds.
#[derive(Debug)]
pub struct ExpertRequest {
    pub(super) work: ExpertWork,
    pub(super) deadline: Instant,
    pub(super) reply: ExpertReply,
    /// The place in the inbox; none for requests that never were in one.
    pub(super) _place: Option<OwnedSemaphorePermit>,
}

/// Where the results of a request go.
#[derive(Debug)]
pub(super) enum ExpertReply {
    /// To a task of this process.
    Task(oneshot::Sender<Result<ExpertResults, DeviceError>>),
    /// To the inbox of another device of this process.
    Device(ExpertAnswer),
}

impl ExpertReply {
    pub(super) fn send(self, results: Result<ExpertResults, DeviceError>) {
        match self {
            // Fails when the task has given up, which needs no answer.
            Self::Task(sender) => drop(sender.send(results)),
            Self::Device(answer) => answer.deliver(results.map_err(|error| error.to_string())),
        }
    }
}

/// What a step that waits for remote experts is told.
#[derive(Debug)]
pub enum ExchangeEvent {
    /// A group has answered.
    Results {
        /// Which group of the stage.
        group: u32,
        /// Its results.
        results: ExpertResults,
    },
    /// Somebody waits for experts of this device: they must be computed before waiting on.
    Request(ExpertRequest),
}

/// Why a step cannot go on waiting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// A group will not answer.
    #[error("group {group}: {problem}")]
    Group {
        /// Which group of the stage.
        group: u32,
        /// Why.
        problem: String,
    },
    /// No answer in time.
    #[error("no answer came in time")]
    Deadline,
    /// The device was told to do something else.
    #[error("the device was told to do something else")]
    Interrupted,
}

/// A running step's way to the groups that other devices compute.
pub trait ExpertExchange {
    /// Sends a group its work, without waiting.
    fn send(&mut self, group: u32, holder: &DeviceRef, work: ExpertWork) -> Result<(), ExchangeError>;

    /// Waits for an answer, or for somebody else's request.
    fn next(&mut self, deadline: Instant) -> Result<ExchangeEvent, ExchangeError>;
}

/// Of a device that computes all experts of its layers itself.
#[derive(Clone, Copy, Debug)]
pub struct AllExpertsHere;

impl ExpertExchange for AllExpertsHere {
    fn send(&mut self, group: u32, _: &DeviceRef, _: ExpertWork) -> Result<(), ExchangeError> {
        let problem = "all experts are here".to_owned();
        Err(ExchangeError::Group { group, problem })
    }

    fn next(&mut self, _: Instant) -> Result<ExchangeEvent, ExchangeError> {
        Err(ExchangeError::Deadline)
    }
}
