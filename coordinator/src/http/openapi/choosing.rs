//! The fields that say how tokens are chosen and who goes first, as [`super::fields`] describes the others.

use super::fields::{Field, Kind, field};

/// Fields of both chat and plain completions, beside temperature, `top_p` and seed.
pub(super) const CHOOSING: &[Field] = &[
    field(
        "top_k",
        Kind::Integer(-1, Some(i32::MAX as i64)),
        Some("0"),
        "Keeps so many of the most likely tokens; 0 and -1 keep all.",
    ),
    field(
        "min_p",
        Kind::Number(0.0, 1.0, false),
        Some("0"),
        "Keeps tokens at least so likely, as a share of the most likely one's probability.",
    ),
    field(
        "presence_penalty",
        Kind::Number(-2.0, 2.0, false),
        Some("0"),
        "Taken off the logits of tokens that were generated.",
    ),
    field(
        "frequency_penalty",
        Kind::Number(-2.0, 2.0, false),
        Some("0"),
        "Taken off the logits of generated tokens for each time.",
    ),
    field(
        "repetition_penalty",
        Kind::Number(0.01, 100.0, false),
        Some("1"),
        "Divides positive logits of tokens of prompt and answer, and multiplies negative ones.",
    ),
    field(
        "logit_bias",
        Kind::Named("LogitBias"),
        None,
        "Added to the logits of tokens, by token id.",
    ),
    field(
        "min_tokens",
        Kind::Integer(0, None),
        Some("0"),
        "Generated tokens before which no token ends the answer.",
    ),
    field(
        "stop_token_ids",
        Kind::Named("StopTokenIds"),
        None,
        "Tokens that end the answer.",
    ),
    field(
        "response_format",
        Kind::Named("ResponseFormat"),
        None,
        "What the text is: anything, a JSON object, or JSON of a schema.",
    ),
    field(
        "guided_json",
        Kind::Named("Schema"),
        None,
        "As a response_format of a schema.",
    ),
    field(
        "guided_regex",
        Kind::Text,
        None,
        "A regular expression that matches the whole text.",
    ),
    field(
        "guided_choice",
        Kind::Named("GuidedChoice"),
        None,
        "The texts that the answer is one of.",
    ),
    field(
        "structured_outputs",
        Kind::Named("StructuredOutputs"),
        None,
        "As the guided_ fields.",
    ),
    field(
        "priority",
        Kind::Integer(-100, Some(100)),
        Some("0"),
        "The lower, the earlier it is served.",
    ),
    field(
        "cache_salt",
        Kind::Text,
        None,
        "Only requests of one salt, at most 256 bytes, share what is cached of their prompts.",
    ),
];
