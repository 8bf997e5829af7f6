//! `tool_choice`, and what calls of tools are held to.

use serde::Deserialize;

use super::error::ApiError;
use super::fields::{Fields, parse, shown};
use crate::text::chat::Tool;
use crate::text::constraint::{Callable, Schema};

const FIELD: &str = "tool_choice";

/// Whether the model may call tools, or must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ToolChoice {
    /// It may.
    Auto,
    /// It may not, and is shown none.
    None,
    /// It must; Mistral's name of this is `any`.
    Required,
    /// It must call this function once.
    Function(String),
}

/// How a route writes a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Its parts are within `function`.
    Nested,
    /// Its parts stand beside its type.
    Flat,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Choice {
    Word(String),
    Named(Named),
}

#[derive(Deserialize)]
struct Named {
    r#type: String,
    function: Option<Function>,
    name: Option<String>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
}

impl ToolChoice {
    /// Takes the field and compares it with the tools.
    pub(super) fn take(fields: &mut Fields<'_>, tools: &[Tool], form: Form) -> Result<Self, ApiError> {
        let function = match form {
            Form::Nested => "\"function\": {\"name\": ...}",
            Form::Flat => "\"name\": ...",
        };
        let Some(raw) = fields.raw(FIELD) else {
            return Ok(Self::Auto);
        };
        let unknown = || {
            let problem = format!(
                "{} is no choice of tools, use \"auto\", \"none\", \"required\" or {{\"type\": \"function\", {function}}}",
                shown(raw.get())
            );
            ApiError::invalid(FIELD, problem)
        };
        let choice = match parse::<Choice>(FIELD, raw).map_err(|_| unknown())? {
            Choice::Word(word) => match word.as_str() {
                "auto" => Self::Auto,
                "none" => Self::None,
                "required" | "any" => Self::Required,
                _ => return Err(unknown()),
            },
            Choice::Named(named) if named.r#type == "function" => {
                let name = match form {
                    Form::Nested => named.function.map(|function| function.name),
                    Form::Flat => named.name,
                };
                Self::Function(name.ok_or_else(unknown)?)
            }
            Choice::Named(_) => return Err(unknown()),
        };
        match &choice {
            Self::Required | Self::Function(_) if tools.is_empty() => Err(ApiError::invalid(
                FIELD,
                "asks for a call, but there are no tools",
            )),
            Self::Function(name) if tools.iter().all(|tool| tool.function.name != *name) => {
                let problem = format!("{:?} is not the name of one of the tools", shown(name));
                Err(ApiError::invalid("tool_choice.function.name", problem))
            }
            Self::Auto | Self::None | Self::Required | Self::Function(_) => Ok(choice),
        }
    }

    /// Whether an answer is calls and nothing else.
    pub(super) fn is_forced(&self) -> bool {
        match self {
            Self::Required | Self::Function(_) => true,
            Self::Auto | Self::None => false,
        }
    }

    /// What may be called, with the place of each among the tools.
    pub(super) fn callables(&self, tools: &[Tool]) -> Result<Vec<(usize, Callable)>, ApiError> {
        let each = tools.iter().enumerate().filter(|(_, tool)| match self {
            Self::Function(name) => tool.function.name == *name,
            Self::Required | Self::Auto => true,
            Self::None => false,
        });
        each.map(|(index, tool)| {
            let function = &tool.function;
            let is_held = self.is_forced() || function.strict == Some(true);
            let schema = is_held.then(|| Schema::arguments(function.parameters.as_deref()));
            let arguments = schema.transpose().map_err(|error| {
                let field = parameters_field(index);
                ApiError::invalid(field, error)
            })?;
            let name = function.name.clone();
            Ok((index, Callable { name, arguments }))
        })
        .collect()
    }
}

/// The field of a tool's schema.
pub(super) fn parameters_field(index: usize) -> String {
    format!("tools[{index}].function.parameters")
}
