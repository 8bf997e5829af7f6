//! Why a request ended without an answer, or was never taken in.

use std::time::Duration;

use super::routes::NotServing;

/// A request that did not complete.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// As many requests as may be are live at this coordinator.
    #[error(
        "{limit} requests may be live at this coordinator, and there is no room for {asked} more: try again later"
    )]
    Overloaded {
        /// How many were asked for.
        asked: usize,
        /// How many may be live.
        limit: usize,
    },
    /// No replica serves.
    #[error(transparent)]
    NotServing(#[from] NotServing),
    /// The replica's queue is full.
    #[error("the replica has no room for another request: {detail}")]
    QueueFull {
        /// What the head said.
        detail: String,
    },
    /// The replica found a field out of range.
    #[error("the replica refused the request: {detail}")]
    Rejected {
        /// What the head said.
        detail: String,
    },
    /// The request's time is over.
    #[error("the request did not complete within {} s", limit.as_secs_f64())]
    Deadline {
        /// The time that it had.
        limit: Duration,
    },
    /// Attempt after attempt failed without a new token.
    #[error("{attempts} attempts in a row failed without a new token, the last one because: {detail}")]
    Failed {
        /// How many.
        attempts: u32,
        /// Why the last one failed.
        detail: String,
    },
    /// What the answer is held to cannot be gone on with.
    #[error("the answer cannot go on as it is held to: {detail}; ask for something simpler")]
    Grammar {
        /// What the last stage said.
        detail: String,
    },
    /// The operating system gave no random bytes for the request's id.
    #[error("no random bytes for an id: {detail}")]
    Random {
        /// What the operating system said.
        detail: String,
    },
    /// The coordinator is shutting down.
    #[error("the coordinator is shutting down")]
    ShuttingDown,
}
