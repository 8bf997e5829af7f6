//! Every field that request bodies may have: type, range, default.
//!
//! Kept by hand beside the parsers, which read fields one by one; a test compares this table with the fields that they
//! ask for, with the types they take and the ranges they hold to.

use serde_json::{Value, json};
use tramontane_model::sampling::{MAX_LOGIT_BIASES, MAX_TOP_LOGPROBS};

use super::super::ModelCard;
use super::super::choices::MAX_N;
use super::super::prompt::MAX_PROMPTS;
use super::super::sampling::MAX_STOP_TOKEN_IDS;
use crate::text::constraint::MAX_CHOICES;

/// A field of a request.
pub(in crate::http) struct Field {
    pub(in crate::http) name: &'static str,
    pub(in crate::http) kind: Kind,
    /// As JSON; none if absence means something of its own.
    default: Option<&'static str>,
    about: &'static str,
}

/// What a field takes, besides null, which is as good as absent.
#[derive(Clone, Copy)]
pub(in crate::http) enum Kind {
    /// A whole number; no upper limit of its own means the model's context.
    Integer(i64, Option<i64>),
    /// A number: bounds, and whether the lower one is left out.
    Number(f64, f64, bool),
    /// A whole number of at most 64 bits.
    Seed,
    Boolean,
    Text,
    /// The name of the served model.
    Model,
    /// One of these.
    Words(&'static [&'static str]),
    /// A schema by name.
    Named(&'static str),
}

pub(super) const fn field(
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    about: &'static str,
) -> Field {
    Field {
        name,
        kind,
        default,
        about,
    }
}

/// Fields of both chat and plain completions.
pub(in crate::http) const SHARED: &[Field] = &[
    field("model", Kind::Model, None, "Name of the served model; required."),
    field(
        "temperature",
        Kind::Number(0.0, 2.0, false),
        Some("1"),
        "Divides the logits; 0 is greedy.",
    ),
    field(
        "top_p",
        Kind::Number(0.0, 1.0, true),
        Some("1"),
        "Keeps the most likely tokens up to this sum.",
    ),
    field(
        "seed",
        Kind::Seed,
        None,
        "Key of the generator: one request, the same tokens. Drawn if absent.",
    ),
    field(
        "stop",
        Kind::Named("Stop"),
        None,
        "Strings that end the text before them.",
    ),
    field(
        "stream",
        Kind::Boolean,
        Some("false"),
        "Send the answer as it is made, as server-sent events.",
    ),
    field(
        "stream_options",
        Kind::Named("StreamOptions"),
        None,
        "Only where stream is true.",
    ),
    field(
        "ignore_eos",
        Kind::Boolean,
        Some("false"),
        "Go on past the end token.",
    ),
    field(
        "return_tokens_as_token_ids",
        Kind::Boolean,
        Some("false"),
        "Name tokens in logprobs as token_id:N.",
    ),
    field(
        "user",
        Kind::Text,
        None,
        "A label of at most 512 characters; ignored.",
    ),
    field("metadata", Kind::Named("Metadata"), None, "Labels; ignored."),
];

/// Fields of both that limit what is generated.
pub(in crate::http) const LIMITS: &[Field] = &[
    field(
        "max_completion_tokens",
        Kind::Integer(1, None),
        None,
        "The same as max_tokens.",
    ),
    field(
        "n",
        Kind::Integer(1, Some(MAX_N as i64)),
        Some("1"),
        "Choices for each prompt; 128 in all at most.",
    ),
];

/// Fields of chats only.
pub(in crate::http) const CHAT: &[Field] = &[
    field(
        "max_tokens",
        Kind::Integer(1, None),
        None,
        "Most tokens to generate.",
    ),
    field(
        "messages",
        Kind::Named("Messages"),
        None,
        "The conversation, oldest first; required.",
    ),
    field(
        "tools",
        Kind::Named("Tools"),
        None,
        "Functions that the model may call.",
    ),
    field(
        "tool_choice",
        Kind::Named("ToolChoice"),
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
        "logprobs",
        Kind::Boolean,
        Some("false"),
        "Report the log-probability of each token.",
    ),
    field(
        "top_logprobs",
        Kind::Integer(0, Some(20)),
        None,
        "Alternatives per token; only where logprobs is true.",
    ),
    PROMPT_LOGPROBS,
    field("random_seed", Kind::Seed, None, "Mistral's name of seed."),
    field(
        "safe_prompt",
        Kind::Boolean,
        Some("false"),
        "Put Mistral's guardrail prompt first.",
    ),
    field(
        "prompt_mode",
        Kind::Words(&["reasoning"]),
        None,
        "Put Mistral's reasoning prompt first.",
    ),
];

const PROMPT_LOGPROBS: Field = field(
    "prompt_logprobs",
    Kind::Integer(0, Some(MAX_TOP_LOGPROBS as i64)),
    None,
    "Report the log-probabilities of the prompt's tokens with so many alternatives; not where stream is true.",
);

/// Fields of plain completions only.
pub(in crate::http) const COMPLETION: &[Field] = &[
    field(
        "prompt",
        Kind::Named("Prompt"),
        None,
        "What to continue; required.",
    ),
    field(
        "max_tokens",
        Kind::Integer(0, None),
        None,
        "Most tokens to generate; 0 only where echo or prompt_logprobs ask for the prompt.",
    ),
    field(
        "echo",
        Kind::Boolean,
        Some("false"),
        "Begin the text with the prompt.",
    ),
    field(
        "logprobs",
        Kind::Integer(0, Some(20)),
        None,
        "Report log-probabilities with so many alternatives; with echo also those of the prompt.",
    ),
    PROMPT_LOGPROBS,
];

/// Fields of `/tokenize`.
pub(in crate::http) const TOKENIZE: &[Field] = &[
    field("model", Kind::Model, None, "Name of the served model."),
    field("prompt", Kind::Text, None, "A text; or else messages."),
    field(
        "messages",
        Kind::Named("Messages"),
        None,
        "A conversation; or else prompt.",
    ),
    field(
        "tools",
        Kind::Named("Tools"),
        None,
        "Functions shown with the conversation.",
    ),
    field(
        "add_special_tokens",
        Kind::Boolean,
        Some("true"),
        "Whether <s> comes before a prompt.",
    ),
    field(
        "return_token_strs",
        Kind::Boolean,
        Some("false"),
        "Name the tokens too.",
    ),
];

/// Fields of `/detokenize`.
pub(in crate::http) const DETOKENIZE: &[Field] = &[
    field("model", Kind::Model, None, "Name of the served model."),
    field("tokens", Kind::Named("TokenIds"), None, "Token ids; required."),
    field(
        "skip_special_tokens",
        Kind::Boolean,
        Some("true"),
        "Leave special tokens out of the text.",
    ),
];

impl Field {
    /// The field's JSON schema in a server of this model.
    pub(super) fn schema(&self, model: &ModelCard) -> Value {
        let mut schema = match self.kind {
            Kind::Integer(low, high) => {
                json!({"type": ["integer", "null"], "minimum": low, "maximum": high.unwrap_or(model.max_context.into())})
            }
            Kind::Number(low, high, false) => {
                json!({"type": ["number", "null"], "minimum": low, "maximum": high})
            }
            Kind::Number(low, high, true) => {
                json!({"type": ["number", "null"], "exclusiveMinimum": low, "maximum": high})
            }
            Kind::Seed => json!({"type": ["integer", "null"], "minimum": i64::MIN, "maximum": u64::MAX}),
            Kind::Boolean => json!({"type": ["boolean", "null"]}),
            Kind::Text => json!({"type": ["string", "null"]}),
            Kind::Model => json!({"enum": [model.name, null]}),
            Kind::Words(words) => {
                let words = words.iter().map(|word| json!(word));
                json!({"enum": words.chain([Value::Null]).collect::<Vec<_>>()})
            }
            Kind::Named(name) => {
                let named = json!({"$ref": format!("#/components/schemas/{name}")});
                json!({"anyOf": [named, {"type": "null"}]})
            }
        };
        schema["description"] = json!(self.about);
        if let Some(default) = self
            .default
            .and_then(|text| serde_json::from_str::<Value>(text).ok())
        {
            schema["default"] = default;
        }
        schema
    }
}

/// Takes null from what a field takes: it is as good as absent, and the field is required.
pub(super) fn without_null(schema: &mut Value) {
    for keyword in ["enum", "type"] {
        if let Some(all) = schema.get_mut(keyword).and_then(Value::as_array_mut) {
            all.retain(|one| !one.is_null() && one != "null");
        }
    }
    if let Some(all) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        all.retain(|one| one["type"] != "null");
    }
}

/// Schemas that fields name, for a vocabulary of this size.
pub(super) fn named(vocab_size: usize) -> Value {
    let last = vocab_size.saturating_sub(1);
    let ids =
        json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": last}, "minItems": 1});
    let text_part = json!({
        "type": "object",
        "required": ["type"],
        "properties": {
            "type": {"enum": ["text", "thinking"]},
            "text": {"type": ["string", "null"]},
            "thinking": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "maxItems": 1024, "items": {
                "type": "object",
                "required": ["type", "text"],
                "properties": {"type": {"const": "text"}, "text": {"type": ["string", "null"]}},
            }}]},
            "closed": {"type": ["boolean", "null"], "default": true},
        },
    });
    json!({
        "Stop": {"anyOf": [
            {"type": "string", "minLength": 1, "maxLength": 256},
            {"type": "array", "maxItems": 16, "items": {"type": "string", "minLength": 1, "maxLength": 256}},
        ]},
        "StreamOptions": {
            "type": "object",
            "properties": {"include_usage": {"type": ["boolean", "null"], "default": false}},
        },
        "LogitBias": {
            "type": "object",
            "maxProperties": MAX_LOGIT_BIASES,
            "propertyNames": {"pattern": "^[0-9]+$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        },
        "Schema": {"type": ["object", "string"], "description": "A JSON schema, or the text of one."},
        "GuidedChoice": {"type": "array", "minItems": 1, "maxItems": MAX_CHOICES, "items": {"type": "string"}},
        "ResponseFormat": {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"enum": ["text", "json_object", "json_schema"]},
                "json_schema": {
                    "description": "With its schema where the type is json_schema.",
                    "type": ["object", "null"],
                    "properties": {
                        "name": {"type": ["string", "null"]},
                        "description": {"type": ["string", "null"]},
                        "schema": {"type": ["object", "null"]},
                        "strict": {"type": ["boolean", "null"]},
                    },
                },
            },
        },
        "StructuredOutputs": {
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "json": {"anyOf": [{"$ref": "#/components/schemas/Schema"}, {"type": "null"}]},
                "json_object": {"type": ["boolean", "null"]},
                "regex": {"type": ["string", "null"]},
                "choice": {"anyOf": [{"$ref": "#/components/schemas/GuidedChoice"}, {"type": "null"}]},
            },
        },
        "ToolChoice": {"anyOf": [
            {"enum": ["auto", "none", "required", "any"]},
            {
                "type": "object",
                "required": ["type", "function"],
                "properties": {
                    "type": {"const": "function"},
                    "function": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {"name": {"type": "string"}},
                    },
                },
            },
        ]},
        "Metadata": {
            "type": "object",
            "maxProperties": 16,
            "propertyNames": {"maxLength": 64},
            "additionalProperties": {"type": ["string", "number", "boolean", "null"], "maxLength": 512},
        },
        "TokenIds": ids,
        "StopTokenIds": {"type": "array", "maxItems": MAX_STOP_TOKEN_IDS, "items": ids["items"]},
        "Prompt": {"anyOf": [
            {"type": "string"},
            {"$ref": "#/components/schemas/TokenIds"},
            {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {"type": "string"}},
            {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {
                "$ref": "#/components/schemas/TokenIds"}},
        ]},
        "Messages": {"type": "array", "minItems": 1, "maxItems": 16384, "items": {
            "$ref": "#/components/schemas/Message"}},
        "Message": {
            "type": "object",
            "required": ["role"],
            "properties": {
                "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
                "content": {"anyOf": [
                    {"type": ["string", "null"]},
                    {"type": "array", "maxItems": 1024, "items": text_part},
                ]},
                "reasoning_content": {"type": ["string", "null"]},
                "tool_calls": {"type": ["array", "null"], "maxItems": 256, "items": {
                    "$ref": "#/components/schemas/ToolCall"}},
                "tool_call_id": {"type": ["string", "null"]},
                "name": {"type": ["string", "null"]},
                "prefix": {"type": ["boolean", "null"], "default": false},
            },
        },
        "Tools": {"type": "array", "maxItems": 512, "items": {
            "type": "object",
            "required": ["function"],
            "properties": {
                "type": {"const": "function"},
                "function": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
                        "description": {"type": ["string", "null"]},
                        "parameters": {"type": ["object", "null"]},
                        "strict": {"type": ["boolean", "null"], "default": false},
                    },
                },
            },
        }},
        "ToolCall": {
            "type": "object",
            "required": ["id", "function"],
            "properties": {
                "id": {"type": "string"},
                "type": {"const": "function"},
                "function": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string"},
                        "arguments": {"type": ["string", "object", "null"]},
                    },
                },
            },
        },
    })
}
