//! A choice of an answer that is shown whole: everything that its steps brought.

use tramontane_model::sampling::SampledToken;

use super::answer::{Answer, FinishReason, Reported, Step};
use super::error::ApiError;
use super::reply::Usage;
use crate::text::OutputEvent;

/// A run of text or of reasoning, in the order in which they came.
#[derive(Debug, PartialEq)]
pub(super) enum Part {
    Text(String),
    Reasoning(String),
}

/// A call, with the model's own text of its arguments.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: String,
}

/// All of a choice.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) parts: Vec<Part>,
    pub(super) calls: Vec<Call>,
    pub(super) tokens: Vec<Reported>,
    /// The prompt's tokens from the second on, if they were to be scored.
    pub(super) prompt: Vec<SampledToken>,
    pub(super) finish: Option<FinishReason>,
    pub(super) usage: Usage,
}

/// Waits for the whole of an answer; keeps its tokens if they are to be shown.
pub(super) async fn collect(mut answer: Answer, with_tokens: bool) -> Result<Collected, ApiError> {
    let mut collected = Collected::default();
    while let Some(step) = answer.next().await {
        match step? {
            Step::Delta(delta) => {
                for piece in delta.pieces {
                    collected.take(piece);
                }
                if with_tokens {
                    collected.tokens.extend(delta.tokens);
                }
            }
            Step::End(reason) => collected.finish = Some(reason),
        }
    }
    collected.usage = Usage::of(&answer);
    collected.prompt = answer.take_scored();
    Ok(collected)
}

impl Collected {
    /// All text, without the reasoning.
    pub(super) fn content(&self) -> String {
        let texts = self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Reasoning(_) => None,
        });
        texts.collect()
    }

    /// All reasoning, if there is any.
    pub(super) fn reasoning(&self) -> Option<String> {
        let texts = self.parts.iter().filter_map(|part| match part {
            Part::Reasoning(text) => Some(text.as_str()),
            Part::Text(_) => None,
        });
        let joined: String = texts.collect();
        (!joined.is_empty()).then_some(joined)
    }

    fn take(&mut self, piece: OutputEvent) {
        match piece {
            OutputEvent::Content(text) => match self.parts.last_mut() {
                Some(Part::Text(before)) => before.push_str(&text),
                Some(Part::Reasoning(_)) | None => self.parts.push(Part::Text(text)),
            },
            OutputEvent::Reasoning(text) => match self.parts.last_mut() {
                Some(Part::Reasoning(before)) => before.push_str(&text),
                Some(Part::Text(_)) | None => self.parts.push(Part::Reasoning(text)),
            },
            OutputEvent::ToolCall { id, name, .. } => self.calls.push(Call {
                id,
                name,
                arguments: String::new(),
            }),
            OutputEvent::Arguments { index, text } => {
                if let Some(call) = self.calls.get_mut(index as usize) {
                    call.arguments.push_str(&text);
                }
            }
        }
    }
}
