//! Mistral's dialect: on its own routes, and where a request names what only it has.

use super::reasoning::thinking;
use super::*;

fn question() -> Value {
    json!([{"role": "user", "content": "Tell me the capital of Vietnam."}])
}

impl World {
    async fn mistral(&self, body: Value) -> Reply {
        self.post("/mistral/v1/chat/completions", with_model(body)).await
    }
}

#[tokio::test]
async fn an_answer_is_what_both_clients_read() {
    let reply = world().mistral(json!({"messages": question()})).await;
    let expected = json!({
        "id": "ID",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": ANSWER_TEXT, "tool_calls": null, "prefix": false},
            "finish_reason": "stop",
        }],
        "usage": {"prompt_tokens": 15, "completion_tokens": 14, "total_tokens": 29, "prompt_tokens_details": {"cached_tokens": 2}},
    });
    assert_eq!(reply.normal("chatcmpl-"), expected);
}

#[tokio::test]
async fn fields_of_its_own_make_a_request_its_own() {
    let assistant = |message: Value| json!([question()[0], message]);
    let part = json!({"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}], "closed": false});
    for (fields, is_mistral) in [
        (json!({}), false),
        (json!({"random_seed": null}), false),
        (json!({"random_seed": 7}), true),
        (json!({"safe_prompt": false}), true),
        (json!({"prompt_mode": "reasoning"}), true),
        (
            json!({"messages": assistant(json!({"role": "assistant", "content": "It", "prefix": true}))}),
            true,
        ),
        (
            json!({"messages": assistant(json!({"role": "assistant", "content": [part], "prefix": true}))}),
            true,
        ),
    ] {
        let world = world();
        let mut body = json!({"messages": question()});
        body.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        let reply = world.chat(body).await;
        assert_eq!(reply.status, StatusCode::OK, "{fields}: {:?}", reply.body);
        let message = reply.json()["choices"][0]["message"].clone();
        assert_eq!(message.get("prefix").is_some(), is_mistral, "{fields}");
    }
}

#[tokio::test]
async fn its_seed_and_prompts_reach_the_model() {
    let world = world();
    world
        .mistral(json!({"messages": question(), "random_seed": 7}))
        .await;
    world
        .mistral(json!({"messages": question(), "safe_prompt": true}))
        .await;
    world
        .mistral(json!({"messages": question(), "prompt_mode": "reasoning"}))
        .await;
    let seen = world.heads.seen();
    assert_eq!(seen[0].1.sampling.seed, 7);
    assert_eq!(seen[0].1.prompt.len(), 15);
    let opens = |prompt: &[u32]| (prompt[..2].to_vec(), prompt.contains(&18), prompt.contains(&34));
    assert_eq!(opens(&seen[1].1.prompt), (vec![1, 17], true, false));
    assert_eq!(opens(&seen[2].1.prompt), (vec![1, 17], true, true));
    // Errors still name the client's own messages.
    let bad = world
        .mistral(json!({"messages": [{"role": "robot", "content": "a"}], "safe_prompt": true}))
        .await;
    assert_eq!(bad.json()["error"]["param"], "messages[0].role");
}

#[tokio::test]
async fn reasoning_comes_as_thinking_chunks() {
    let world = saying(&thinking("Hm.", "Hanoi."));
    let reply = world.mistral(json!({"messages": question()})).await.json();
    let thought = |text: &str| json!({"type": "thinking", "thinking": [{"type": "text", "text": text}]});
    let mut closed = thought("Hm.");
    closed["closed"] = json!(true);
    assert_eq!(
        reply["choices"][0]["message"]["content"],
        json!([closed, {"type": "text", "text": "Hanoi."}])
    );

    let chunks = world
        .mistral(json!({"messages": question(), "stream": true}))
        .await
        .chunks("chatcmpl-");
    let (mut reasoning, mut content) = (String::new(), String::new());
    for chunk in &chunks {
        let shown = &chunk["choices"][0]["delta"]["content"];
        if let Some(text) = shown.as_str() {
            content.push_str(text);
        } else {
            let text = shown[0]["thinking"][0]["text"].as_str().unwrap();
            assert_eq!(shown[0], thought(text));
            reasoning.push_str(text);
        }
    }
    assert_eq!((reasoning.as_str(), content.as_str()), ("Hm.", "Hanoi."));
    // The usage stands in the last chunk, beside the reason.
    let last = &chunks[chunks.len() - 1];
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["usage"]["prompt_tokens"], 15);
    assert!(
        chunks[..chunks.len() - 1]
            .iter()
            .all(|chunk| chunk.get("usage").is_none())
    );
}

#[tokio::test]
async fn calls_come_whole() {
    let encode = |text| TOKENIZER.encode(text).unwrap();
    let call = [
        &[9],
        &encode("get_time")[..],
        &[32],
        &encode("{\"city\": \"Bern\"}"),
    ]
    .concat();
    let world = saying(&[&call[..], &call[..], &[2]].concat());
    let tools =
        json!([{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}]);
    let fields = json!({"messages": question(), "tools": tools, "stream": true, "n": 2});
    let chunks = world.mistral(fields.clone()).await.chunks("chatcmpl-");
    let mut calls = [Vec::new(), Vec::new()];
    for chunk in &chunks {
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        let found = choice["delta"]["tool_calls"].as_array();
        calls[index].extend(found.into_iter().flatten().cloned());
    }
    let with_usage = chunks.iter().filter(|chunk| chunk.get("usage").is_some());
    assert_eq!(with_usage.count(), 1);
    for calls in &calls {
        assert_eq!(calls.len(), 2);
        assert_ne!(calls[0]["id"], calls[1]["id"]);
        for (index, call) in calls.iter().enumerate() {
            let id = call["id"].as_str().unwrap();
            assert!(
                id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()),
                "{id}"
            );
            assert_eq!(call["index"], index);
            assert_eq!(
                call["function"],
                json!({"name": "get_time", "arguments": "{\"city\": \"Bern\"}"})
            );
        }
    }
    let mut whole = fields;
    whole["stream"] = json!(false);
    let reply = world.mistral(whole).await.json();
    assert_eq!(
        reply["choices"][1]["message"]["tool_calls"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    assert_eq!(reply["choices"][1]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn errors_are_what_both_clients_read() {
    let world = world();
    let error = json!({
        "message": "temperature: is 3, it must be a number from 0 to 2",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": null,
    });
    let reply = world
        .mistral(json!({"messages": question(), "temperature": 3}))
        .await;
    let mut both = error.clone();
    both["object"] = json!("error");
    both["error"] = error;
    assert_eq!((reply.status, reply.json()), (StatusCode::BAD_REQUEST, both));
    for (path, status) in [
        ("/mistral/v1/models/other", 404),
        ("/mistral/v1/nowhere", 404),
        ("/mistral/v1/chat/completions", 405),
    ] {
        let reply = world.get(path).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["object"]),
            (status, &json!("error")),
            "{path}"
        );
        assert_eq!(reply.headers.contains_key("allow"), status == 405);
    }
    assert!(world.get("/v1/models/other").await.json().get("object").is_none());
}
