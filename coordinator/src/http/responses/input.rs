//! The `input`, `tools` and `instructions` of a response, as the conversation that they are.

use serde::Deserialize;
use serde_json::value::RawValue;
use tramontane_model::bounded;

use super::super::error::{ApiError, ErrorKind};
use super::super::fields::{Fields, parse, shown};
use crate::text::chat::{
    Content, ContentPart, FunctionCall, FunctionDefinition, MAX_MESSAGES, MAX_TOOLS, Message, Tool, ToolCall,
};
use crate::text::{ChatError, ChatRequest};

const INPUT: &str = "input";
const TOOLS: &str = "tools";

/// A conversation, and where each of its messages began in the input.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) chat: ChatRequest,
    items: Vec<usize>,
    /// System text before it.
    pub(super) instructions: Option<String>,
    /// The tools as they were sent, to be shown again.
    pub(super) tools: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Items(#[serde(deserialize_with = "bounded::sequence::<_, _, MAX_MESSAGES>")] Vec<Item>);

/// An item of any kind.
#[derive(Deserialize)]
struct Item {
    /// `message` if absent.
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    call_id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<Box<RawValue>>,
    #[serde(default)]
    output: Option<Content>,
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Tools(#[serde(deserialize_with = "bounded::sequence::<_, _, MAX_TOOLS>")] Vec<FunctionTool>);

/// A tool: its function's parts stand beside its type.
#[derive(Deserialize)]
struct FunctionTool {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Box<RawValue>>,
    #[serde(default)]
    strict: Option<bool>,
}

impl Input {
    /// Takes them from a body.
    pub(super) fn take(fields: &mut Fields<'_>) -> Result<Self, ApiError> {
        const RIGHT: &str = "it must be a string or an array of items";
        let Some(raw) = fields.raw(INPUT) else {
            return Err(ApiError::invalid(INPUT, format_args!("is missing, {RIGHT}")));
        };
        let (messages, items) = match raw.get().bytes().next() {
            Some(b'"') => (vec![text_message("user", parse(INPUT, raw)?)], vec![0]),
            Some(b'[') => messages(parse::<Items>(INPUT, raw)?.0)?,
            Some(_) | None => {
                return Err(ApiError::invalid(
                    INPUT,
                    format_args!("is of another type, {RIGHT}"),
                ));
            }
        };
        let instructions = fields.take::<String>("instructions")?;
        let tools = fields.raw(TOOLS);
        Ok(Self {
            chat: ChatRequest {
                messages,
                tools: tools.map(read_tools).transpose()?.unwrap_or_default(),
                preamble: instructions.iter().cloned().map(Content::Text).collect(),
            },
            items,
            instructions,
            tools: tools.map(ToOwned::to_owned),
        })
    }

    /// The error of the conversation, about the item that its message began with.
    pub(super) fn error(&self, error: &ChatError) -> ApiError {
        let place = error
            .field
            .strip_prefix("messages[")
            .and_then(|rest| rest.split_once(']'));
        let item =
            place.and_then(|(index, rest)| Some((self.items.get(index.parse::<usize>().ok()?)?, rest)));
        let field = match item {
            Some((item, rest)) => format!("{INPUT}[{item}]{}", rest.replace(".tool_call_id", ".call_id")),
            None => error.field.replacen("messages", INPUT, 1),
        };
        ApiError::invalid(field, &error.fault)
    }
}

fn text_message(role: &str, text: String) -> Message {
    Message {
        role: role.to_owned(),
        content: Some(Content::Text(text)),
        ..Message::default()
    }
}

/// Items as messages: reasoning, a text and calls that follow one another are one turn of the assistant.
fn messages(items: Vec<Item>) -> Result<(Vec<Message>, Vec<usize>), ApiError> {
    let (mut messages, mut places) = (Vec::<Message>::new(), Vec::new());
    for (index, item) in items.into_iter().enumerate() {
        let kind = item.kind.as_deref().unwrap_or("message");
        if kind == "reasoning" && item.content.is_none() {
            // It was not kept: its client has a summary or nothing.
            continue;
        }
        let missing = |name: &str| {
            let field = format!("{INPUT}[{index}].{name}");
            ApiError::invalid(field, format_args!("is missing, an item of type {kind:?} has it"))
        };
        let message = match kind {
            "message" => Message {
                role: item.role.ok_or_else(|| missing("role"))?,
                content: item.content.map(as_text),
                ..Message::default()
            },
            "reasoning" => Message {
                role: "assistant".to_owned(),
                reasoning_content: Some(joined(item.content)),
                ..Message::default()
            },
            "function_call" => Message {
                role: "assistant".to_owned(),
                tool_calls: vec![ToolCall {
                    id: Some(item.call_id.ok_or_else(|| missing("call_id"))?),
                    kind: None,
                    function: FunctionCall {
                        name: item.name.ok_or_else(|| missing("name"))?,
                        arguments: item.arguments,
                    },
                }],
                ..Message::default()
            },
            "function_call_output" => Message {
                role: "tool".to_owned(),
                content: Some(as_text(item.output.ok_or_else(|| missing("output"))?)),
                tool_call_id: Some(item.call_id.ok_or_else(|| missing("call_id"))?),
                ..Message::default()
            },
            other => {
                let problem = format!(
                    "{:?} is not supported, use \"message\", \"reasoning\", \"function_call\" or \
                     \"function_call_output\"",
                    shown(other)
                );
                let field = format!("{INPUT}[{index}].type");
                return Err(ApiError::field(ErrorKind::Unsupported, field, problem));
            }
        };
        match messages.last_mut() {
            Some(last) if goes_on(last, &message) => join(last, message),
            Some(_) | None => {
                messages.push(message);
                places.push(index);
            }
        }
    }
    Ok((messages, places))
}

/// Whether a message is more of the turn of the one before it.
fn goes_on(last: &Message, next: &Message) -> bool {
    let both = last.role == "assistant" && next.role == "assistant";
    let next_comes_later = next.reasoning_content.is_none();
    let has_room = last.tool_calls.is_empty() && last.content.is_none() || next.content.is_none();
    both && next_comes_later && has_room
}

fn join(last: &mut Message, next: Message) {
    if next.content.is_some() {
        last.content = next.content;
    }
    last.tool_calls.extend(next.tool_calls);
}

/// Parts of this API as those of chats.
fn as_text(content: Content) -> Content {
    let part = |part: ContentPart| {
        let kind = match part.kind.as_str() {
            "input_text" | "output_text" | "reasoning_text" => "text".to_owned(),
            _ => part.kind,
        };
        ContentPart { kind, ..part }
    };
    match content {
        Content::Text(text) => Content::Text(text),
        Content::Parts(parts) => Content::Parts(parts.into_iter().map(part).collect()),
    }
}

fn joined(content: Option<Content>) -> String {
    match content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => parts.into_iter().filter_map(|part| part.text).collect(),
    }
}

fn read_tools(raw: &RawValue) -> Result<Vec<Tool>, ApiError> {
    let Tools(tools) = parse(TOOLS, raw)?;
    let each = tools.into_iter().enumerate().map(|(index, tool)| {
        if tool.kind != "function" {
            let problem = format!("{:?} is not supported, use \"function\"", shown(&tool.kind));
            let field = format!("{TOOLS}[{index}].type");
            return Err(ApiError::field(ErrorKind::Unsupported, field, problem));
        }
        Ok(Tool {
            kind: None,
            function: FunctionDefinition {
                name: tool.name.unwrap_or_default(),
                description: tool.description,
                parameters: tool.parameters,
                strict: tool.strict,
            },
        })
    });
    each.collect()
}
