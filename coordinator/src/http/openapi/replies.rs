//! Schemas of replies, streams and errors.

use serde_json::{Value, json};

/// All of them, by name.
pub(super) fn schemas() -> Value {
    let text = json!({"type": "string"});
    let number = json!({"type": "integer", "minimum": 0});
    let finish = json!({"enum": ["stop", "length", "tool_calls", null]});
    let usage = json!({"anyOf": [{"$ref": "#/components/schemas/Usage"}, {"type": "null"}]});
    let logprobs = json!({"type": ["object", "null"]});
    let answer = |object: &str, choice: Value| {
        json!({
            "type": "object",
            "required": ["id", "object", "created", "model", "choices"],
            "properties": {
                "id": text,
                "object": {"const": object},
                "created": number,
                "model": text,
                "choices": {"type": "array", "items": {"type": "object", "required": ["index"], "properties": choice}},
                "usage": usage,
            },
        })
    };
    let calls = json!({"type": ["array", "null"], "items": {"type": "object"}});
    let message = |content: Value| {
        json!({"type": "object", "properties": {
            "role": {"const": "assistant"},
            "content": content,
            "reasoning_content": text,
            "tool_calls": calls,
        }})
    };
    let plain = json!({"type": ["string", "null"]});
    let chunks = json!({"anyOf": [plain, {"type": "array", "items": {"type": "object"}}]});
    let whole = |content: &Value| json!({"index": number, "message": message(content.clone()), "logprobs": logprobs, "finish_reason": finish});
    let part = |content: &Value| json!({"index": number, "delta": message(content.clone()), "logprobs": logprobs, "finish_reason": finish});
    let object = |properties: Value| {
        let required: Vec<_> = properties
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name.clone())
            .collect();
        json!({"type": "object", "properties": properties, "required": required})
    };
    let list = |of: &str| {
        object(
            json!({"object": {"const": "list"}, "data": {"type": "array", "items": {
            "$ref": format!("#/components/schemas/{of}")}}}),
        )
    };
    let error = json!({
        "message": text,
        "type": {"enum": ["invalid_request_error", "rate_limit_error", "server_error"]},
        "param": {"type": ["string", "null"], "description": "The field at fault, as messages[2].content."},
        "code": {"type": ["string", "null"]},
    });
    // Where either client looks for it.
    let mut of_mistral = error.clone();
    of_mistral["object"] = json!({"const": "error"});
    of_mistral["error"] = object(error.clone());
    json!({
        "ChatCompletion": answer("chat.completion", whole(&plain)),
        "ChatChunk": answer("chat.completion.chunk", part(&plain)),
        "MistralCompletion": answer("chat.completion", whole(&chunks)),
        "MistralChunk": answer("chat.completion.chunk", part(&chunks)),
        "TextCompletion": answer(
            "text_completion",
            json!({"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}),
        ),
        "Usage": object(json!({"prompt_tokens": number, "completion_tokens": number, "total_tokens": number})),
        "Error": object(json!({"error": object(error)})),
        "MistralError": object(of_mistral),
        "Model": object(json!({
            "id": text, "object": {"const": "model"}, "created": number, "owned_by": text, "max_model_len": number,
        })),
        "Models": list("Model"),
        "MistralModel": object(json!({
            "id": text, "object": {"const": "model"}, "created": number, "owned_by": text, "name": text,
            "max_context_length": number, "type": {"const": "base"}, "capabilities": {"type": "object"},
        })),
        "MistralModels": list("MistralModel"),
        "Tokens": json!({"type": "object", "required": ["tokens", "count", "max_model_len"], "properties": {
            "tokens": {"type": "array", "items": number}, "count": number, "max_model_len": number,
            "token_strs": {"type": "array", "items": text},
        }}),
        "Detokenized": object(json!({"prompt": text})),
        "Version": object(json!({"version": text})),
        "Document": {"type": "object"},
        "Live": object(json!({"live": {"type": "boolean"}})),
        "Ready": object(json!({"ready": {"type": "boolean"}, "replica": number, "generation": number})),
        "Status": {"type": "object"},
        "Replanned": object(json!({"replica": number, "generation": number})),
    })
}
