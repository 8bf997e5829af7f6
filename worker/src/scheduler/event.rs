//! What a scheduler tells its host about requests.

use std::sync::Arc;

use tramontane_model::ids::RequestId;
use tramontane_model::sampling::SampledToken;

/// One thing that happened to a request. Events of a request come in order; after `Ended` there is none.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token was emitted. A stop token is emitted like any other, then the sequence ends.
    Token {
        /// The request.
        request: RequestId,
        /// Which attempt at it.
        attempt: u32,
        /// Counted from 0 over all attempts: grows by exactly one (ST-1).
        index: u32,
        /// The token.
        token: SampledToken,
        /// How many tokens of the prompt were found in the prefix cache; with the attempt's first token only.
        cached_prompt_tokens: Option<u32>,
    },
    /// Log-probabilities of tokens of the prompt, where they were asked for: in order, each once for an attempt, all of
    /// them before its first token.
    Prompt {
        /// The request.
        request: RequestId,
        /// Which attempt at it.
        attempt: u32,
        /// Position in the prompt of the first of them.
        first: u32,
        /// The prompt's tokens.
        tokens: Vec<SampledToken>,
    },
    /// An accepted attempt is over: once for each, whatever the reason (ST-2).
    Ended {
        /// The request.
        request: RequestId,
        /// Which attempt at it.
        attempt: u32,
        /// Why.
        reason: EndReason,
        /// Tokens emitted, over all attempts.
        emitted: u32,
    },
}

/// Why an attempt is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// A stop token was emitted.
    Stop,
    /// `max_tokens`, or the most tokens that the model or the cache takes, were reached.
    Length,
    /// It was cancelled, or replaced by a later attempt.
    Cancelled,
    /// Its deadline passed.
    DeadlineExceeded,
    /// What it is held to cannot be gone on with, here or anywhere; says why.
    Grammar(Arc<str>),
    /// It, or its replica, cannot go on; says why. The request can be submitted elsewhere with what was emitted.
    Failed(Arc<str>),
}
