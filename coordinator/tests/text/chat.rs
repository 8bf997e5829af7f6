//! The v13 chat format against recorded ids, and what it refuses.

use serde_json::{Value, json};
use tramontane_coordinator::text::{ChatRequest, encode_chat};

use super::{records, tokenizer};

fn check_records(path: &str) -> usize {
    let records = records(path);
    for (line, record) in records.iter().enumerate() {
        let request: ChatRequest = serde_json::from_str(record.request.as_ref().unwrap().get()).unwrap();
        let ids = encode_chat(&tokenizer(), &request).unwrap();
        assert_eq!(ids, record.ids, "{path}:{}", line + 1);
    }
    records.len()
}

#[test]
fn conversations_have_their_recorded_ids() {
    assert_eq!(check_records("tests/fixtures/chat_v13.jsonl"), 80);
}

#[test]
fn odd_conversations_have_their_recorded_ids() {
    assert!(check_records("tests/fixtures/text/chat.jsonl") > 70);
}

#[test]
fn reasoning_has_its_recorded_ids() {
    assert_eq!(check_records("tests/fixtures/text/reasoning.jsonl"), 7);
}

fn ids(messages: Value) -> Vec<u32> {
    let request: ChatRequest = serde_json::from_value(json!({"messages": messages})).unwrap();
    encode_chat(&tokenizer(), &request).unwrap()
}

#[test]
fn reasoning_may_come_in_either_dialect() {
    let with = |assistant: Value| {
        let user = json!({"role": "user", "content": "Hi"});
        ids(json!([user, assistant, user]))
    };
    let text = json!({"type": "text", "text": "4"});
    let recorded =
        with(json!({"role": "assistant", "content": [{"type": "thinking", "thinking": "2 + 2"}, text]}));
    for same in [
        json!({"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}),
        json!({"role": "assistant", "content": [text], "reasoning_content": "2 + 2"}),
        json!({"role": "assistant", "reasoning_content": "2 + 2", "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": "2 +"}, {"type": "text", "text": " 2"}], "closed": true},
            text,
        ]}),
    ] {
        assert_eq!(with(same.clone()), recorded, "{same}");
    }
    let plain = with(json!({"role": "assistant", "content": "4"}));
    assert_eq!(
        with(json!({"role": "assistant", "content": "4", "reasoning_content": ""})),
        plain
    );
    // What a user says is never reasoning.
    let user = json!([{"role": "user", "content": "Hi", "reasoning_content": "x"}]);
    assert_eq!(ids(user), ids(json!([{"role": "user", "content": "Hi"}])));
}

#[test]
fn an_open_end_is_known() {
    let user = json!({"role": "user", "content": "Hi"});
    let thinking = |closed: bool| {
        let part = json!({"type": "thinking", "thinking": "so", "closed": closed});
        ids(json!([user, {"role": "assistant", "content": [part], "prefix": true}]))
    };
    assert!(tokenizer().leaves_reasoning_open(&thinking(false)));
    assert!(!tokenizer().leaves_reasoning_open(&thinking(true)));
    assert!(!tokenizer().leaves_reasoning_open(&ids(json!([user]))));
}

#[test]
fn reasoning_out_of_place_is_refused() {
    let user = json!({"role": "user", "content": "Hi"});
    let part = json!({"type": "thinking", "thinking": "x"});
    let cases = [
        (
            json!([{"role": "user", "content": [part]}]),
            "messages[0].content[0].type: only messages from \"assistant\" and \"system\" can have reasoning",
        ),
        (
            json!([user, {"role": "assistant", "content": [{"type": "thinking"}]}, user]),
            "messages[1].content[0].thinking: a part of type \"thinking\" must have a thinking, a string or text parts",
        ),
        (
            json!([user, {"role": "assistant", "content": [
                {"type": "thinking", "thinking": [{"type": "reference"}]}]}, user]),
            "messages[1].content[0].thinking[0].type: \"reference\" parts are not supported; use \"text\" or \"thinking\"",
        ),
        (
            json!([{"role": "user", "content": [{"type": "text", "text": "Hi", "thinking": [{"type": "reference"}]}]}]),
            "messages[0].content[0].thinking[0].type: \"reference\" parts are not supported; use \"text\" or \"thinking\"",
        ),
        (
            json!([user, {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "closed": false}]}, user]),
            "messages[1].content[0].closed: can be false only on the last part of a last message with prefix true",
        ),
    ];
    for (messages, message) in cases {
        assert_eq!(refusal(json!({"messages": messages})), message);
    }
}

fn refusal(request: Value) -> String {
    let request: ChatRequest = serde_json::from_value(request).unwrap();
    encode_chat(&tokenizer(), &request).unwrap_err().to_string()
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn calls(ids: &[&str]) -> Value {
    let calls: Vec<Value> = ids
        .iter()
        .map(|id| json!({"id": id, "function": {"name": "f", "arguments": "{}"}}))
        .collect();
    json!({"role": "assistant", "content": null, "tool_calls": calls})
}

fn result(id: &str) -> Value {
    json!({"role": "tool", "tool_call_id": id, "content": "x"})
}

#[test]
fn bad_conversations_are_refused_by_field() {
    let cases: Vec<(Vec<Value>, &str)> = vec![
        (vec![], "messages: must have at least one message"),
        (
            vec![json!({"role": "function", "content": "x"})],
            "messages[0].role: \"function\" is not a role; \
             use \"system\", \"developer\", \"user\", \"assistant\" or \"tool\"",
        ),
        (
            vec![json!({"role": "assistant", "content": "x"})],
            "messages[0].role: a conversation of one message must be from \"user\" or \"system\"",
        ),
        (
            vec![user("x"), json!({"role": "assistant", "content": "x"})],
            "messages[1].role: the last message must be from \"user\" or \"tool\", \
             or from \"assistant\" with prefix true",
        ),
        (
            vec![result("a")],
            "messages[0].tool_call_id: \"a\" is not the id of a call of the assistant message before",
        ),
        (
            vec![result("a"), user("x")],
            "messages[0].tool_call_id: \"a\" is not the id of a call of the assistant message before",
        ),
        (
            vec![user("x"), result("a")],
            "messages[1].role: \"tool\" cannot follow \"user\"; allowed here: system, user, assistant",
        ),
        (
            vec![
                user("x"),
                calls(&["a"]),
                json!({"role": "system", "content": "x"}),
            ],
            "messages[2].role: \"system\" cannot follow \"assistant\"; allowed here: user, assistant, tool",
        ),
        (
            vec![user("x"), calls(&["a"]), result("b")],
            "messages[2].tool_call_id: \"b\" is not the id of a call of the assistant message before",
        ),
        (
            vec![user("x"), calls(&["a"]), result("a"), result("a")],
            "messages[3].tool_call_id: the call \"a\" has a result already",
        ),
        (
            vec![user("x"), calls(&["a", "b"]), result("b"), user("y")],
            "messages[1].tool_calls[0]: the call \"a\" must be followed by its result, a message from \"tool\"",
        ),
        (
            vec![user("x"), calls(&["a", "b"]), result("a")],
            "messages[1].tool_calls[1]: the call \"b\" must be followed by its result, a message from \"tool\"",
        ),
        (
            vec![user("x"), calls(&["a"]), calls(&["b"])],
            "messages[1].tool_calls[0]: the call \"a\" must be followed by its result, a message from \"tool\"",
        ),
        (
            vec![user("x"), calls(&["a", "a"]), result("a")],
            "messages[1].tool_calls[1].id: \"a\" is also the id of an earlier call of this message",
        ),
        (
            vec![user("x"), calls(&["null"]), result("null")],
            "messages[1].tool_calls[0].id: must be a non-empty string other than \"null\" that names a tool call",
        ),
        (
            vec![user("x"), calls(&["a"]), json!({"role": "tool", "content": "x"})],
            "messages[2].tool_call_id: must be a non-empty string other than \"null\" that names a tool call",
        ),
        (
            vec![
                user("x"),
                calls(&["a"]),
                json!({"role": "tool", "tool_call_id": "a", "content": null}),
            ],
            "messages[2].content: must be a string or an array of text parts, not null",
        ),
        (
            vec![json!({"role": "user"})],
            "messages[0].content: must be a string or an array of text parts, not null",
        ),
        (
            vec![user("x"), json!({"role": "assistant", "content": ""}), user("y")],
            "messages[1].content: an assistant message must have content or tool_calls",
        ),
        (
            vec![json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]})],
            "messages[0].content[1].type: \"image_url\" parts are not supported; use \"text\" or \"thinking\"",
        ),
        (
            vec![json!({"role": "user", "content": [{"type": "text"}]})],
            "messages[0].content[0].text: a part of type \"text\" must have a text",
        ),
        (
            vec![
                user("x"),
                json!({"role": "assistant", "content": "a", "prefix": true}),
                user("y"),
            ],
            "messages[1].prefix: only the last message, from \"assistant\", can have prefix true",
        ),
        (
            vec![json!({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]})],
            "messages[0].tool_calls: only messages from \"assistant\" can have tool_calls",
        ),
        (
            vec![
                user("x"),
                json!({"role": "assistant", "tool_calls": [{"id": "a", "type": "code", "function": {"name": "f"}}]}),
            ],
            "messages[1].tool_calls[0].type: \"code\" is not supported; use \"function\"",
        ),
        (
            vec![
                user("x"),
                json!({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "a b"}}]}),
            ],
            "messages[1].tool_calls[0].function.name: \"a b\" is not a function name: \
             use 1 to 64 of a-z, A-Z, 0-9, '_' and '-'",
        ),
        (
            vec![
                user("x"),
                json!({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": 1}}]}),
            ],
            "messages[1].tool_calls[0].function.arguments: must be a string of JSON or an object",
        ),
        (
            vec![
                user("x"),
                json!({"role": "assistant", "tool_calls": [
                    {"id": "a", "function": {"name": "f", "arguments": "[".repeat(1000)}}]}),
            ],
            "messages[1].tool_calls[0].function.arguments: is nested deeper than 128 levels",
        ),
        (
            vec![
                user("x"),
                calls(&["a"]),
                json!({"role": "tool", "tool_call_id": "a", "name": "é", "content": "x"}),
            ],
            "messages[2].name: \"é\" is not a function name: use 1 to 64 of a-z, A-Z, 0-9, '_' and '-'",
        ),
    ];
    for (messages, expected) in cases {
        assert_eq!(
            refusal(json!({"messages": messages.clone()})),
            expected,
            "{messages:?}"
        );
    }
}

#[test]
fn bad_tools_are_refused_by_field() {
    let deep = (0..200).fold(json!({}), |inner, _| json!([inner]));
    let cases = [
        (
            json!([{"type": "retrieval", "function": {"name": "f"}}]),
            "tools[0].type: \"retrieval\" is not supported; use \"function\"",
        ),
        (
            json!([{"function": {"name": "f"}}, {"function": {"name": "x".repeat(65)}}]),
            "tools[1].function.name: ",
        ),
        (
            json!([{"function": {"name": "f", "parameters": [1]}}]),
            "tools[0].function.parameters: must be a JSON schema, which is an object",
        ),
        (
            json!([{"function": {"name": "f", "parameters": {"x": deep}}}]),
            "tools[0].function.parameters: is nested deeper than 128 levels",
        ),
    ];
    for (tools, expected) in cases {
        let error = refusal(json!({"messages": [user("x")], "tools": tools}));
        assert!(error.starts_with(expected), "{error}");
    }
    let no_user = json!({
        "messages": [{"role": "system", "content": "x"}],
        "tools": [{"function": {"name": "f"}}],
    });
    assert_eq!(
        refusal(no_user),
        "tools: cannot be offered to the model without a message from \"user\""
    );
}

#[test]
fn wrong_types_are_refused_when_read() {
    let cases = [
        (r#"{"tools": []}"#, "missing field `messages`"),
        (
            r#"{"messages": {}}"#,
            "invalid type: map, expected an array of at most 16384 elements",
        ),
        (r#"{"messages": [{"content": "x"}]}"#, "missing field `role`"),
        (
            r#"{"messages": [{"role": "user", "content": 5}]}"#,
            "invalid type: integer `5`, expected a string, null or an array of text parts",
        ),
        (
            r#"{"messages": [{"role": "user", "content": ["x"]}]}"#,
            "invalid type: string \"x\"",
        ),
        (r#"{"messages": [], "tools": [{}]}"#, "missing field `function`"),
    ];
    for (body, expected) in cases {
        let error = serde_json::from_str::<ChatRequest>(body).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn sizes_are_bounded() {
    let body = format!(
        r#"{{"messages": [{}]}}"#,
        vec![r#"{"role": "user"}"#; 16_385].join(",")
    );
    let error = serde_json::from_str::<ChatRequest>(&body)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("more than 16384 elements"), "{error}");

    let half = "a".repeat(2 << 20);
    let error = refusal(json!({"messages": [user(&half), user(&half), user("a")]}));
    assert_eq!(
        error,
        "messages[2].content: the request's text is longer than 4194304 bytes in all"
    );
}
