//! Functions in a conversation: their names, the calls' arguments, the tools on offer.
//!
//! JSON is read and rendered again, so that what a client sends becomes the text the model knows.

use serde_json::value::RawValue;

use super::budget::Budget;
use super::error::{ChatError, ChatFault, printable};
use super::request::{FunctionDefinition, Tool, ToolCall};
use crate::text::json::{self, Json, JsonError};

const MAX_NAME_BYTES: usize = 64;

/// A call as the format renders it.
pub(super) struct Call {
    message: usize,
    index: usize,
    pub(super) id: String,
    pub(super) name: String,
    /// JSON.
    pub(super) arguments: String,
}

impl Call {
    /// Checks the call at `index` of the message at `message` and renders its arguments.
    pub(super) fn read(
        message: usize,
        index: usize,
        call: &ToolCall,
        budget: &mut Budget,
    ) -> Result<Self, ChatError> {
        let at = |name| format!("messages[{message}].tool_calls[{index}].{name}");
        check_kind(call.kind.as_deref(), || at("type"))?;
        let id = call_id(call.id.as_deref()).ok_or_else(|| ChatError::new(at("id"), ChatFault::NoCallId))?;
        check_name(&call.function.name, || at("function.name"))?;
        let raw = call.function.arguments.as_deref();
        budget.spend(raw.map_or(0, |raw| raw.get().len()), || at("function.arguments"))?;
        let arguments =
            render_arguments(raw).map_err(|fault| ChatError::new(at("function.arguments"), fault))?;
        Ok(Self {
            message,
            index,
            id: id.to_owned(),
            name: call.function.name.clone(),
            arguments,
        })
    }

    /// The call's place in the request.
    pub(super) fn field(&self) -> String {
        format!("messages[{}].tool_calls[{}]", self.message, self.index)
    }
}

/// An id that can join a call and its result.
pub(super) fn call_id(id: Option<&str>) -> Option<&str> {
    id.filter(|id| !id.is_empty() && *id != "null")
}

fn check_kind(kind: Option<&str>, field: impl Fn() -> String) -> Result<(), ChatError> {
    match kind {
        None | Some("function") => Ok(()),
        Some(other) => {
            let fault = ChatFault::UnknownKind {
                found: printable(other),
            };
            Err(ChatError::new(field(), fault))
        }
    }
}

pub(super) fn check_name(name: &str, field: impl Fn() -> String) -> Result<(), ChatError> {
    if is_function_name(name) {
        Ok(())
    } else {
        let fault = ChatFault::FunctionName {
            found: printable(name),
        };
        Err(ChatError::new(field(), fault))
    }
}

/// Whether `name` can name a function: 1 to 64 of a-z, A-Z, 0-9, `_` and `-`.
pub(in crate::text) fn is_function_name(name: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(valid)
}

/// A call's arguments as the model saw them when it made the call: JSON, rendered again.
///
/// Text that is not JSON, which a model can produce, is rendered as a JSON string.
fn render_arguments(raw: Option<&RawValue>) -> Result<String, ChatFault> {
    let Some(raw) = raw else {
        return Ok("{}".to_owned());
    };
    // A raw value is JSON already, so only its depth can be wrong.
    let given = Json::parse(raw.get()).map_err(|_| ChatFault::TooDeep)?;
    let value = match given {
        Json::Null => return Ok("{}".to_owned()),
        Json::String(text) if text.is_empty() => return Ok("{}".to_owned()),
        Json::String(text) => match Json::parse(&text) {
            Ok(value) => value,
            Err(JsonError::Syntax { .. }) => Json::String(text),
            Err(JsonError::TooDeep { .. }) => return Err(ChatFault::TooDeep),
        },
        Json::Object(_) => given,
        Json::Bool(_) | Json::Integer(_) | Json::Float(_) | Json::Array(_) => {
            return Err(ChatFault::Arguments);
        }
    };
    let mut rendered = String::new();
    value.render(&mut rendered);
    Ok(rendered)
}

/// The tools as the JSON array the format has; none if there are none.
pub(super) fn render_tools(tools: &[Tool], budget: &mut Budget) -> Result<Option<String>, ChatError> {
    if tools.is_empty() {
        return Ok(None);
    }
    let mut rendered = String::from("[");
    for (index, tool) in tools.iter().enumerate() {
        check_kind(tool.kind.as_deref(), || format!("tools[{index}].type"))?;
        check_name(&tool.function.name, || format!("tools[{index}].function.name"))?;
        if index > 0 {
            rendered.push_str(", ");
        }
        let description = tool.function.description.as_deref().map_or(0, str::len);
        let parameters = tool
            .function
            .parameters
            .as_deref()
            .map_or(0, |raw| raw.get().len());
        budget.spend(description + parameters, || format!("tools[{index}].function"))?;
        render_function(&tool.function, &mut rendered)
            .map_err(|fault| ChatError::new(format!("tools[{index}].function.parameters"), fault))?;
    }
    rendered.push(']');
    Ok(Some(rendered))
}

fn render_function(function: &FunctionDefinition, out: &mut String) -> Result<(), ChatFault> {
    out.push_str(r#"{"type": "function", "function": {"name": "#);
    json::render_string(&function.name, out);
    out.push_str(r#", "description": "#);
    json::render_string(function.description.as_deref().unwrap_or_default(), out);
    out.push_str(r#", "parameters": "#);
    let parameters = function.parameters.as_deref().map(|raw| Json::parse(raw.get()));
    match parameters.transpose().map_err(|_| ChatFault::TooDeep)? {
        None | Some(Json::Null) => out.push_str("{}"),
        Some(schema @ Json::Object(_)) => schema.render(out),
        Some(Json::Bool(_) | Json::Integer(_) | Json::Float(_) | Json::String(_) | Json::Array(_)) => {
            return Err(ChatFault::Parameters);
        }
    }
    out.push_str("}}");
    Ok(())
}
