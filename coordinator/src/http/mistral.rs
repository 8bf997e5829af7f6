//! What only Mistral's API has in a chat request, and when a request is taken to be of that dialect.

use serde::Deserialize;

use super::error::ApiError;
use super::fields::Fields as Body;
use super::params;
use crate::text::ChatRequest;
use crate::text::chat::{Content, ContentPart, Thinking};

/// Put before the conversation by `safe_prompt`, as Mistral documents it.
const SAFE_PROMPT: &str = "Always assist with care, respect, and truth. Respond with utmost utility yet securely. Avoid \
    harmful, unethical, prejudiced, or negative content. Ensure replies promote fairness and positivity.";
/// Put before the conversation by `prompt_mode`, as Mistral publishes it with its reasoning models.
const REASONING_PROMPT: [&str; 3] = [
    "# HOW YOU SHOULD THINK AND ANSWER\n\nFirst draft your thinking process (inner monologue) until you arrive at a \
    response. Format your response using Markdown, and use LaTeX for any mathematical equations. Write both your \
    thoughts and the response in the same language as the input.\n\nYour thinking process must follow the template \
    below:",
    "Your thoughts or/and draft, like working through an exercise on scratch paper. Be as casual and as long as you \
    want until you are confident to generate the response to the user.",
    "Here, provide a self-contained response.",
];

/// Whose clients the response is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    OpenAi,
    Mistral,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PromptMode {
    Reasoning,
}

/// The fields of Mistral's own.
#[derive(Debug)]
pub(super) struct Fields {
    /// What OpenAI calls `seed`.
    pub(super) random_seed: Option<u64>,
    safe_prompt: Option<bool>,
    prompt_mode: Option<PromptMode>,
}

impl Fields {
    /// Takes them from a body.
    pub(super) fn take(body: &mut Body<'_>) -> Result<Self, ApiError> {
        Ok(Self {
            random_seed: params::seed(body, "random_seed")?,
            safe_prompt: body.take("safe_prompt")?,
            prompt_mode: body.take("prompt_mode")?,
        })
    }

    /// The dialect of a request that came by a route of this one.
    pub(super) fn dialect(&self, route: Dialect, chat: &ChatRequest) -> Dialect {
        let named = self.random_seed.is_some() || self.safe_prompt.is_some() || self.prompt_mode.is_some();
        let has_thinking = |content: &Content| match content {
            Content::Parts(parts) => parts.iter().any(|part| part.kind == "thinking"),
            Content::Text(_) => false,
        };
        let own = |message: &crate::text::chat::Message| {
            message.prefix.is_some() || message.content.as_ref().is_some_and(has_thinking)
        };
        if named || chat.messages.iter().any(own) {
            Dialect::Mistral
        } else {
            route
        }
    }

    /// System text that they ask for.
    pub(super) fn preamble(&self) -> Vec<Content> {
        let mut preamble = Vec::new();
        if self.safe_prompt == Some(true) {
            preamble.push(Content::Text(SAFE_PROMPT.to_owned()));
        }
        match self.prompt_mode {
            None => {}
            Some(PromptMode::Reasoning) => {
                let [before, thinking, after] = REASONING_PROMPT;
                let part = |kind: &str, text: Option<&str>, thinking: Option<&str>| ContentPart {
                    kind: kind.to_owned(),
                    text: text.map(str::to_owned),
                    thinking: thinking.map(|text| Thinking::Text(text.to_owned())),
                    closed: None,
                };
                preamble.push(Content::Parts(vec![
                    part("text", Some(before), None),
                    part("thinking", None, Some(thinking)),
                    part("text", Some(after), None),
                ]));
            }
        }
        preamble
    }
}
