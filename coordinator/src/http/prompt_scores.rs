//! `prompt_logprobs`, and `echo` with `logprobs`: log-probabilities of the prompt's own tokens.
//!
//! How they are asked for, and vLLM's shape of them. Where they are asked for, the prompt is computed whole: nothing of it is
//! taken from the prefix cache.

use std::fmt;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use tramontane_model::sampling::{MAX_TOP_LOGPROBS, SampledToken};

use super::error::{ApiError, ErrorKind};
use super::fields::Fields;
use super::logprobs::{Names, finite};

/// Most log-probabilities of prompts' tokens and their alternatives in one answer.
const MAX_SCORES: usize = 1 << 19;
const FIELD: &str = "prompt_logprobs";

/// What is asked for of the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PromptScores {
    /// Alternatives per token in a list of their own, `prompt_logprobs`.
    pub(super) listed: Option<u32>,
    /// Alternatives per token in the `logprobs` of a text that begins with the prompt.
    pub(super) echoed: Option<u32>,
}

impl PromptScores {
    /// Reads the field that asks for a list.
    pub(super) fn take(fields: &mut Fields<'_>) -> Result<Self, ApiError> {
        let listed = fields.integer(FIELD, 0, i64::from(MAX_TOP_LOGPROBS))?;
        Ok(Self {
            listed: listed.and_then(|count| u32::try_from(count).ok()),
            echoed: None,
        })
    }

    /// Refuses a list in a stream: it would come before everything else, at once.
    pub(super) fn check_stream(&self, stream: bool) -> Result<(), ApiError> {
        match self.listed {
            Some(_) if stream => {
                let problem = "is not supported where stream is true";
                Err(ApiError::field(ErrorKind::Unsupported, FIELD, problem))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Alternatives that the cluster reports of each token; none if no token is scored.
    pub(super) fn asked(&self) -> Option<u32> {
        self.listed.max(self.echoed)
    }

    /// Bounds what the answer holds: `tokens` are those of all prompts that are scored.
    pub(super) fn check_size(&self, tokens: usize) -> Result<(), ApiError> {
        let Some(top) = self.asked() else {
            return Ok(());
        };
        let scores = tokens.saturating_mul(top as usize + 1);
        if scores <= MAX_SCORES {
            return Ok(());
        }
        let field = match self.listed {
            Some(_) => FIELD,
            None => "logprobs",
        };
        let problem = format!(
            "asks for {scores} log-probabilities of tokens of prompts, at most {MAX_SCORES} are allowed"
        );
        Err(ApiError::invalid(field, problem))
    }
}

/// `prompt_logprobs` of an answer: null for the first token, which nothing comes before.
#[derive(Debug, Serialize)]
pub(super) struct PromptLogprobs(Vec<Option<Scored>>);

/// A token of the prompt and the most likely ones in its place, by their ids.
#[derive(Debug)]
struct Scored(Vec<(u32, Alternative)>);

#[derive(Debug, Serialize)]
struct Alternative {
    logprob: f32,
    /// Its place among all tokens, the likeliest being 1; null if it is not among those reported.
    rank: Option<usize>,
    decoded_token: String,
}

impl Serialize for Scored {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (id, alternative) in &self.0 {
            map.serialize_entry(&Key(*id), alternative)?;
        }
        map.end()
    }
}

/// An id as a key.
struct Key(u32);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl PromptLogprobs {
    /// Of the prompt's tokens from the second on, with at most `top` alternatives each.
    pub(super) fn new(names: Names<'_>, tokens: &[SampledToken], top: u32) -> Self {
        let scored = tokens
            .iter()
            .map(|token| Some(scored(names, token, top as usize)));
        Self(std::iter::once(None).chain(scored).collect())
    }
}

fn scored(names: Names<'_>, token: &SampledToken, top: usize) -> Scored {
    let alternative = |id, logprob, rank| {
        let decoded_token = names.text(id);
        let logprob = finite(logprob);
        let alternative = Alternative {
            logprob,
            rank,
            decoded_token,
        };
        (id, alternative)
    };
    let ranked = (1..).zip(&token.top);
    let own = ranked.clone().find(|(_, (id, _))| *id == token.token);
    let first = alternative(token.token, token.logprob, own.map(|(rank, _)| rank));
    let others = ranked.take(top).filter(|(_, (id, _))| *id != token.token);
    let others = others.map(|(rank, &(id, logprob))| alternative(id, logprob, Some(rank)));
    Scored(std::iter::once(first).chain(others).collect())
}
