//! Chat answers in OpenAI's shapes: whole, and as chunks of a stream.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use serde::Serialize;

use super::answer::{Answer, Delta, FinishReason, Reported};
use super::collected::{Call, Collected, collect};
use super::error::ApiError;
use super::logprobs::{ChatLogprobs, Names};
use super::prompt_scores::PromptLogprobs;
use super::reply::{Header, Usage, null_if};
use super::sse::{self, Chunks};
use crate::text::{OutputEvent, Tokenizer};

/// How the answer to a conversation is shown.
pub(super) struct ChatReply {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) token_ids: bool,
    pub(super) logprobs: bool,
    /// Alternatives in the list of the prompt's tokens, if there is to be one.
    pub(super) prompt_logprobs: Option<u32>,
    pub(super) include_usage: bool,
}

#[derive(Serialize)]
struct Body<'a, C> {
    #[serde(flatten)]
    header: &'a Header,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    /// Null if the answer is tool calls and nothing else.
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    refusal: (),
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Serialize)]
struct ToolCall {
    id: String,
    r#type: &'static str,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    name: String,
    /// The model's own text, JSON or not.
    arguments: String,
}

impl ChatReply {
    pub(super) async fn whole(&self, answers: Vec<Answer>) -> Result<Response, ApiError> {
        let all = answers.into_iter().map(|answer| collect(answer, self.logprobs));
        let all = try_join_all(all).await?;
        let mut usage = Usage::default();
        all.iter().for_each(|choice| usage.add(choice.usage));
        let prompt_logprobs = self.prompt_logprobs(&all);
        let each = all.into_iter().enumerate();
        let body = Body {
            header: &Header::new(self.id.clone(), "chat.completion", &self.model),
            choices: each.map(|(index, choice)| self.choice(index, choice)).collect(),
            usage: Some(Some(usage)),
            prompt_logprobs,
        };
        Ok(Json(body).into_response())
    }

    fn choice(&self, index: usize, collected: Collected) -> Choice {
        let content = collected.content();
        let no_content = content.is_empty() && !collected.calls.is_empty();
        let logprobs = self.logprobs(&collected.tokens);
        Choice {
            index,
            message: Message {
                role: "assistant",
                content: (!no_content).then_some(content),
                reasoning_content: collected.reasoning(),
                refusal: (),
                tool_calls: collected.calls.into_iter().map(ToolCall::from).collect(),
            },
            logprobs,
            finish_reason: collected.finish.map(FinishReason::name),
        }
    }

    /// The same as chunks.
    pub(super) fn streamed(self) -> impl Chunks {
        let header = Header::new(self.id.clone(), "chat.completion.chunk", &self.model);
        ChatChunks { header, reply: self }
    }

    /// Those of the one prompt that all choices have; the first of them brings them.
    pub(super) fn prompt_logprobs(&self, choices: &[Collected]) -> Option<PromptLogprobs> {
        let (top, first) = self.prompt_logprobs.zip(choices.first())?;
        Some(PromptLogprobs::new(self.names(), &first.prompt, top))
    }

    fn names(&self) -> Names<'_> {
        Names {
            tokenizer: &self.tokenizer,
            as_ids: self.token_ids,
        }
    }

    pub(super) fn logprobs(&self, tokens: &[Reported]) -> Option<ChatLogprobs> {
        self.logprobs.then(|| ChatLogprobs::new(self.names(), tokens))
    }
}

impl From<Call> for ToolCall {
    fn from(call: Call) -> Self {
        Self {
            id: call.id,
            r#type: "function",
            function: Function {
                name: call.name,
                arguments: call.arguments,
            },
        }
    }
}

struct ChatChunks {
    header: Header,
    reply: ChatReply,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: ChunkDelta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct ChunkDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ChunkToolCall>,
}

/// The beginning of a call, with its id and name, or more of its arguments.
#[derive(Serialize)]
struct ChunkToolCall {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: ChunkFunction,
}

#[derive(Serialize)]
struct ChunkFunction {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl ChatChunks {
    fn chunk(
        &self,
        index: usize,
        delta: ChunkDelta,
        tokens: Option<&[Reported]>,
        finish_reason: Option<&'static str>,
    ) -> Result<String, ApiError> {
        let choice = ChunkChoice {
            index,
            delta,
            logprobs: tokens.and_then(|tokens| self.reply.logprobs(tokens)),
            finish_reason,
        };
        sse::json(&Body {
            header: &self.header,
            choices: vec![choice],
            usage: null_if(self.reply.include_usage),
            prompt_logprobs: None,
        })
    }
}

impl Chunks for ChatChunks {
    fn opening(&self, choice: usize) -> Result<Option<String>, ApiError> {
        let delta = ChunkDelta {
            role: Some("assistant"),
            content: Some(String::new()),
            ..ChunkDelta::default()
        };
        self.chunk(choice, delta, None, None).map(Some)
    }

    fn delta(&mut self, choice: usize, delta: &Delta) -> Result<Option<String>, ApiError> {
        let tokens = delta.tokens.as_slice();
        if delta.pieces.is_empty() && (tokens.is_empty() || !self.reply.logprobs) {
            return Ok(None);
        }
        let mut shown = ChunkDelta::default();
        for piece in &delta.pieces {
            show(piece, &mut shown);
        }
        if shown.tool_calls.is_empty() && shown.reasoning_content.is_none() {
            // A chunk with log-probabilities alone still says that it adds no text.
            shown.content.get_or_insert_default();
        }
        self.chunk(choice, shown, Some(tokens), None).map(Some)
    }

    fn end(&mut self, choice: usize, reason: FinishReason, _all: Option<Usage>) -> Result<String, ApiError> {
        self.chunk(choice, ChunkDelta::default(), None, Some(reason.name()))
    }

    fn usage(&self, usage: Usage) -> Result<Option<String>, ApiError> {
        if !self.reply.include_usage {
            return Ok(None);
        }
        let body = Body::<ChunkChoice> {
            header: &self.header,
            choices: Vec::new(),
            usage: Some(Some(usage)),
            prompt_logprobs: None,
        };
        sse::json(&body).map(Some)
    }
}

/// Adds a piece to a chunk; several of one kind join.
fn show(piece: &OutputEvent, shown: &mut ChunkDelta) {
    match piece {
        OutputEvent::Content(text) => shown.content.get_or_insert_default().push_str(text),
        OutputEvent::Reasoning(text) => shown.reasoning_content.get_or_insert_default().push_str(text),
        OutputEvent::ToolCall { index, id, name } => shown.tool_calls.push(ChunkToolCall {
            index: *index,
            id: Some(id.clone()),
            r#type: Some("function"),
            function: ChunkFunction {
                name: Some(name.clone()),
                arguments: String::new(),
            },
        }),
        OutputEvent::Arguments { index, text } => {
            match shown.tool_calls.iter_mut().find(|call| call.index == *index) {
                Some(call) => call.function.arguments.push_str(text),
                None => shown.tool_calls.push(ChunkToolCall {
                    index: *index,
                    id: None,
                    r#type: None,
                    function: ChunkFunction {
                        name: None,
                        arguments: text.clone(),
                    },
                }),
            }
        }
    }
}
