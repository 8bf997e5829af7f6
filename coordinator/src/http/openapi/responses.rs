//! What `/v1/responses` takes and gives.

use serde_json::{Value, json};

use super::fields::{Field, Kind, field};

/// Fields of responses only.
pub(super) const RESPONSES: &[Field] = &[
    field(
        "input",
        Kind::Named("ResponseInput"),
        None,
        "A text, or the items of a conversation; required.",
    ),
    field("instructions", Kind::Text, None, "System text before the input."),
    field(
        "max_output_tokens",
        Kind::Integer(1, None),
        None,
        "Most tokens to generate.",
    ),
    field(
        "tools",
        Kind::Named("ResponseTools"),
        None,
        "Functions that the model may call.",
    ),
    field(
        "tool_choice",
        Kind::Named("ResponseToolChoice"),
        Some("\"auto\""),
        "Whether the model may call tools, or must.",
    ),
    field(
        "parallel_tool_calls",
        Kind::Boolean,
        Some("true"),
        "Whether an answer may have several calls.",
    ),
    field(
        "top_logprobs",
        Kind::Integer(0, Some(20)),
        None,
        "Alternatives per token.",
    ),
    field(
        "include",
        Kind::Named("Includes"),
        None,
        "message.output_text.logprobs; others are ignored.",
    ),
    field("text", Kind::Named("TextConfig"), None, "The format of the text."),
    field(
        "store",
        Kind::Named("Never"),
        Some("false"),
        "Responses are not kept.",
    ),
    field(
        "background",
        Kind::Named("Never"),
        Some("false"),
        "Responses are not kept.",
    ),
];

/// Schemas that those fields name, and that of a response and its events.
pub(super) fn schemas() -> Value {
    let text = json!({"type": "string"});
    let maybe_text = json!({"type": ["string", "null"]});
    let parts = json!({"anyOf": [maybe_text, {"type": "array", "maxItems": 1024, "items": {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"enum": ["input_text", "output_text", "reasoning_text", "text"]}, "text": maybe_text},
    }}]});
    json!({
        "ResponseInput": {"anyOf": [text, {"type": "array", "minItems": 1, "maxItems": 16384, "items": {
            "$ref": "#/components/schemas/ResponseInputItem"}}]},
        "ResponseInputItem": {
            "type": "object",
            "properties": {
                "type": {"enum": ["message", "reasoning", "function_call", "function_call_output", null]},
                "role": {"enum": ["system", "developer", "user", "assistant", null]},
                "content": parts,
                "call_id": maybe_text,
                "name": maybe_text,
                "arguments": maybe_text,
                "output": parts,
            },
        },
        "ResponseTools": {"type": "array", "maxItems": 512, "items": {
            "type": "object",
            "required": ["type", "name"],
            "properties": {
                "type": {"const": "function"},
                "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
                "description": maybe_text,
                "parameters": {"type": ["object", "null"]},
                "strict": {"type": ["boolean", "null"], "default": false},
            },
        }},
        "ResponseToolChoice": {"anyOf": [
            {"enum": ["auto", "none", "required", "any"]},
            {
                "type": "object",
                "required": ["type", "name"],
                "properties": {"type": {"const": "function"}, "name": text},
            },
        ]},
        "Includes": {"type": "array", "maxItems": 16, "items": text},
        "TextConfig": {"type": "object", "additionalProperties": false, "properties": {
            "format": {"anyOf": [
                {"type": "object", "required": ["type"], "properties": {
                    "type": {"enum": ["text", "json_object", "json_schema"]},
                    "name": maybe_text,
                    "description": maybe_text,
                    "strict": {"type": ["boolean", "null"]},
                    "schema": {"type": ["object", "null"]},
                }},
                {"type": "null"},
            ]},
            "verbosity": maybe_text,
        }},
        "Never": {"const": false},
        "Response": {
            "type": "object",
            "required": ["id", "object", "created_at", "status", "error", "incomplete_details", "output", "usage"],
            "properties": {
                "id": text,
                "object": {"const": "response"},
                "created_at": {"type": "integer", "minimum": 0},
                "status": {"enum": ["in_progress", "completed", "incomplete", "failed"]},
                "output": {"type": "array", "items": {"type": "object", "required": ["type", "id", "status"],
                    "properties": {"type": {"enum": ["message", "reasoning", "function_call"]}}}},
                "usage": {"type": ["object", "null"]},
            },
        },
        "ResponseEvent": {
            "type": "object",
            "required": ["type", "sequence_number"],
            "properties": {"type": text, "sequence_number": {"type": "integer", "minimum": 0}},
        },
    })
}
