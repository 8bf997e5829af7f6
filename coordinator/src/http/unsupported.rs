//! Fields that would change the answer in ways that are not served: refused by name unless they ask for nothing.
//!
//! Every other unknown field is ignored: OpenAI's clients send many that change nothing here.

use serde_json::Value;

use super::error::{ApiError, ErrorKind};
use super::fields::{Fields, parse};

/// A refused field: what it may be all the same, and how to say so.
struct Refused {
    field: &'static str,
    harmless: fn(&Value) -> bool,
    right: &'static str,
}

const fn refused(field: &'static str, harmless: fn(&Value) -> bool, right: &'static str) -> Refused {
    Refused {
        field,
        harmless,
        right,
    }
}

const ONLY_ONE: &str = "is not supported yet other than 1";
const ONLY_FALSE: &str = "is not supported yet other than false";
const ONLY_TRUE: &str = "is not supported yet other than true";
const KEPT_NOWHERE: &str = "is not supported: nothing is kept here, send the whole conversation";
const LEAVE_OUT: &str = "is not supported yet, leave it out";

const REFUSED: &[Refused] = &[
    refused("best_of", |value| value.as_f64() == Some(1.0), ONLY_ONE),
    refused("echo", is_false, ONLY_FALSE),
    refused("suffix", is_empty, LEAVE_OUT),
    refused("bad_words", is_empty, LEAVE_OUT),
    refused("allowed_token_ids", never, LEAVE_OUT),
    refused("include_stop_str_in_output", is_false, ONLY_FALSE),
    refused("skip_special_tokens", is_true, ONLY_TRUE),
    refused("add_special_tokens", is_true, ONLY_TRUE),
    refused("truncate_prompt_tokens", never, LEAVE_OUT),
    refused("use_beam_search", is_false, ONLY_FALSE),
    // Of OpenAI's completions and chats only, which take it before.
    refused("prompt_logprobs", never, LEAVE_OUT),
    refused("top_prompt_logprobs", never, LEAVE_OUT),
    refused("previous_response_id", never, KEPT_NOWHERE),
    refused("conversation", never, KEPT_NOWHERE),
    refused("guided_grammar", never, LEAVE_OUT),
    refused("functions", is_empty, "is not supported, use tools"),
    refused(
        "function_call",
        |value| value.as_str() == Some("none"),
        "is not supported, use tools and tool_choice",
    ),
    refused("parallel_tool_calls", is_true, ONLY_TRUE),
    refused(
        "modalities",
        |value| *value == serde_json::json!(["text"]),
        "is not supported yet other than [\"text\"]",
    ),
    refused("audio", never, LEAVE_OUT),
    refused("web_search_options", never, LEAVE_OUT),
    refused("prompt_embeds", never, LEAVE_OUT),
    // Of chats only: here for the route that has plain prompts.
    refused("random_seed", never, "is not supported here, use seed"),
    refused("safe_prompt", is_false, ONLY_FALSE),
];

fn is_false(value: &Value) -> bool {
    value.as_bool() == Some(false)
}

fn is_true(value: &Value) -> bool {
    value.as_bool() == Some(true)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Null => true,
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn never(_: &Value) -> bool {
    false
}

/// Names of the refused fields.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    REFUSED.iter().map(|refused| refused.field)
}

/// Takes the refused fields; an error names the first that asks for something.
pub(super) fn refuse(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    for Refused {
        field,
        harmless,
        right,
    } in REFUSED
    {
        if let Some(value) = fields.raw(field)
            && !harmless(&parse(field, value)?)
        {
            return Err(ApiError::field(ErrorKind::Unsupported, *field, right));
        }
    }
    Ok(())
}
