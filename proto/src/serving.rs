//! Requests to a replica's head and the tokens it answers with.

use tramontane_model::grammar::Grammar;
use tramontane_model::ids::{Fence, RequestId, TraceId};
use tramontane_model::sampling::{MAX_LOGIT_BIASES, MAX_TOP_LOGPROBS, SampledToken, SamplingParams};
use tramontane_model::step::{MAX_PRIORITY, MAX_STEP_ROWS};

use crate::fields::{at_most, fence, invalid, request, required, trace};
use crate::{WireError, v1 as pb};

/// Most prompt or emitted tokens in one request: above any context that a model of the family takes.
const MAX_TOKENS: usize = 1 << 20;
/// Most stop tokens of one request.
const MAX_STOP_TOKENS: usize = 64;
/// Longest cache salt, in bytes.
pub const MAX_CACHE_SALT_BYTES: usize = 256;

/// A request as the head receives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The replica generation that it is meant for.
    pub fence: Fence,
    /// The request.
    pub request: RequestId,
    /// Which attempt at it.
    pub attempt: u32,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Token ids that earlier attempts emitted.
    pub emitted: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Most tokens to emit, the already emitted included.
    pub max_tokens: u32,
    /// Tokens that end the sequence.
    pub stop_tokens: Vec<u32>,
    /// Whether to go on past a stop token.
    pub ignore_eos: bool,
    /// Time left, in milliseconds.
    pub timeout_ms: u64,
    /// Lower is served first.
    pub priority: i32,
    /// Keeps tenants apart in the prefix cache.
    pub cache_salt: Vec<u8>,
    /// The trace that it is part of.
    pub trace: TraceId,
}

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A stop token was emitted.
    Stop,
    /// `max_tokens` or the longest context was reached.
    Length,
    /// The gateway went away.
    Cancelled,
    /// Its time was up.
    Deadline,
    /// It could not go on, for this reason.
    Failed(String),
    /// What it was held to cannot be gone on with, for this reason: no other attempt would fare better.
    Grammar(String),
}

/// What a head tells of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// One more token.
    Token {
        /// Counted from 0 over all attempts.
        index: u32,
        /// The token.
        token: SampledToken,
        /// How many tokens of the prompt were found in the prefix cache; with the attempt's first token only.
        cached_prompt_tokens: Option<u32>,
        /// How long the attempt waited for a place in the cache, in microseconds; with its first token only.
        queued_us: Option<u64>,
    },
    /// Log-probabilities of tokens of the prompt, if they were asked for: all of them before the first token.
    Prompt {
        /// Position in the prompt of the first of them.
        first: u32,
        /// The prompt's tokens.
        tokens: Vec<SampledToken>,
    },
    /// The last message of the stream.
    Ended(Ended),
}

/// One message of the answer stream.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateUpdate {
    /// The generation that emitted it.
    pub fence: Fence,
    /// The attempt that it belongs to.
    pub attempt: u32,
    /// What it says.
    pub progress: Progress,
}

impl TryFrom<pb::Sampling> for SamplingParams {
    type Error = WireError;
    fn try_from(wire: pb::Sampling) -> Result<Self, WireError> {
        at_most(
            "sampling.logit_bias",
            "tokens",
            wire.logit_bias.len(),
            MAX_LOGIT_BIASES,
        )?;
        let grammar = wire.grammar.map(Grammar::new).transpose();
        let params = Self {
            temperature: wire.temperature,
            top_p: wire.top_p,
            top_k: wire.top_k,
            min_p: wire.min_p,
            presence_penalty: wire.presence_penalty,
            frequency_penalty: wire.frequency_penalty,
            repetition_penalty: wire.repetition_penalty,
            logit_bias: wire
                .logit_bias
                .into_iter()
                .map(|entry| (entry.token, entry.bias))
                .collect(),
            min_tokens: wire.min_tokens,
            held_back: wire.held_back,
            grammar: grammar.map_err(|error| invalid("sampling.grammar", error))?,
            seed: wire.seed,
            choice: wire.choice,
            logprobs: wire.logprobs,
            prompt_logprobs: wire.prompt_logprobs,
        };
        params.validate().map_err(|error| invalid("sampling", error))?;
        Ok(params)
    }
}

impl From<SamplingParams> for pb::Sampling {
    fn from(params: SamplingParams) -> Self {
        let bias = |(token, bias)| pb::TokenBias { token, bias };
        Self {
            temperature: params.temperature,
            top_p: params.top_p,
            top_k: params.top_k,
            min_p: params.min_p,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            repetition_penalty: params.repetition_penalty,
            logit_bias: params.logit_bias.into_iter().map(bias).collect(),
            min_tokens: params.min_tokens,
            held_back: params.held_back,
            grammar: params.grammar.map(Into::into),
            seed: params.seed,
            choice: params.choice,
            logprobs: params.logprobs,
            prompt_logprobs: params.prompt_logprobs,
        }
    }
}

impl TryFrom<pb::GenerateRequest> for Generation {
    type Error = WireError;
    fn try_from(wire: pb::GenerateRequest) -> Result<Self, WireError> {
        at_most("prompt", "tokens", wire.prompt.len(), MAX_TOKENS)?;
        at_most("emitted", "tokens", wire.emitted.len(), MAX_TOKENS)?;
        at_most("stop_tokens", "tokens", wire.stop_tokens.len(), MAX_STOP_TOKENS)?;
        at_most("cache_salt", "bytes", wire.cache_salt.len(), MAX_CACHE_SALT_BYTES)?;
        if wire.priority.unsigned_abs() > MAX_PRIORITY.unsigned_abs() {
            let problem = format_args!("{} is not from -{MAX_PRIORITY} to {MAX_PRIORITY}", wire.priority);
            return Err(invalid("priority", problem));
        }
        if wire.prompt.is_empty() {
            return Err(invalid("prompt", "it must have at least one token"));
        }
        Ok(Self {
            fence: fence(wire.fence)?,
            request: request("request", &wire.request)?,
            attempt: wire.attempt,
            prompt: wire.prompt,
            emitted: wire.emitted,
            sampling: required("sampling", wire.sampling)?.try_into()?,
            max_tokens: wire.max_tokens,
            stop_tokens: wire.stop_tokens,
            ignore_eos: wire.ignore_eos,
            timeout_ms: wire.timeout_ms,
            priority: wire.priority,
            cache_salt: wire.cache_salt.into(),
            trace: trace("trace", &wire.trace)?,
        })
    }
}

impl From<Generation> for pb::GenerateRequest {
    fn from(request: Generation) -> Self {
        Self {
            fence: Some(request.fence.into()),
            request: request.request.0.to_be_bytes().to_vec().into(),
            attempt: request.attempt,
            prompt: request.prompt,
            emitted: request.emitted,
            sampling: Some(request.sampling.into()),
            max_tokens: request.max_tokens,
            stop_tokens: request.stop_tokens,
            ignore_eos: request.ignore_eos,
            timeout_ms: request.timeout_ms,
            priority: request.priority,
            cache_salt: request.cache_salt.into(),
            trace: request.trace.bits().to_be_bytes().to_vec().into(),
        }
    }
}

impl TryFrom<pb::Sampled> for SampledToken {
    type Error = WireError;
    fn try_from(wire: pb::Sampled) -> Result<Self, WireError> {
        at_most("top", "alternatives", wire.top.len(), MAX_TOP_LOGPROBS as usize)?;
        let top = wire
            .top
            .into_iter()
            .map(|entry| (entry.token, entry.logprob))
            .collect();
        Ok(Self {
            token: wire.token,
            logprob: wire.logprob,
            top,
        })
    }
}

impl From<SampledToken> for pb::Sampled {
    fn from(sampled: SampledToken) -> Self {
        let entry = |(token, logprob)| pb::TokenLogprob { token, logprob };
        Self {
            token: sampled.token,
            logprob: sampled.logprob,
            top: sampled.top.into_iter().map(entry).collect(),
        }
    }
}

impl TryFrom<pb::Ended> for Ended {
    type Error = WireError;
    fn try_from(wire: pb::Ended) -> Result<Self, WireError> {
        match wire.reason() {
            pb::EndReason::Unspecified => Err(invalid(
                "ended.reason",
                format_args!("{} is no known reason", wire.reason),
            )),
            pb::EndReason::Stop => Ok(Self::Stop),
            pb::EndReason::Length => Ok(Self::Length),
            pb::EndReason::Cancelled => Ok(Self::Cancelled),
            pb::EndReason::Deadline => Ok(Self::Deadline),
            pb::EndReason::Failed => Ok(Self::Failed(wire.detail)),
            pb::EndReason::Grammar => Ok(Self::Grammar(wire.detail)),
        }
    }
}

impl From<Ended> for pb::Ended {
    fn from(ended: Ended) -> Self {
        let (reason, detail) = match ended {
            Ended::Stop => (pb::EndReason::Stop, String::new()),
            Ended::Length => (pb::EndReason::Length, String::new()),
            Ended::Cancelled => (pb::EndReason::Cancelled, String::new()),
            Ended::Deadline => (pb::EndReason::Deadline, String::new()),
            Ended::Failed(detail) => (pb::EndReason::Failed, detail),
            Ended::Grammar(detail) => (pb::EndReason::Grammar, detail),
        };
        Self {
            reason: reason.into(),
            detail,
        }
    }
}

impl TryFrom<pb::GenerateEvent> for GenerateUpdate {
    type Error = WireError;
    fn try_from(wire: pb::GenerateEvent) -> Result<Self, WireError> {
        let progress = match required("body", wire.body)? {
            pb::generate_event::Body::Token(token) => Progress::Token {
                index: token.index,
                token: required("token.sampled", token.sampled)?.try_into()?,
                cached_prompt_tokens: token.cached_prompt_tokens,
                queued_us: token.queued_us,
            },
            pb::generate_event::Body::Prompt(prompt) => {
                at_most("prompt.tokens", "tokens", prompt.tokens.len(), MAX_STEP_ROWS)?;
                let tokens = prompt.tokens.into_iter().map(TryInto::try_into);
                Progress::Prompt {
                    first: prompt.first,
                    tokens: tokens.collect::<Result<_, WireError>>()?,
                }
            }
            pb::generate_event::Body::Ended(ended) => Progress::Ended(ended.try_into()?),
        };
        Ok(Self {
            fence: fence(wire.fence)?,
            attempt: wire.attempt,
            progress,
        })
    }
}

impl From<GenerateUpdate> for pb::GenerateEvent {
    fn from(update: GenerateUpdate) -> Self {
        let body = match update.progress {
            Progress::Token {
                index,
                token,
                cached_prompt_tokens,
                queued_us,
            } => pb::generate_event::Body::Token(pb::EmittedToken {
                index,
                sampled: Some(token.into()),
                cached_prompt_tokens,
                queued_us,
            }),
            Progress::Prompt { first, tokens } => pb::generate_event::Body::Prompt(pb::ScoredPrompt {
                first,
                tokens: tokens.into_iter().map(Into::into).collect(),
            }),
            Progress::Ended(ended) => pb::generate_event::Body::Ended(ended.into()),
        };
        Self {
            fence: Some(update.fence.into()),
            attempt: update.attempt,
            body: Some(body),
        }
    }
}
