//! How the gateway speaks to the head worker of a replica.
//!
//! The trait is what tests replace by a head in memory; the gRPC one is real. No retries here: which
//! attempt comes next is for the one recovery path to say.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tramontane_proto::{GenerateSubmission, GenerateUpdate};

/// Why an attempt did not begin or broke off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The head cannot be reached, or its stream broke.
    #[error("head at {address} is not reachable: {detail}")]
    Unavailable {
        /// Where the head is.
        address: String,
        /// What the transport said.
        detail: String,
    },
    /// The head is at another generation.
    #[error("head at {address} refused the generation: {detail}")]
    Fenced {
        /// Where the head is.
        address: String,
        /// What the head said.
        detail: String,
    },
    /// The head's queue is full.
    #[error("the queue of the head at {address} is full: {detail}")]
    QueueFull {
        /// Where the head is.
        address: String,
        /// What the head said.
        detail: String,
    },
    /// The head found a field out of range: no other attempt would fare better.
    #[error("head at {address} refused the request: {detail}")]
    Rejected {
        /// Where the head is.
        address: String,
        /// What the head said.
        detail: String,
    },
    /// The head sent something that the protocol does not allow.
    #[error("head at {address} broke the protocol: {detail}")]
    Protocol {
        /// Where the head is.
        address: String,
        /// What was wrong.
        detail: String,
    },
}

/// Updates of one attempt; dropping it cancels the attempt at the head.
pub type HeadStream = BoxStream<'static, Result<GenerateUpdate, HeadError>>;

/// Submits attempts to heads.
pub trait HeadClient: Send + Sync + 'static {
    /// Submits an attempt to the head at `address` (`host:port`). Resolves once the head has taken it in or refused
    /// it; dropping the future before that withdraws the attempt.
    fn generate(
        &self,
        address: &str,
        submission: GenerateSubmission,
    ) -> BoxFuture<'_, Result<HeadStream, HeadError>>;
}
