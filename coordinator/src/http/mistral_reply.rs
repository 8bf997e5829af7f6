//! Chat answers in the shapes of Mistral's API: reasoning as thinking chunks, calls whole, usage in the last chunk.
//!
//! A text without reasoning is a plain string, so that OpenAI's clients can read these answers too.

use std::collections::BTreeMap;

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use serde::Serialize;

use super::answer::{Answer, Delta, FinishReason, Reported};
use super::chat_reply::ChatReply;
use super::collected::{Call, Collected, Part, collect};
use super::error::ApiError;
use super::logprobs::ChatLogprobs;
use super::prompt_scores::PromptLogprobs;
use super::reply::{Header, Usage};
use super::sse::{self, Chunks};
use crate::text::OutputEvent;

#[derive(Serialize)]
struct Body<'a, C> {
    #[serde(flatten)]
    header: &'a Header,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Message,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: Content,
    tool_calls: Option<Vec<ToolCall>>,
    prefix: bool,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: ChunkDelta,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct ChunkDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    content: Content,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Chunks(Vec<ContentChunk>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum ContentChunk {
    Text {
        text: String,
    },
    Thinking {
        thinking: [ThinkingText; 1],
        /// Left out of a stream's chunks: a client may send them back as they came.
        #[serde(skip_serializing_if = "Option::is_none")]
        closed: Option<bool>,
    },
}

#[derive(Serialize)]
struct ThinkingText {
    r#type: &'static str,
    text: String,
}

#[derive(Serialize)]
struct ToolCall {
    index: usize,
    id: String,
    r#type: &'static str,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    name: String,
    arguments: String,
}

impl Content {
    /// A string if there is no reasoning among the parts.
    fn new(parts: Vec<Part>, closed: Option<bool>) -> Self {
        let is_text = |part: &Part| match part {
            Part::Text(_) => true,
            Part::Reasoning(_) => false,
        };
        if parts.iter().all(is_text) {
            let texts = parts.into_iter().map(|part| match part {
                Part::Text(text) | Part::Reasoning(text) => text,
            });
            return Self::Text(texts.collect());
        }
        let chunk = |part| match part {
            Part::Text(text) => ContentChunk::Text { text },
            Part::Reasoning(text) => ContentChunk::Thinking {
                thinking: [ThinkingText { r#type: "text", text }],
                closed,
            },
        };
        Self::Chunks(parts.into_iter().map(chunk).collect())
    }
}

fn tool_call((index, call): (usize, Call)) -> ToolCall {
    ToolCall {
        index,
        id: call.id,
        r#type: "function",
        function: Function {
            name: call.name,
            arguments: call.arguments,
        },
    }
}

/// The whole response.
pub(super) async fn whole(reply: &ChatReply, answers: Vec<Answer>) -> Result<Response, ApiError> {
    let all = answers.into_iter().map(|answer| collect(answer, reply.logprobs));
    let all = try_join_all(all).await?;
    let mut usage = Usage::default();
    all.iter().for_each(|choice| usage.add(choice.usage));
    let prompt_logprobs = reply.prompt_logprobs(&all);
    let each = all.into_iter().enumerate();
    let body = Body {
        header: &Header::new(reply.id.clone(), "chat.completion", &reply.model),
        choices: each
            .map(|(index, collected)| choice(reply, index, collected))
            .collect(),
        usage: Some(usage),
        prompt_logprobs,
    };
    Ok(Json(body).into_response())
}

fn choice(reply: &ChatReply, index: usize, collected: Collected) -> Choice {
    let logprobs = reply.logprobs(&collected.tokens);
    let calls: Vec<_> = collected.calls.into_iter().enumerate().map(tool_call).collect();
    Choice {
        index,
        message: Message {
            role: "assistant",
            content: Content::new(collected.parts, Some(true)),
            tool_calls: (!calls.is_empty()).then_some(calls),
            prefix: false,
        },
        logprobs,
        finish_reason: collected.finish.map(FinishReason::name),
    }
}

/// The same as chunks.
pub(super) fn streamed(reply: ChatReply) -> impl Chunks {
    let header = Header::new(reply.id.clone(), "chat.completion.chunk", &reply.model);
    MistralChunks {
        header,
        reply,
        calls: BTreeMap::new(),
    }
}

struct MistralChunks {
    header: Header,
    reply: ChatReply,
    /// By choice, the call that is still being written: clients of this API read calls whole.
    calls: BTreeMap<usize, (usize, Call)>,
}

impl MistralChunks {
    fn chunk(
        &self,
        index: usize,
        delta: ChunkDelta,
        tokens: Option<&[Reported]>,
        finish: Option<(FinishReason, Option<Usage>)>,
    ) -> Result<String, ApiError> {
        let choice = ChunkChoice {
            index,
            delta,
            logprobs: tokens.and_then(|tokens| self.reply.logprobs(tokens)),
            finish_reason: finish.map(|(reason, _)| reason.name()),
        };
        sse::json(&Body {
            header: &self.header,
            choices: vec![choice],
            usage: finish.and_then(|(_, usage)| usage),
            prompt_logprobs: None,
        })
    }

    /// Takes in a piece; gives out the text that it adds, or the call that it ends.
    fn take(&mut self, choice: usize, piece: &OutputEvent, parts: &mut Vec<Part>, calls: &mut Vec<ToolCall>) {
        match piece {
            OutputEvent::Content(text) => parts.push(Part::Text(text.clone())),
            OutputEvent::Reasoning(text) => parts.push(Part::Reasoning(text.clone())),
            OutputEvent::ToolCall { index, id, name } => {
                let call = Call {
                    id: id.clone(),
                    name: name.clone(),
                    arguments: String::new(),
                };
                let ended = self.calls.insert(choice, (*index as usize, call));
                calls.extend(ended.map(tool_call));
            }
            OutputEvent::Arguments { text, .. } => {
                if let Some((_, call)) = self.calls.get_mut(&choice) {
                    call.arguments.push_str(text);
                }
            }
        }
    }
}

impl Chunks for MistralChunks {
    fn opening(&self, choice: usize) -> Result<Option<String>, ApiError> {
        let delta = ChunkDelta {
            role: Some("assistant"),
            content: Content::Text(String::new()),
            tool_calls: Vec::new(),
        };
        self.chunk(choice, delta, None, None).map(Some)
    }

    fn delta(&mut self, choice: usize, delta: &Delta) -> Result<Option<String>, ApiError> {
        let (mut parts, mut calls) = (Vec::new(), Vec::new());
        for piece in &delta.pieces {
            self.take(choice, piece, &mut parts, &mut calls);
        }
        let tokens = delta.tokens.as_slice();
        let has_logprobs = self.reply.logprobs && !tokens.is_empty();
        if parts.is_empty() && calls.is_empty() && !has_logprobs {
            return Ok(None);
        }
        let delta = ChunkDelta {
            role: None,
            content: Content::new(parts, None),
            tool_calls: calls,
        };
        self.chunk(choice, delta, Some(tokens), None).map(Some)
    }

    fn end(&mut self, choice: usize, reason: FinishReason, all: Option<Usage>) -> Result<String, ApiError> {
        let calls = self.calls.remove(&choice).map(tool_call);
        let delta = ChunkDelta {
            role: None,
            content: Content::Text(String::new()),
            tool_calls: calls.into_iter().collect(),
        };
        self.chunk(choice, delta, None, Some((reason, all)))
    }

    fn usage(&self, _usage: Usage) -> Result<Option<String>, ApiError> {
        // The last chunk has it already.
        Ok(None)
    }
}
