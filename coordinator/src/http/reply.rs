//! What the replies of both routes share.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::answer::Answer;

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct PromptTokensDetails {
    /// Found in the replica's prefix cache.
    cached_tokens: u64,
}

impl Usage {
    /// What an answer has used so far.
    pub(super) fn of(answer: &Answer) -> Self {
        let prompt_tokens = u64::from(answer.prompt_tokens());
        let completion_tokens = u64::from(answer.generated_tokens());
        // A prompt counts once however many choices continue it, and so does what was cached of it.
        let cached_tokens = u64::from(answer.cached_prompt_tokens()).min(prompt_tokens);
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.total_tokens += other.total_tokens;
        self.prompt_tokens_details.cached_tokens += other.prompt_tokens_details.cached_tokens;
    }
}

/// Tokens of a response, as OpenAI's newer API counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ResponseUsage {
    input_tokens: u64,
    input_tokens_details: PromptTokensDetails,
    output_tokens: u64,
    output_tokens_details: OutputTokensDetails,
    total_tokens: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct OutputTokensDetails {
    reasoning_tokens: u64,
}

impl Usage {
    /// The same, with how many of the generated tokens were reasoning.
    pub(super) fn of_response(self, reasoning_tokens: u64) -> ResponseUsage {
        ResponseUsage {
            input_tokens: self.prompt_tokens,
            input_tokens_details: self.prompt_tokens_details,
            output_tokens: self.completion_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens },
            total_tokens: self.total_tokens,
        }
    }
}

/// What every chunk and reply of a request opens with.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Header {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

impl Header {
    pub(super) fn new(id: String, object: &'static str, model: &str) -> Self {
        Self {
            id,
            object,
            created: unix_seconds(),
            model: model.to_owned(),
        }
    }
}

/// Seconds since 1970, as OpenAI's `created` counts them.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A field that is absent, `null`, or there: a stream shows `"usage": null` only where usage was asked for.
pub(super) fn null_if<T>(wanted: bool) -> Option<Option<T>> {
    wanted.then_some(None)
}
