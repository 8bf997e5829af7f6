//! `/v1/chat/completions`.

use super::*;
use crate::gateway::scripted::sampled;

fn question() -> Value {
    json!([{"role": "user", "content": "Tell me the capital of Vietnam."}])
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    json!([{"type": "function", "function": {"name": "get_time", "parameters": parameters}}])
}

/// `[TOOL_CALLS]get_time[ARGS]{"city": "Bern"}` twice, then `</s>`.
pub(super) fn two_calls() -> Vec<u32> {
    let name = TOKENIZER.encode("get_time").unwrap();
    let arguments = TOKENIZER.encode("{\"city\": \"Bern\"}").unwrap();
    let call = [&[9], &name[..], &[32], &arguments[..]].concat();
    [&call[..], &call[..], &[2]].concat()
}

fn chunk(delta: Value, finish: Option<&str>) -> Value {
    json!({
        "id": "ID",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
    })
}

#[tokio::test]
async fn a_question_is_answered() {
    let world = world();
    let reply = world.chat(json!({"messages": question()})).await;
    let expected = json!({
        "id": "ID",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": ANSWER_TEXT, "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": 15,
            "completion_tokens": 14,
            "total_tokens": 29,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    });
    assert_eq!(reply.normal("chatcmpl-"), expected);
    let (_, sent) = &world.heads.seen()[0];
    assert_eq!(sent.prompt, [&[1, 3], &QUESTION[..], &[4]].concat());
    assert_eq!((sent.priority, &sent.cache_salt[..]), (0, &[][..]));
    // Without a limit the answer may fill the context.
    assert_eq!(sent.max_tokens, MAX_CONTEXT - 15);
}

#[tokio::test]
async fn either_name_of_the_limit_is_taken() {
    let world = world();
    for (fields, limit) in [
        (json!({"max_tokens": 3}), 3),
        (json!({"max_completion_tokens": 4}), 4),
        (json!({"max_completion_tokens": 4, "max_tokens": 3}), 4),
    ] {
        let mut fields = fields;
        fields["messages"] = question();
        let reply = world.chat(fields).await.json();
        assert_eq!(reply["choices"][0]["finish_reason"], "length");
        assert_eq!(reply["usage"]["completion_tokens"], limit);
    }
}

#[tokio::test]
async fn priority_and_cache_salt_reach_the_head() {
    let world = world();
    let fields = json!({"messages": question(), "priority": -100, "cache_salt": "of mine"});
    world.chat(fields).await.json();
    let (_, sent) = &world.heads.seen()[0];
    assert_eq!((sent.priority, &sent.cache_salt[..]), (-100, &b"of mine"[..]));
}

#[tokio::test]
async fn an_answer_is_streamed() {
    let world = saying(&[1784, 2735, 2]);
    let fields = json!({
        "messages": question(),
        "stream": true,
        "stream_options": {"include_usage": true, "other": 1},
    });
    let reply = world.chat(fields).await;
    let with_usage = |mut chunk: Value, usage: Value| {
        chunk["usage"] = usage;
        chunk
    };
    let mut last = chunk(json!({}), None);
    last["choices"] = json!([]);
    let expected = [
        with_usage(
            chunk(json!({"role": "assistant", "content": ""}), None),
            json!(null),
        ),
        with_usage(chunk(json!({"content": "The"}), None), json!(null)),
        with_usage(chunk(json!({"content": " cap"}), None), json!(null)),
        with_usage(chunk(json!({}), Some("stop")), json!(null)),
        with_usage(
            last,
            json!({
                "prompt_tokens": 15,
                "completion_tokens": 3,
                "total_tokens": 18,
                "prompt_tokens_details": {"cached_tokens": 2},
            }),
        ),
    ];
    assert_eq!(reply.chunks("chatcmpl-"), expected);
}

#[tokio::test]
async fn tool_calls_are_told_from_text() {
    let world = saying(&two_calls());
    let reply = world
        .chat(json!({"messages": question(), "tools": tools()}))
        .await
        .json();
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let message = &choice["message"];
    assert_eq!(message["content"], json!(null));
    let calls = message["tool_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 2);
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    for call in calls {
        assert_eq!(call["id"].as_str().map(str::len), Some(9));
        assert_eq!(call["type"], "function");
        assert_eq!(
            call["function"],
            json!({"name": "get_time", "arguments": "{\"city\": \"Bern\"}"})
        );
    }
    // The tools stand in the prompt, between their markers.
    let prompt = &world.heads.seen()[0].1.prompt;
    assert!(prompt.contains(&5) && prompt.contains(&6));
}

#[tokio::test]
async fn tool_calls_are_streamed_as_they_come() {
    let world = saying(&two_calls());
    let fields = json!({"messages": question(), "tools": tools(), "tool_choice": "auto", "stream": true});
    let chunks = world.chat(fields).await.chunks("chatcmpl-");
    assert_eq!(
        chunks[0],
        chunk(json!({"role": "assistant", "content": ""}), None)
    );
    let mut arguments = [String::new(), String::new()];
    let mut begun = Vec::new();
    for chunk in &chunks[1..chunks.len() - 1] {
        let delta = &chunk["choices"][0]["delta"];
        assert!(delta.get("content").is_none(), "{delta}");
        for call in delta["tool_calls"].as_array().unwrap() {
            let index = call["index"].as_u64().unwrap() as usize;
            if let Some(name) = call["function"]["name"].as_str() {
                assert_eq!((name, &call["type"]), ("get_time", &json!("function")));
                assert_eq!(call["id"].as_str().map(str::len), Some(9));
                begun.push(index);
            } else {
                assert!(call.get("id").is_none());
            }
            arguments[index].push_str(call["function"]["arguments"].as_str().unwrap());
        }
    }
    assert_eq!(begun, [0, 1]);
    assert_eq!(arguments, ["{\"city\": \"Bern\"}"; 2]);
    assert!(chunks.len() > 6, "arguments came all at once");
    assert_eq!(chunks[chunks.len() - 1], chunk(json!({}), Some("tool_calls")));
}

#[tokio::test]
async fn content_before_a_call_is_kept_whole() {
    let tokens = [&[1784, 2735][..], &two_calls()].concat();
    let world = saying(&tokens);
    // The text before the call ends with what could begin a stop string.
    let fields = json!({"messages": question(), "tools": tools(), "stop": [" cape", "Bern"]});
    let reply = world.chat(fields.clone()).await.json();
    let choice = &reply["choices"][0];
    assert_eq!(choice["message"]["content"], "The cap");
    assert_eq!(choice["message"]["tool_calls"].as_array().map(Vec::len), Some(2));
    assert_eq!(choice["finish_reason"], "tool_calls");

    let mut streaming = fields;
    streaming["stream"] = json!(true);
    let chunks = world.chat(streaming).await.chunks("chatcmpl-");
    let mut content = String::new();
    let mut calls = 0;
    for chunk in &chunks {
        let delta = &chunk["choices"][0]["delta"];
        let text = delta["content"].as_str().unwrap_or_default();
        assert!(text.is_empty() || calls == 0, "content came after the call");
        content.push_str(text);
        calls += delta["tool_calls"].as_array().map_or(0, Vec::len);
    }
    assert_eq!(content, "The cap");
}

#[tokio::test]
async fn tools_that_may_not_be_called_are_not_shown_to_the_model() {
    let world = world();
    let fields = json!({"messages": question(), "tools": tools(), "tool_choice": "none"});
    let reply = world.chat(fields).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], ANSWER_TEXT);
    assert_eq!(world.heads.seen()[0].1.prompt.len(), 15);
}

#[tokio::test]
async fn log_probabilities_come_with_bytes() {
    let world = saying(&[1784, 2]);
    let fields = json!({"messages": question(), "logprobs": true, "top_logprobs": 2});
    let reply = world.chat(fields).await.json();
    let (the, end) = (sampled(1784), sampled(2));
    let entry = |name: &str, logprob: f32| {
        let logprob: f64 = logprob.to_string().parse().unwrap();
        json!({"token": name, "logprob": logprob, "bytes": name.as_bytes()})
    };
    let token = |name: &str, token: &SampledToken, other: &str| {
        let mut shown = entry(name, token.logprob);
        shown["top_logprobs"] = json!([entry(name, token.top[0].1), entry(other, token.top[1].1)]);
        shown
    };
    let other = String::from_utf8(TOKENIZER.token_bytes(1785).unwrap().to_vec()).unwrap();
    assert_eq!(
        reply["choices"][0]["logprobs"],
        json!({
            "content": [token("The", &the, &other), token("</s>", &end, "[INST]")],
            "refusal": null,
        })
    );
    assert_eq!(world.heads.seen()[0].1.sampling.logprobs, Some(2));

    let fields = json!({
        "messages": question(),
        "logprobs": true,
        "return_tokens_as_token_ids": true,
        "stream": true,
    });
    let chunks = world.chat(fields).await.chunks("chatcmpl-");
    let tokens = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"][0]["token"].as_str());
    assert_eq!(tokens.collect::<Vec<_>>(), ["token_id:1784", "token_id:2"]);
    // The chunk of the end token adds no text, and says so.
    assert_eq!(chunks[2]["choices"][0]["delta"], json!({"content": ""}));
}

#[tokio::test]
async fn a_stop_string_ends_content() {
    let world = world();
    let fields = json!({"messages": question(), "tools": tools(), "stop": "iet", "logprobs": true});
    let reply = world.chat(fields).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], "The capital of V");
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        reply["choices"][0]["logprobs"]["content"]
            .as_array()
            .map(Vec::len),
        Some(6)
    );
}

#[tokio::test]
async fn what_changes_nothing_is_ignored() {
    let world = world();
    let fields = json!({
        "messages": question(),
        "n": 1,
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "parallel_tool_calls": true,
        "top_k": -1,
        "store": false,
        "metadata": {"a": "b"},
        "user": "u",
        "service_tier": "auto",
        "logprobs": null,
        "tools": null,
        "stop": null,
        "stream_options": null,
    });
    let reply = world.chat(fields).await;
    assert_eq!(reply.status, StatusCode::OK, "{:?}", reply.body);
}
