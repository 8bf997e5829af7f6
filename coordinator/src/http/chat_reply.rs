//! Chat answers in OpenAI's shapes: whole, and as chunks of a stream.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::answer::{Answer, Delta, FinishReason, Reported, Step};
use super::error::ApiError;
use super::logprobs::{ChatLogprobs, Names};
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
    pub(super) include_usage: bool,
}

#[derive(Serialize)]
struct Body<'a, C> {
    #[serde(flatten)]
    header: &'a Header,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
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
    pub(super) async fn whole(&self, mut answer: Answer) -> Result<Response, ApiError> {
        let mut content = String::new();
        let mut tool_calls = Vec::new();
        let mut tokens = Vec::new();
        let mut finish_reason = None;
        while let Some(step) = answer.next().await {
            match step? {
                Step::Delta(delta) => {
                    for piece in delta.pieces {
                        take_piece(piece, &mut content, &mut tool_calls);
                    }
                    if self.logprobs {
                        tokens.extend(delta.token);
                    }
                }
                Step::End(reason) => finish_reason = Some(reason.name()),
            }
        }
        let no_content = content.is_empty() && !tool_calls.is_empty();
        let message = Message {
            role: "assistant",
            content: (!no_content).then_some(content),
            refusal: (),
            tool_calls,
        };
        let choice = Choice {
            index: 0,
            message,
            logprobs: self.logprobs(&tokens),
            finish_reason,
        };
        let body = Body {
            header: &Header::new(self.id.clone(), "chat.completion", &self.model),
            choices: vec![choice],
            usage: Some(Some(Usage::of(&answer))),
        };
        Ok(Json(body).into_response())
    }

    /// The same as chunks.
    pub(super) fn streamed(self) -> impl Chunks {
        let header = Header::new(self.id.clone(), "chat.completion.chunk", &self.model);
        ChatChunks { header, reply: self }
    }

    fn logprobs(&self, tokens: &[Reported]) -> Option<ChatLogprobs> {
        let names = Names {
            tokenizer: &self.tokenizer,
            as_ids: self.token_ids,
        };
        self.logprobs.then(|| ChatLogprobs::new(names, tokens))
    }
}

fn take_piece(piece: OutputEvent, content: &mut String, calls: &mut Vec<ToolCall>) {
    match piece {
        OutputEvent::Content(text) => content.push_str(&text),
        OutputEvent::ToolCall { id, name, .. } => calls.push(ToolCall {
            id,
            r#type: "function",
            function: Function {
                name,
                arguments: String::new(),
            },
        }),
        OutputEvent::Arguments { index, text } => {
            if let Some(call) = calls.get_mut(index as usize) {
                call.function.arguments.push_str(&text);
            }
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
        delta: ChunkDelta,
        tokens: Option<&[Reported]>,
        finish_reason: Option<&'static str>,
    ) -> Result<String, ApiError> {
        let choice = ChunkChoice {
            index: 0,
            delta,
            logprobs: tokens.and_then(|tokens| self.reply.logprobs(tokens)),
            finish_reason,
        };
        sse::json(&Body {
            header: &self.header,
            choices: vec![choice],
            usage: null_if(self.reply.include_usage),
        })
    }
}

impl Chunks for ChatChunks {
    fn opening(&self, _choice: usize) -> Result<Option<String>, ApiError> {
        let delta = ChunkDelta {
            role: Some("assistant"),
            content: Some(String::new()),
            tool_calls: Vec::new(),
        };
        self.chunk(delta, None, None).map(Some)
    }

    fn delta(&self, _choice: usize, delta: &Delta) -> Result<Option<String>, ApiError> {
        let tokens = delta.token.as_slice();
        if delta.pieces.is_empty() && (tokens.is_empty() || !self.reply.logprobs) {
            return Ok(None);
        }
        let mut shown = ChunkDelta::default();
        for piece in &delta.pieces {
            show(piece, &mut shown);
        }
        if shown.tool_calls.is_empty() {
            // A chunk with log-probabilities alone still says that it adds no text.
            shown.content.get_or_insert_default();
        }
        self.chunk(shown, Some(tokens), None).map(Some)
    }

    fn end(&self, _choice: usize, reason: FinishReason) -> Result<String, ApiError> {
        self.chunk(ChunkDelta::default(), None, Some(reason.name()))
    }

    fn usage(&self, usage: Usage) -> Result<Option<String>, ApiError> {
        if !self.reply.include_usage {
            return Ok(None);
        }
        let body = Body::<ChunkChoice> {
            header: &self.header,
            choices: Vec::new(),
            usage: Some(Some(usage)),
        };
        sse::json(&body).map(Some)
    }
}

/// Adds a piece to a chunk; several of one kind join.
fn show(piece: &OutputEvent, shown: &mut ChunkDelta) {
    match piece {
        OutputEvent::Content(text) => shown.content.get_or_insert_default().push_str(text),
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
