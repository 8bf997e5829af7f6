//! Admission: what may be asked of a scheduler, and why it may refuse.
//!
//! A refusal is given at submission or never: an accepted request ends with an event. Nothing that would fit a cache
//! of its own is refused for its size.

use std::sync::Arc;

use tramontane_model::ids::{RequestId, TraceId};
use tramontane_model::sampling::{SamplingError, SamplingParams};
use tramontane_model::step::MAX_PRIORITY;
use tramontane_model::time::Tick;

use super::config::SchedulerConfig;

/// Most stop tokens of a request.
pub const MAX_STOP_TOKENS: usize = 64;

/// Longest cache salt, in bytes.
pub const MAX_CACHE_SALT_BYTES: usize = 256;

/// One sequence to be continued. A request for several choices is as many submissions, each with its own id.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    /// The request.
    pub request: RequestId,
    /// The trace that it is part of.
    pub trace: TraceId,
    /// Which attempt at it: a later one replaces an earlier one.
    pub attempt: u32,
    /// Served before those with a higher number, and preempted after them.
    pub priority: i32,
    /// Token ids of the prompt; never empty.
    pub prompt: Vec<u32>,
    /// Tokens that earlier attempts emitted, in order. They are computed again as generated rows.
    pub emitted: Vec<u32>,
    /// Keeps tenants apart in the prefix cache: blocks are shared only under the same salt.
    pub cache_salt: Vec<u8>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Most tokens to emit, `emitted` included.
    pub max_tokens: u32,
    /// Tokens that end the sequence.
    pub stop_tokens: Vec<u32>,
    /// Whether to go on past stop tokens.
    pub ignore_eos: bool,
    /// When the request ends whatever its state.
    pub deadline: Tick,
}

/// Why a submission was not accepted. Nothing is remembered of it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The replica has failed: no submission will be accepted again.
    #[error("the replica has failed: {0}")]
    Failed(Arc<str>),
    /// The same attempt is being served.
    #[error("request {request}: attempt {attempt} is already being served")]
    Duplicate {
        /// The request.
        request: RequestId,
        /// The attempt.
        attempt: u32,
    },
    /// A later attempt is being served.
    #[error("request {request}: attempt {attempt} comes after attempt {live}, which is being served")]
    Superseded {
        /// The request.
        request: RequestId,
        /// The attempt submitted.
        attempt: u32,
        /// The attempt being served.
        live: u32,
    },
    /// Too many wait: time can heal it.
    #[error("{waiting} requests are waiting, at most {limit} may")]
    QueueFull {
        /// How many wait.
        waiting: usize,
        /// How many may.
        limit: usize,
    },
    /// Those who wait may come to too many tokens: time can heal it.
    #[error(
        "the request may come to {tokens} tokens beside {waiting} that are waiting, at most {limit} may wait"
    )]
    TokensFull {
        /// Prompt and longest output of the request.
        tokens: u64,
        /// Those of all that wait.
        waiting: u64,
        /// How many may wait.
        limit: u64,
    },
    /// No prompt.
    #[error("prompt is empty, it must have at least one token")]
    EmptyPrompt,
    /// A sequence that this replica can never hold.
    #[error(
        "prompt has {prompt} tokens and {emitted} were emitted: prompt and output together are at most {limit} \
         (the model takes {max_positions}, the cache holds {cache_tokens}), one of them output"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens emitted by earlier attempts.
        emitted: usize,
        /// Most tokens of a sequence here.
        limit: u32,
        /// What the model takes.
        max_positions: u32,
        /// What the whole cache holds.
        cache_tokens: u64,
    },
    /// A token id outside the vocabulary.
    #[error("{field}[{index}] is {token}, token ids are below {vocab_size}")]
    Token {
        /// Where.
        field: &'static str,
        /// Which of its tokens.
        index: usize,
        /// The id.
        token: u32,
        /// Ids are below this.
        vocab_size: u32,
    },
    /// No token may be emitted, or more were emitted than may be.
    #[error(
        "max_tokens is {max_tokens}, it must be at least 1 and not below the {emitted} tokens emitted already"
    )]
    MaxTokens {
        /// The limit given.
        max_tokens: u32,
        /// Tokens emitted by earlier attempts.
        emitted: usize,
    },
    /// Too many stop tokens.
    #[error("stop_tokens has {0} entries, at most {MAX_STOP_TOKENS} are allowed")]
    StopTokens(usize),
    /// A cache salt that is too long.
    #[error("cache_salt has {0} bytes, at most {MAX_CACHE_SALT_BYTES} are allowed")]
    CacheSalt(usize),
    /// A priority out of its range.
    #[error("priority is {0}, it must be -{MAX_PRIORITY} to {MAX_PRIORITY}")]
    Priority(i32),
    /// A sampling parameter out of its range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The deadline is not in the future.
    #[error("the deadline {deadline} has passed at {now}")]
    DeadlinePassed {
        /// The deadline given.
        deadline: Tick,
        /// The moment of submission.
        now: Tick,
    },
}

impl Submission {
    /// Checks every field by itself; whether the request is known and the queue full is the scheduler's to say.
    pub(super) fn validate(&self, now: Tick, config: &SchedulerConfig) -> Result<(), Refusal> {
        let (prompt, emitted) = (self.prompt.len(), self.emitted.len());
        if prompt == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        let limit = config.token_limit() as usize;
        if prompt >= limit || emitted > limit - prompt {
            return Err(Refusal::TooLong {
                prompt,
                emitted,
                limit: config.token_limit(),
                max_positions: config.max_positions,
                cache_tokens: config.cache_tokens(),
            });
        }
        if self.max_tokens == 0 || emitted > self.max_tokens as usize {
            return Err(Refusal::MaxTokens {
                max_tokens: self.max_tokens,
                emitted,
            });
        }
        if self.stop_tokens.len() > MAX_STOP_TOKENS {
            return Err(Refusal::StopTokens(self.stop_tokens.len()));
        }
        if self.cache_salt.len() > MAX_CACHE_SALT_BYTES {
            return Err(Refusal::CacheSalt(self.cache_salt.len()));
        }
        if self.priority.unsigned_abs() > MAX_PRIORITY.unsigned_abs() {
            return Err(Refusal::Priority(self.priority));
        }
        check_tokens("prompt", &self.prompt, config.vocab_size)?;
        check_tokens("emitted", &self.emitted, config.vocab_size)?;
        check_tokens("stop_tokens", &self.stop_tokens, config.vocab_size)?;
        self.sampling.validate_for(config.vocab_size)?;
        if self.deadline <= now {
            let deadline = self.deadline;
            return Err(Refusal::DeadlinePassed { deadline, now });
        }
        Ok(())
    }
}

fn check_tokens(field: &'static str, tokens: &[u32], vocab_size: u32) -> Result<(), Refusal> {
    match tokens.iter().position(|&token| token >= vocab_size) {
        None => Ok(()),
        Some(index) => Err(Refusal::Token {
            field,
            index,
            token: tokens[index],
            vocab_size,
        }),
    }
}
