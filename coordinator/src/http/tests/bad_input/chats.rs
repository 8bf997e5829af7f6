//! Conversations.

use super::*;

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
