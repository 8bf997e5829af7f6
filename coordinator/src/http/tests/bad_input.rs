//! Every bad body gets an error that names the field and says what would be right, and reaches no head.

use super::*;

struct Case {
    body: Value,
    status: u16,
    param: Value,
    code: Value,
    message: String,
}

fn case(body: Value, param: &str, message: &str) -> Case {
    Case {
        body,
        status: 400,
        param: json!(param),
        code: json!(null),
        message: message.to_owned(),
    }
}

fn unsupported(body: Value, param: &str, problem: &str) -> Case {
    let message = format!("{param}: {problem}");
    Case {
        code: json!("unsupported_parameter"),
        ..case(body, param, &message)
    }
}

fn too_long(body: Value, param: &str, message: &str) -> Case {
    Case {
        code: json!("context_length_exceeded"),
        ..case(body, param, message)
    }
}

async fn check(path: &str, base: Value, cases: Vec<Case>) {
    let world = world();
    for case in cases {
        let mut body = base.clone();
        for (name, value) in case.body.as_object().unwrap() {
            body[name] = value.clone();
        }
        let body = with_model(body);
        let reply = world.post(path, body.clone()).await;
        let expected = json!({"error": {
            "message": case.message,
            "type": "invalid_request_error",
            "param": case.param,
            "code": case.code,
        }});
        assert_eq!(reply.json(), expected, "{body}");
        assert_eq!(reply.status.as_u16(), case.status, "{body}");
    }
    assert!(world.heads.seen().is_empty());
    // Nothing else is disturbed.
    assert_eq!(world.post(path, with_model(base)).await.status, StatusCode::OK);
}

/// Faults in the fields that both routes share.
fn shared_cases(limit: &str) -> Vec<Case> {
    let max = |value: Value, shown: &str| {
        let message = format!("{limit}: is {shown}, it must be a whole number from 1 to 4096");
        case(json!({limit: value}), limit, &message)
    };
    vec![
        max(json!(0), "0"),
        max(json!(-5), "-5"),
        max(json!(4097), "4097"),
        max(json!(u64::MAX), "18446744073709551615"),
        max(json!(1.5), "1.5"),
        max(json!("7"), "\"7\""),
        max(json!([1]), "[1]"),
        case(
            json!({"temperature": -0.1}),
            "temperature",
            "temperature: is -0.1, it must be a number from 0 to 2",
        ),
        case(
            json!({"temperature": 2.5}),
            "temperature",
            "temperature: is 2.5, it must be a number from 0 to 2",
        ),
        case(
            json!({"temperature": "hot"}),
            "temperature",
            "temperature: is \"hot\", it must be a number from 0 to 2",
        ),
        case(
            json!({"top_p": 0}),
            "top_p",
            "top_p: is 0, it must be a number above 0 and at most 1",
        ),
        case(
            json!({"top_p": 1.01}),
            "top_p",
            "top_p: is 1.01, it must be a number above 0 and at most 1",
        ),
        case(
            json!({"seed": 0.5}),
            "seed",
            "seed: is 0.5, it must be a whole number of at most 64 bits",
        ),
        case(
            json!({"priority": 101}),
            "priority",
            "priority: is 101, it must be a whole number from -100 to 100",
        ),
        case(
            json!({"cache_salt": "a".repeat(257)}),
            "cache_salt",
            "cache_salt: has 257 bytes, at most 256 are allowed",
        ),
        case(
            json!({"seed": "a"}),
            "seed",
            "seed: is \"a\", it must be a whole number of at most 64 bits",
        ),
        case(
            json!({"stop": 5}),
            "stop",
            "stop: must be a string or an array of strings",
        ),
        case(
            json!({"stop": ["a", 5]}),
            "stop",
            "stop: must be a string or an array of strings",
        ),
        case(json!({"stop": ["a", ""]}), "stop", "stop[1]: must not be empty"),
        case(
            json!({"stop": vec!["a"; 17]}),
            "stop",
            "stop: 17 stop strings, at most 16 are allowed",
        ),
        case(
            json!({"stop": "a".repeat(257)}),
            "stop",
            "stop[0]: 257 bytes, at most 256 are allowed",
        ),
        case(
            json!({"stream": "yes"}),
            "stream",
            "stream: invalid type: string \"yes\", expected a boolean",
        ),
        case(
            json!({"stream_options": {"include_usage": true}}),
            "stream_options",
            "stream_options: is allowed only where stream is true",
        ),
        case(
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
            "stream_options.include_usage: invalid type: integer `1`, expected a boolean",
        ),
        case(
            json!({"ignore_eos": 1}),
            "ignore_eos",
            "ignore_eos: invalid type: integer `1`, expected a boolean",
        ),
        case(
            json!({"model": 7}),
            "model",
            "model: invalid type: integer `7`, expected a string",
        ),
        case(
            json!({"model": null}),
            "model",
            "model: is missing, it must be \"mini-large-3\"",
        ),
        Case {
            status: 404,
            code: json!("model_not_found"),
            ..case(
                json!({"model": "gpt"}),
                "model",
                "model: \"gpt\" does not exist, this cluster serves \"mini-large-3\"",
            )
        },
        case(
            json!({"n": 0}),
            "n",
            "n: is 0, it must be a whole number from 1 to 16",
        ),
        case(
            json!({"n": 17}),
            "n",
            "n: is 17, it must be a whole number from 1 to 16",
        ),
        case(
            json!({"n": 1.5}),
            "n",
            "n: is 1.5, it must be a whole number from 1 to 16",
        ),
        case(
            json!({"n": [2]}),
            "n",
            "n: is [2], it must be a whole number from 1 to 16",
        ),
        case(
            json!({"user": 5}),
            "user",
            "user: invalid type: integer `5`, expected a string",
        ),
        case(
            json!({"user": "é".repeat(513)}),
            "user",
            "user: has 513 characters, at most 512 are taken",
        ),
        case(
            json!({"metadata": "a"}),
            "metadata",
            "metadata: invalid type: string \"a\", expected an object of at most 16 pairs",
        ),
        case(
            json!({"metadata": {"k": [1]}}),
            "metadata",
            "metadata: a value must be a string, a number or a boolean",
        ),
        case(
            json!({"metadata": {"k": "é".repeat(513)}}),
            "metadata",
            "metadata: a value has more than 512 characters, the most that are taken",
        ),
        case(
            json!({"metadata": {"é".repeat(65): "a"}}),
            "metadata",
            "metadata: a key has more than 64 characters, the most that are taken",
        ),
        case(
            json!({"metadata": (0..17).map(|key| (key.to_string(), json!("a"))).collect::<serde_json::Map<_, _>>()}),
            "metadata",
            "metadata: more than 16 pairs, the most that are taken",
        ),
        unsupported(
            json!({"prompt_logprobs": 1}),
            "prompt_logprobs",
            "is not supported yet, leave it out",
        ),
        unsupported(
            json!({"best_of": 3}),
            "best_of",
            "is not supported yet other than 1",
        ),
    ]
}

/// Faults in the fields that say how tokens are chosen.
fn sampling_cases() -> Vec<Case> {
    let number = |field: &str, value: Value, shown: &str, right: &str| {
        let message = format!("{field}: is {shown}, it must be a {right}");
        case(json!({field: value}), field, &message)
    };
    let top_k =
        |value: Value, shown: &str| number("top_k", value, shown, "whole number from -1 to 2147483647");
    let min_tokens =
        |value: Value, shown: &str| number("min_tokens", value, shown, "whole number from 0 to 4096");
    let mut cases = vec![
        top_k(json!(-2), "-2"),
        top_k(json!(1.5), "1.5"),
        top_k(json!("40"), "\"40\""),
        top_k(json!(u64::MAX), "18446744073709551615"),
        min_tokens(json!(-1), "-1"),
        min_tokens(json!(4097), "4097"),
        min_tokens(json!(true), "true"),
        case(
            json!({"min_tokens": 12, "max_tokens": 11}),
            "min_tokens",
            "min_tokens: is 12, at most 11 tokens will be generated",
        ),
    ];
    for (field, right, bad) in [
        (
            "min_p",
            "number from 0 to 1",
            [json!(-0.1), json!(1.1), json!("0.1"), json!([])],
        ),
        (
            "presence_penalty",
            "number from -2 to 2",
            [json!(-2.1), json!(2.1), json!("1"), json!({})],
        ),
        (
            "frequency_penalty",
            "number from -2 to 2",
            [json!(-2.1), json!(2.1), json!("1"), json!(true)],
        ),
        (
            "repetition_penalty",
            "number from 0.01 to 100",
            [json!(0), json!(-1.5), json!(101), json!("1")],
        ),
    ] {
        cases.extend(bad.into_iter().map(|value| {
            let shown = value.to_string();
            number(field, value, &shown, right)
        }));
    }
    let object = "expected an object of token ids and numbers";
    cases.extend([
        case(
            json!({"logit_bias": 5}),
            "logit_bias",
            &format!("logit_bias: invalid type: integer `5`, {object}"),
        ),
        case(
            json!({"logit_bias": [[5, 1]]}),
            "logit_bias",
            &format!("logit_bias: invalid type: sequence, {object}"),
        ),
        case(
            json!({"logit_bias": {"dog": 1}}),
            "logit_bias",
            "logit_bias: \"dog\" is not a token id",
        ),
        case(
            json!({"logit_bias": {"-1": 1}}),
            "logit_bias",
            "logit_bias: \"-1\" is not a token id",
        ),
        case(
            json!({"logit_bias": {"8192": 1}}),
            "logit_bias",
            "logit_bias: has token id 8192, token ids are from 0 to 8191",
        ),
        case(
            json!({"logit_bias": {"7": 100.5}}),
            "logit_bias.7",
            "logit_bias.7: is 100.5, it must be a number from -100 to 100",
        ),
        case(
            json!({"logit_bias": {"7": "1"}}),
            "logit_bias.7",
            "logit_bias.7: invalid type: string \"1\", expected f64",
        ),
        case(
            json!({"stop_token_ids": 7}),
            "stop_token_ids",
            "stop_token_ids: invalid type: integer `7`, expected a sequence",
        ),
        case(
            json!({"stop_token_ids": [7, "8"]}),
            "stop_token_ids[1]",
            "stop_token_ids[1]: invalid type: string \"8\", expected i64",
        ),
        case(
            json!({"stop_token_ids": [7, 8192]}),
            "stop_token_ids[1]",
            "stop_token_ids[1]: is 8192, token ids are from 0 to 8191",
        ),
        case(
            json!({"stop_token_ids": [-1]}),
            "stop_token_ids[0]",
            "stop_token_ids[0]: is -1, token ids are from 0 to 8191",
        ),
        case(
            json!({"stop_token_ids": vec![7; 64]}),
            "stop_token_ids",
            "stop_token_ids: has 64 token ids, at most 63 are allowed",
        ),
    ]);
    cases
}

#[tokio::test]
async fn completions_name_the_field() {
    let right = "it must be a string, an array of token ids, or an array of either";
    let mut cases = shared_cases("max_tokens");
    cases.extend(sampling_cases());
    cases.extend([
        case(
            json!({"prompt": null}),
            "prompt",
            &format!("prompt: is missing, {right}"),
        ),
        case(
            json!({"prompt": []}),
            "prompt",
            &format!("prompt: is empty, {right}"),
        ),
        case(
            json!({"prompt": {"a": 1}}),
            "prompt",
            &format!("prompt: is of another type, {right}"),
        ),
        case(
            json!({"prompt": [1, 8192]}),
            "prompt[1]",
            "prompt[1]: token id 8192 is outside the vocabulary, ids are below 8192",
        ),
        case(
            json!({"prompt": [-1]}),
            "prompt[0]",
            "prompt[0]: token id -1 is below 0",
        ),
        too_long(
            json!({"prompt": vec![7; 4096]}),
            "prompt",
            "prompt: has 4096 tokens, at most 4095 leave room for an answer in the context of 4096",
        ),
        too_long(
            json!({"prompt": [[7], vec![7; 5000]]}),
            "prompt[1]",
            "prompt[1]: has 5000 tokens, at most 4095 leave room for an answer in the context of 4096",
        ),
        too_long(
            json!({"prompt": vec![7; 4000], "max_tokens": 97}),
            "max_tokens",
            "max_tokens: is 97, after a prompt of 4000 tokens at most 96 fit the context of 4096",
        ),
        case(
            json!({"logprobs": 21}),
            "logprobs",
            "logprobs: is 21, it must be a whole number from 0 to 20",
        ),
        case(
            json!({"logprobs": true}),
            "logprobs",
            "logprobs: is true, it must be a whole number from 0 to 20",
        ),
        case(
            json!({"prompt": vec!["a"; 64], "n": 3}),
            "n",
            "n: is 3, for 64 prompts it must be at most 2: a request has at most 128 choices",
        ),
        case(
            json!({"echo": 1}),
            "echo",
            "echo: invalid type: integer `1`, expected a boolean",
        ),
        unsupported(
            json!({"random_seed": 1}),
            "random_seed",
            "is not supported here, use seed",
        ),
        unsupported(
            json!({"suffix": "end"}),
            "suffix",
            "is not supported yet, leave it out",
        ),
    ]);
    check("/v1/completions", json!({"prompt": "a"}), cases).await;
}

#[tokio::test]
async fn chats_name_the_field() {
    let user = json!({"role": "user", "content": "a"});
    let mut cases = shared_cases("max_completion_tokens");
    cases.extend(sampling_cases());
    cases.extend([
        case(
            json!({"messages": null}),
            "messages",
            "messages: is missing, it must be an array of at least one message",
        ),
        case(json!({"messages": []}), "messages", "messages: must have at least one message"),
        case(
            json!({"messages": "hello"}),
            "messages",
            "messages: invalid type: string \"hello\", expected an array of at most 16384 elements",
        ),
        case(json!({"messages": [{"content": "a"}]}), "messages[0]", "messages[0]: missing field `role`"),
        case(
            json!({"messages": [user, {"role": "user", "content": 5}]}),
            "messages[1].content",
            "messages[1].content: invalid type: integer `5`, expected a string, null or an array of text parts",
        ),
        case(
            json!({"messages": [{"role": "robot", "content": "a"}]}),
            "messages[0].role",
            "messages[0].role: \"robot\" is not a role; use \"system\", \"developer\", \"user\", \"assistant\" or \
             \"tool\"",
        ),
        case(
            json!({"messages": [{"role": "user", "content": null}]}),
            "messages[0].content",
            "messages[0].content: must be a string or an array of text parts, not null",
        ),
        case(
            json!({"tools": [{"type": "function", "function": {"name": "no good"}}]}),
            "tools[0].function.name",
            "tools[0].function.name: \"no good\" is not a function name: use 1 to 64 of a-z, A-Z, 0-9, '_' and '-'",
        ),
        case(json!({"tools": [{"type": "function"}]}), "tools[0]", "tools[0]: missing field `function`"),
        case(
            json!({"top_logprobs": 3}),
            "top_logprobs",
            "top_logprobs: is allowed only where logprobs is true",
        ),
        case(
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
            "top_logprobs: is 21, it must be a whole number from 0 to 20",
        ),
        unsupported(json!({"echo": true}), "echo", "is not supported yet other than false"),
        case(
            json!({"parallel_tool_calls": "no"}),
            "parallel_tool_calls",
            "parallel_tool_calls: invalid type: string \"no\", expected a boolean",
        ),
        case(
            json!({"random_seed": 0.5}),
            "random_seed",
            "random_seed: is 0.5, it must be a whole number of at most 64 bits",
        ),
        case(
            json!({"safe_prompt": "yes"}),
            "safe_prompt",
            "safe_prompt: invalid type: string \"yes\", expected a boolean",
        ),
        case(
            json!({"prompt_mode": "fast"}),
            "prompt_mode",
            "prompt_mode: unknown variant `fast`, expected `reasoning`",
        ),
        case(
            json!({"messages": [user, {"role": "assistant", "content": "a", "reasoning_content": 5}, user]}),
            "messages[1].reasoning_content",
            "messages[1].reasoning_content: invalid type: integer `5`, expected a string",
        ),
        case(
            json!({"messages": [user, {"role": "assistant", "content": [{"type": "thinking", "thinking": 5}]}, user]}),
            "messages[1].content[0].thinking",
            "messages[1].content[0].thinking: invalid type: integer `5`, expected a string or an array of text parts",
        ),
        case(json!({"logprobs": 5}), "logprobs", "logprobs: invalid type: integer `5`, expected a boolean"),
    ]);
    check("/v1/chat/completions", json!({"messages": [user]}), cases).await;
}

#[tokio::test]
async fn a_conversation_longer_than_the_context_is_refused() {
    let world = world();
    let text = "word ".repeat(5000);
    let reply = world
        .chat(json!({"messages": [{"role": "user", "content": text}]}))
        .await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    let error = &reply.json()["error"];
    assert_eq!(
        (&error["param"], &error["code"]),
        (&json!("messages"), &json!("context_length_exceeded"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.ends_with("at most 4095 leave room for an answer in the context of 4096"),
        "{message}"
    );
}

#[tokio::test]
async fn bodies_that_are_no_object_are_refused() {
    let world = world();
    let deep = format!(
        "{{\"messages\": {}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let deep_unknown = format!(
        "{{\"unknown\": {}{}}}",
        "{\"a\":".repeat(200),
        "1".to_owned() + &"}".repeat(200)
    );
    for (body, param, message) in [
        (
            "",
            json!(null),
            "the body is not JSON: EOF while parsing a value at line 1 column 0",
        ),
        (
            "hello",
            json!(null),
            "the body is not JSON: expected value at line 1 column 1",
        ),
        (
            "{\"model\": ",
            json!(null),
            "the body is not JSON: EOF while parsing a value at line 1 column 10",
        ),
        (
            "[1]",
            json!(null),
            "the body: invalid type: sequence, expected a JSON object",
        ),
        (
            "{} {}",
            json!(null),
            "the body is not JSON: trailing characters at line 1 column 4",
        ),
        (
            &deep,
            json!("messages"),
            "messages: is nested too deep, at most 127 levels are read",
        ),
        (
            &deep_unknown,
            json!("unknown"),
            "unknown: is nested too deep, at most 127 levels are read",
        ),
    ] {
        for path in ["/v1/completions", "/v1/chat/completions"] {
            let reply = world.send(Method::POST, path, body.to_owned()).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST);
            let expected = json!({"error": {
                "message": message,
                "type": "invalid_request_error",
                "param": param,
                "code": null,
            }});
            assert_eq!(reply.json(), expected);
        }
    }
    let latin = world
        .send(Method::POST, "/v1/completions", &b"{\"prompt\": \"\xe9\"}"[..])
        .await;
    assert_eq!(latin.status, StatusCode::BAD_REQUEST);
    assert!(world.heads.seen().is_empty());
}
