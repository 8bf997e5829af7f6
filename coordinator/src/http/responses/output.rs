//! The items of a response as they grow, and the events that tell of it.
//!
//! One writer for both: a whole response is what a stream's events have built. No connection here.

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::answer::{Delta, FinishReason};
use super::super::chat_reply::ChatReply;
use super::super::logprobs::ChatToken;
use super::super::reply::{ResponseUsage, Usage};
use crate::text::OutputEvent;

/// A response as it stands.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Response {
    pub(super) id: String,
    object: &'static str,
    created_at: u64,
    status: &'static str,
    background: bool,
    error: Option<Failure>,
    incomplete_details: Option<Incomplete>,
    output: Vec<Item>,
    usage: Option<ResponseUsage>,
    previous_response_id: (),
    store: bool,
    truncation: &'static str,
    #[serde(flatten)]
    shown: Shown,
}

/// What a response repeats of its request.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Shown {
    pub(super) model: String,
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<u32>,
    pub(super) parallel_tool_calls: bool,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    pub(super) top_logprobs: u32,
    pub(super) tool_choice: Value,
    pub(super) tools: Box<RawValue>,
    pub(super) text: TextConfig,
    pub(super) metadata: Box<RawValue>,
}

/// How the text is formatted.
#[derive(Clone, Debug, Serialize)]
pub(super) struct TextConfig {
    pub(super) format: Box<RawValue>,
}

#[derive(Clone, Debug, Serialize)]
struct Failure {
    code: &'static str,
    message: String,
}

#[derive(Clone, Debug, Serialize)]
struct Incomplete {
    reason: &'static str,
}

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Item {
    Reasoning {
        id: String,
        summary: [(); 0],
        content: Vec<Part>,
        status: &'static str,
    },
    Message {
        id: String,
        role: &'static str,
        content: Vec<Part>,
        status: &'static str,
    },
    FunctionCall {
        id: String,
        call_id: String,
        name: String,
        arguments: String,
        status: &'static str,
    },
}

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    ReasoningText {
        text: String,
    },
    OutputText {
        text: String,
        annotations: [(); 0],
        logprobs: Vec<ChatToken>,
    },
}

const IN_PROGRESS: &str = "in_progress";
const COMPLETED: &str = "completed";
const INCOMPLETE: &str = "incomplete";

/// What an event may say; what does not belong to it is left out.
#[derive(Default, Serialize)]
struct Body<'a> {
    r#type: &'static str,
    sequence_number: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'a Response>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item: Option<&'a Item>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<&'a Part>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<&'a [ChatToken]>,
}

/// An event: its name, and its data as JSON.
pub(super) type Told = (&'static str, String);

/// Writes a response.
pub(super) struct Writer {
    response: Response,
    reply: ChatReply,
    events: Vec<Told>,
    sequence_number: u64,
    /// Whether the last item still grows.
    is_open: bool,
    /// Tokens that no text has come of yet.
    tokens: Vec<ChatToken>,
    reasoning_tokens: u64,
}

impl Writer {
    pub(super) fn new(reply: ChatReply, created_at: u64, shown: Shown) -> Self {
        Self {
            response: Response {
                id: format!("resp_{}", reply.id),
                object: "response",
                created_at,
                status: IN_PROGRESS,
                background: false,
                error: None,
                incomplete_details: None,
                output: Vec::new(),
                usage: None,
                previous_response_id: (),
                store: false,
                truncation: "disabled",
                shown,
            },
            reply,
            events: Vec::new(),
            sequence_number: 0,
            is_open: false,
            tokens: Vec::new(),
            reasoning_tokens: 0,
        }
    }

    /// What a stream opens with.
    pub(super) fn open(&mut self) {
        self.tell_response("response.created");
        self.tell_response("response.in_progress");
    }

    /// Takes in more of the answer.
    pub(super) fn take(&mut self, delta: &Delta) {
        if let Some(logprobs) = self.reply.logprobs(&delta.tokens) {
            self.tokens.extend(logprobs.content);
        }
        let reasons = delta.pieces.iter().any(|piece| match piece {
            OutputEvent::Reasoning(_) => true,
            OutputEvent::Content(_) | OutputEvent::ToolCall { .. } | OutputEvent::Arguments { .. } => false,
        });
        if reasons {
            self.reasoning_tokens += delta.tokens.len() as u64;
        }
        for piece in &delta.pieces {
            match piece {
                OutputEvent::Content(text) => self.content(text),
                OutputEvent::Reasoning(text) => self.reasoning(text),
                OutputEvent::ToolCall { id, name, .. } => self.call(id, name),
                OutputEvent::Arguments { text, .. } => self.arguments(text),
            }
        }
    }

    /// Ends the response.
    pub(super) fn end(&mut self, reason: FinishReason, usage: Usage) {
        let (status, event) = match reason {
            FinishReason::Length => {
                let reason = "max_output_tokens";
                self.response.incomplete_details = Some(Incomplete { reason });
                (INCOMPLETE, "response.incomplete")
            }
            FinishReason::Stop | FinishReason::ToolCalls => (COMPLETED, "response.completed"),
        };
        self.close(status);
        self.response.status = status;
        self.response.usage = Some(usage.of_response(self.reasoning_tokens));
        self.tell_response(event);
    }

    /// Ends the response for a fault of the server's.
    pub(super) fn fail(&mut self, message: String) {
        self.close(INCOMPLETE);
        let code = "server_error";
        self.response.error = Some(Failure { code, message });
        self.response.status = "failed";
        self.tell_response("response.failed");
    }

    /// The events since the last call.
    pub(super) fn events(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.events)
    }

    /// The response as it stands.
    pub(super) fn into_response(self) -> Response {
        self.response
    }

    fn content(&mut self, text: &str) {
        if !(self.is_open && matches!(self.response.output.last(), Some(Item::Message { .. }))) {
            self.begin("msg", |id| Item::Message {
                id,
                role: "assistant",
                content: Vec::new(),
                status: IN_PROGRESS,
            });
            self.begin_part(Part::OutputText {
                text: String::new(),
                annotations: [],
                logprobs: Vec::new(),
            });
        }
        let new = std::mem::take(&mut self.tokens);
        self.tell("response.output_text.delta", |_| Body {
            content_index: Some(0),
            delta: Some(text),
            logprobs: Some(&new),
            ..Body::default()
        });
        if let Some(Item::Message { content, .. }) = self.response.output.last_mut()
            && let Some(Part::OutputText {
                text: all, logprobs, ..
            }) = content.last_mut()
        {
            all.push_str(text);
            logprobs.extend(new);
        }
    }

    fn reasoning(&mut self, text: &str) {
        if !(self.is_open && matches!(self.response.output.last(), Some(Item::Reasoning { .. }))) {
            self.begin("rs", |id| Item::Reasoning {
                id,
                summary: [],
                content: Vec::new(),
                status: IN_PROGRESS,
            });
            self.begin_part(Part::ReasoningText { text: String::new() });
        }
        self.tokens.clear();
        self.tell("response.reasoning_text.delta", |_| Body {
            content_index: Some(0),
            delta: Some(text),
            ..Body::default()
        });
        if let Some(Item::Reasoning { content, .. }) = self.response.output.last_mut()
            && let Some(Part::ReasoningText { text: all }) = content.last_mut()
        {
            all.push_str(text);
        }
    }

    fn call(&mut self, call_id: &str, name: &str) {
        self.begin("fc", |id| Item::FunctionCall {
            id,
            call_id: call_id.to_owned(),
            name: name.to_owned(),
            arguments: String::new(),
            status: IN_PROGRESS,
        });
    }

    fn arguments(&mut self, text: &str) {
        self.tokens.clear();
        self.tell("response.function_call_arguments.delta", |_| Body {
            delta: Some(text),
            ..Body::default()
        });
        if let Some(Item::FunctionCall { arguments, .. }) = self.response.output.last_mut() {
            arguments.push_str(text);
        }
    }

    /// Begins an item after ending the one before it.
    fn begin(&mut self, prefix: &str, item: impl FnOnce(String) -> Item) {
        self.close(COMPLETED);
        let id = format!("{prefix}_{}_{}", self.reply.id, self.response.output.len());
        self.response.output.push(item(id));
        self.is_open = true;
        self.tell("response.output_item.added", |item| Body {
            item_id: None,
            item: Some(item),
            ..Body::default()
        });
    }

    fn begin_part(&mut self, part: Part) {
        self.tell("response.content_part.added", |_| Body {
            content_index: Some(0),
            part: Some(&part),
            ..Body::default()
        });
        if let Some(Item::Message { content, .. } | Item::Reasoning { content, .. }) =
            self.response.output.last_mut()
        {
            content.push(part);
        }
    }

    /// Ends the item that is open, if one is.
    fn close(&mut self, now: &'static str) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let rest = std::mem::take(&mut self.tokens);
        match self.response.output.last_mut() {
            Some(Item::Message { content, status, .. }) => {
                if let Some(Part::OutputText { logprobs, .. }) = content.last_mut() {
                    logprobs.extend(rest);
                }
                *status = now;
            }
            Some(Item::Reasoning { status, .. } | Item::FunctionCall { status, .. }) => *status = now,
            None => {}
        }
        self.tell_end();
        self.tell("response.output_item.done", |item| Body {
            item: Some(item),
            ..Body::default()
        });
    }

    /// Tells what the last item has become, before its end is told.
    fn tell_end(&mut self) {
        match self.response.output.last().cloned() {
            Some(Item::Message { content, .. } | Item::Reasoning { content, .. }) => {
                let Some(part) = content.last() else { return };
                match part {
                    Part::OutputText { text, logprobs, .. } => {
                        self.tell("response.output_text.done", |_| Body {
                            content_index: Some(0),
                            text: Some(text),
                            logprobs: Some(logprobs),
                            ..Body::default()
                        });
                    }
                    Part::ReasoningText { text } => {
                        self.tell("response.reasoning_text.done", |_| Body {
                            content_index: Some(0),
                            text: Some(text),
                            ..Body::default()
                        });
                    }
                }
                self.tell("response.content_part.done", |_| Body {
                    content_index: Some(0),
                    part: Some(part),
                    ..Body::default()
                });
            }
            Some(Item::FunctionCall { name, arguments, .. }) => {
                self.tell("response.function_call_arguments.done", |_| Body {
                    name: Some(&name),
                    arguments: Some(&arguments),
                    ..Body::default()
                });
            }
            None => {}
        }
    }

    /// Tells of the last item.
    fn tell<'a>(&'a mut self, kind: &'static str, body: impl FnOnce(&'a Item) -> Body<'a>) {
        let Some(item) = self.response.output.last() else {
            return;
        };
        let (Item::Message { id, .. } | Item::Reasoning { id, .. } | Item::FunctionCall { id, .. }) = item;
        let body = body(item);
        let item_id = body.item.is_none().then_some(id.as_str());
        let told = Body {
            r#type: kind,
            sequence_number: self.sequence_number,
            item_id,
            output_index: Some(self.response.output.len() - 1),
            ..body
        };
        // An event always has a text.
        self.events
            .extend(serde_json::to_string(&told).map(|data| (kind, data)));
        self.sequence_number += 1;
    }

    /// Tells of the whole response.
    fn tell_response(&mut self, kind: &'static str) {
        let told = Body {
            r#type: kind,
            sequence_number: self.sequence_number,
            response: Some(&self.response),
            ..Body::default()
        };
        self.events
            .extend(serde_json::to_string(&told).map(|data| (kind, data)));
        self.sequence_number += 1;
    }
}
