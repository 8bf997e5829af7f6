//! Log-probabilities as OpenAI's two routes show them.
//!
//! Values stay `f32` up to the text, which is the shortest that reads back to the same bits.

use std::fmt::Write;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use tramontane_model::sampling::SampledToken;

use super::answer::Reported;
use crate::text::Tokenizer;

/// Shown in place of minus infinity, which JSON cannot say; so does OpenAI.
const LOWEST: f32 = -9999.0;

/// How tokens are named.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    /// As `token_id:N` rather than by their text.
    pub(super) as_ids: bool,
}

impl Names<'_> {
    fn bytes(&self, id: u32) -> &[u8] {
        self.tokenizer.token_bytes(id).unwrap_or_default()
    }

    /// The token's text, what is no text replaced.
    pub(super) fn text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.bytes(id)).into_owned()
    }

    /// The token's text; bytes that are no text as `\xNN`, after `prefix`.
    fn name(&self, id: u32, prefix: &str) -> String {
        if self.as_ids {
            return format!("token_id:{id}");
        }
        let bytes = self.bytes(id);
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().fold(prefix.to_owned(), |mut name, byte| {
                // Writing to a String cannot fail.
                let _ = write!(name, "\\x{byte:02x}");
                name
            }),
        }
    }
}

pub(super) fn finite(logprob: f32) -> f32 {
    // Also for what is not a number.
    logprob.max(LOWEST)
}

/// `logprobs` of a chat choice.
#[derive(Debug, Serialize)]
pub(super) struct ChatLogprobs {
    pub(super) content: Vec<ChatToken>,
    refusal: (),
}

/// A token of a chat choice.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<ChatAlternative>,
}

#[derive(Clone, Debug, Serialize)]
struct ChatAlternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub(super) fn new(names: Names<'_>, tokens: &[Reported]) -> Self {
        let content = tokens
            .iter()
            .filter_map(|reported| Some(chat_token(names, reported.sampled.as_ref()?)))
            .collect();
        Self { content, refusal: () }
    }
}

fn chat_token(names: Names<'_>, sampled: &SampledToken) -> ChatToken {
    let alternative = |&(id, logprob): &(u32, f32)| ChatAlternative {
        token: names.name(id, ""),
        logprob: finite(logprob),
        bytes: names.bytes(id).to_vec(),
    };
    ChatToken {
        token: names.name(sampled.token, ""),
        logprob: finite(sampled.logprob),
        bytes: names.bytes(sampled.token).to_vec(),
        top_logprobs: sampled.top.iter().map(alternative).collect(),
    }
}

/// `logprobs` of a plain choice; null for the prompt's first token, which nothing comes before.
#[derive(Debug, Serialize)]
pub(super) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Alternatives>>,
    text_offset: Vec<usize>,
}

/// Names and log-probabilities, best first; the chosen token is always among them.
#[derive(Debug)]
struct Alternatives(Vec<(String, f32)>);

impl Serialize for Alternatives {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, logprob) in &self.0 {
            map.serialize_entry(name, logprob)?;
        }
        map.end()
    }
}

impl TextLogprobs {
    pub(super) fn new(names: Names<'_>, tokens: &[Reported]) -> Self {
        let name = |id| names.name(id, "bytes:");
        Self {
            tokens: tokens.iter().map(|reported| name(reported.id)).collect(),
            token_logprobs: tokens
                .iter()
                .map(|reported| Some(finite(reported.sampled.as_ref()?.logprob)))
                .collect(),
            top_logprobs: tokens
                .iter()
                .map(|reported| Some(alternatives(names, reported.sampled.as_ref()?)))
                .collect(),
            text_offset: tokens.iter().map(|reported| reported.offset).collect(),
        }
    }
}

fn alternatives(names: Names<'_>, sampled: &SampledToken) -> Alternatives {
    let chosen = (sampled.token, sampled.logprob);
    let missing = sampled.top.iter().all(|(id, _)| *id != sampled.token);
    let all = sampled.top.iter().copied().chain(missing.then_some(chosen));
    let mut named: Vec<(String, f32)> = Vec::with_capacity(sampled.top.len() + 1);
    for (id, logprob) in all {
        let mut name = names.name(id, "bytes:");
        if named.iter().any(|(other, _)| *other == name) {
            // A special token and a text token may have one name; keys are unique.
            name = format!("token_id:{id}");
        }
        named.push((name, finite(logprob)));
    }
    Alternatives(named)
}
