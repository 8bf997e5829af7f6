//! OpenAI's newer API: items in and out, and the events of a stream.

use super::chat::two_calls;
use super::reasoning::thinking;
use super::*;

const PATH: &str = "/v1/responses";

fn tools() -> Value {
    json!([{"type": "function", "name": "get_time", "description": "The time.", "parameters": {"type": "object"}}])
}

impl World {
    async fn respond(&self, body: Value) -> Reply {
        self.post(PATH, with_model(body)).await
    }

    /// The prompt that the last request became.
    fn last_prompt(&self) -> Vec<u32> {
        self.heads.seen().last().unwrap().1.prompt.to_vec()
    }
}

/// The events of a stream; each says its name twice, and they are numbered.
fn told(reply: &Reply) -> Vec<Value> {
    let text = std::str::from_utf8(&reply.body).unwrap();
    let events = text.split("\n\n").filter(|event| !event.is_empty());
    let read = events.enumerate().map(|(number, event)| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        assert_eq!(data["sequence_number"], number);
        data
    });
    read.collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    let mut names: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    names.dedup();
    names
}

#[tokio::test]
async fn a_text_is_answered_with_a_message() {
    let world = world();
    let reply = world
        .respond(json!({"input": "Tell me the capital of Vietnam.", "metadata": {"a": "b"}}))
        .await;
    let id = format!("resp_{}", reply.request_id());
    let body = reply.json();
    assert_eq!(
        (&body["id"], &body["object"], &body["status"], &body["store"]),
        (&json!(id), &json!("response"), &json!("completed"), &json!(false))
    );
    let message = json!({
        "type": "message",
        "id": format!("msg_{}_0", reply.request_id()),
        "role": "assistant",
        "content": [{"type": "output_text", "text": ANSWER_TEXT, "annotations": [], "logprobs": []}],
        "status": "completed",
    });
    assert_eq!(body["output"], json!([message]));
    let usage = json!({
        "input_tokens": 15,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 14,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 29,
    });
    assert_eq!((&body["usage"], &body["metadata"]), (&usage, &json!({"a": "b"})));
    // The same conversation as a chat has it.
    let prompt = world.last_prompt();
    world
        .chat(json!({"messages": [{"role": "user", "content": "Tell me the capital of Vietnam."}]}))
        .await;
    assert_eq!(prompt, world.last_prompt());
}

#[tokio::test]
async fn items_are_the_messages_that_they_stand_for() {
    let world = world();
    let items = json!([
        {"role": "user", "content": [{"type": "input_text", "text": "What time is it?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "id": "fc_1", "call_id": "abcdefghi", "name": "get_time", "arguments": "{}"},
        {"type": "function_call", "call_id": "abcdefghj", "name": "get_time", "arguments": "{\"city\": \"Bern\"}"},
        {"type": "function_call_output", "call_id": "abcdefghi", "output": "12:00"},
        {"type": "function_call_output", "call_id": "abcdefghj", "output": [{"type": "input_text", "text": "13:00"}]},
        {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": null},
    ]);
    let reply = world
        .respond(json!({"input": items, "instructions": "Be brief.", "tools": tools()}))
        .await;
    assert_eq!(reply.status, StatusCode::OK, "{:?}", reply.body);
    assert_eq!(reply.json()["tools"], tools());
    let prompt = world.last_prompt();
    let call = |id: &str, arguments: &str| json!({"id": id, "function": {"name": "get_time", "arguments": arguments}});
    let chat = json!({
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What time is it?"},
            {"role": "assistant", "reasoning_content": "Hm.", "content": "Let me see.", "tool_calls": [
                call("abcdefghi", "{}"), call("abcdefghj", "{\"city\": \"Bern\"}")]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "12:00"},
            {"role": "tool", "tool_call_id": "abcdefghj", "content": "13:00"},
        ],
        "tools": [{"type": "function", "function": {
            "name": "get_time", "description": "The time.", "parameters": {"type": "object"}}}],
    });
    assert_eq!(world.chat(chat).await.status, StatusCode::OK);
    assert_eq!(prompt, world.last_prompt());
}

#[tokio::test]
async fn a_stream_tells_what_the_whole_response_has() {
    for (tokens, expected) in [
        (
            ANSWER.to_vec(),
            vec![
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.completed",
            ],
        ),
        (
            thinking("Hanoi?", "Hanoi."),
            vec![
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.reasoning_text.delta",
                "response.reasoning_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.completed",
            ],
        ),
    ] {
        let world = saying(&tokens);
        let fields = json!({"input": "a", "tools": tools(), "top_logprobs": 0});
        let whole = world.respond(fields.clone()).await.json();
        let mut streaming = fields;
        streaming["stream"] = json!(true);
        let events = told(&world.respond(streaming).await);
        assert_eq!(names(&events), expected);
        let last = &events[events.len() - 1]["response"];
        let without_ids = |output: &Value| {
            let mut output = output.clone();
            for item in output.as_array_mut().unwrap() {
                item["id"] = json!(null);
            }
            output
        };
        assert_eq!(without_ids(&last["output"]), without_ids(&whole["output"]));
        assert_eq!(last["usage"], whole["usage"]);
        // Deltas make up the text, and its tokens' log-probabilities.
        let deltas = events
            .iter()
            .filter(|event| event["type"] == "response.output_text.delta");
        let text: String = deltas
            .clone()
            .filter_map(|event| event["delta"].as_str())
            .collect();
        let item = whole["output"].as_array().unwrap().last().unwrap();
        assert_eq!(item["content"][0]["text"], text);
        assert!(deltas.clone().count() > 1);
        assert!(
            deltas
                .clone()
                .any(|event| event["logprobs"].as_array().is_some_and(|all| !all.is_empty()))
        );
    }
}

#[tokio::test]
async fn calls_are_items_of_their_own() {
    let world = saying(&two_calls());
    let whole = world
        .respond(json!({"input": "a", "tools": tools()}))
        .await
        .json();
    let calls = whole["output"].as_array().unwrap();
    assert_eq!(calls.len(), 2);
    for call in calls {
        assert_eq!(
            (&call["type"], &call["name"]),
            (&json!("function_call"), &json!("get_time"))
        );
        assert_eq!(call["arguments"], "{\"city\": \"Bern\"}");
        assert_eq!(call["call_id"].as_str().map(str::len), Some(9));
    }
    assert_eq!(whole["status"], "completed");
    let events = told(
        &world
            .respond(json!({"input": "a", "tools": tools(), "stream": true}))
            .await,
    );
    let one = [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ];
    let expected = [
        &["response.created", "response.in_progress"],
        &one[..],
        &one[..],
        &["response.completed"],
    ];
    assert_eq!(names(&events), expected.concat());
    let second = events
        .iter()
        .rfind(|event| event["type"] == "response.function_call_arguments.done");
    let second = second.unwrap();
    assert_eq!(
        (&second["output_index"], &second["name"]),
        (&json!(1), &json!("get_time"))
    );
    let one = world
        .respond(json!({"input": "a", "tools": tools(), "parallel_tool_calls": false}))
        .await
        .json();
    assert_eq!(one["output"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn what_was_asked_for_is_repeated_on_one_line() {
    let world = world();
    let format = json!({"type": "json_schema", "name": "a", "schema": {"type": "object"}});
    let named = json!({"type": "function", "name": "get_time"});
    let body = json!({
        "model": MODEL, "input": "a", "tools": tools(), "tool_choice": named, "text": {"format": format},
        "metadata": {"a": "b"}, "stream": true,
    });
    let body = serde_json::to_string_pretty(&body).unwrap();
    let reply = world.send(Method::POST, PATH, body.replace('\n', "\r\n")).await;
    assert_eq!(reply.status, StatusCode::OK, "{:?}", reply.body);
    let events = told(&reply);
    for event in [&events[0], &events[events.len() - 1]] {
        let response = &event["response"];
        assert_eq!(response["tools"], tools());
        assert_eq!(response["tool_choice"], named);
        assert_eq!(response["text"], json!({"format": format}));
        assert_eq!(response["metadata"], json!({"a": "b"}));
    }
    let plain = world.respond(json!({"input": "a"})).await.json();
    assert_eq!(plain["text"], json!({"format": {"type": "text"}}));
    assert_eq!(
        (&plain["tools"], &plain["tool_choice"]),
        (&json!([]), &json!("auto"))
    );
}

#[tokio::test]
async fn a_response_belongs_to_its_clients_trace() {
    let world = world();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let request = Request::builder()
        .method(Method::POST)
        .uri(PATH)
        .header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"))
        .body(Body::from(with_model(json!({"input": "a"})).to_string()))
        .unwrap();
    let response = world.app.router.clone().oneshot(request).await.unwrap();
    let told = response.headers()["traceresponse"].to_str().unwrap();
    assert!(told.contains(trace), "{told}");
    let seen = world.heads.seen();
    assert_eq!(seen[0].1.trace.to_string(), trace);
}

#[tokio::test(start_paused = true)]
async fn what_ends_early_says_why() {
    let cut = Setup {
        acts: vec![Act::EndAfter(3, tramontane_proto::Ended::Length)],
        ..Setup::default()
    }
    .build();
    let body = cut
        .respond(json!({"input": "a", "max_output_tokens": 3}))
        .await
        .json();
    assert_eq!(
        (
            &body["status"],
            &body["incomplete_details"],
            &body["max_output_tokens"]
        ),
        (
            &json!("incomplete"),
            &json!({"reason": "max_output_tokens"}),
            &json!(3)
        )
    );
    let broken = Setup {
        acts: vec![Act::EndAfter(3, tramontane_proto::Ended::Deadline)],
        ..Setup::default()
    }
    .build();
    let events = told(&broken.respond(json!({"input": "a", "stream": true})).await);
    let last = &events[events.len() - 1];
    assert_eq!(
        (&last["type"], &last["response"]["status"]),
        (&json!("response.failed"), &json!("failed"))
    );
    assert_eq!(
        last["response"]["error"]["message"],
        "the request did not complete within 600 s"
    );
}

#[tokio::test]
async fn errors_name_the_item() {
    let world = world();
    let user = json!({"role": "user", "content": "a"});
    for (fields, param) in [
        (json!({}), "input"),
        (json!({"input": 7}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [user, {"content": "a"}]}), "input[1].role"),
        (
            json!({"input": [{"role": "king", "content": "a"}]}),
            "input[0].role",
        ),
        (
            json!({"input": [user, {"type": "function_call", "name": "f"}]}),
            "input[1].call_id",
        ),
        (
            json!({"input": [user, {"type": "item_reference", "id": "x"}]}),
            "input[1].type",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0].type",
        ),
        (
            json!({"input": [user, {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "a"}]},
                {"role": "assistant", "content": 5}]}),
            "input[2].content",
        ),
        (
            json!({"input": [user, {"type": "function_call", "call_id": "a", "name": "f"},
                {"type": "function_call_output", "call_id": "b", "output": "x"}]}),
            "input[2].call_id",
        ),
        (
            json!({"input": "a", "tools": [{"type": "web_search"}]}),
            "tools[0].type",
        ),
        (
            json!({"input": "a", "tools": [{"type": "function", "name": "no good"}]}),
            "tools[0].name",
        ),
        (
            json!({"input": "a", "tools": [{"type": "function", "name": "f", "strict": 1}]}),
            "tools[0].strict",
        ),
        (
            json!({"input": "a", "tools": [{"type": "function", "name": "f", "strict": true, "parameters": {"not": {}}}]}),
            "tools[0].parameters",
        ),
        (json!({"input": "a", "tool_choice": "required"}), "tool_choice"),
        (
            json!({"input": "a", "tools": tools(), "tool_choice": "must"}),
            "tool_choice",
        ),
        (
            // As chats have it.
            json!({"input": "a", "tools": tools(), "tool_choice": {"type": "function", "function": {"name": "get_time"}}}),
            "tool_choice",
        ),
        (
            json!({"input": "a", "tools": tools(), "tool_choice": {"type": "function", "name": "other"}}),
            "tool_choice.name",
        ),
        (
            json!({"input": "a", "text": {"format": {"type": "xml"}}}),
            "text.format.type",
        ),
        (json!({"input": "a", "text": {"format": {}}}), "text.format"),
        (
            json!({"input": "a", "text": {"format": {"type": "json_schema", "name": "a"}}}),
            "text.format.schema",
        ),
        (
            json!({"input": "a", "text": {"format": {"type": "json_schema", "name": "a", "schema": {"not": {}}}}}),
            "text.format.schema",
        ),
        (
            json!({"input": "a", "guided_regex": "a", "text": {"format": {"type": "json_object"}}}),
            "text.format",
        ),
        (json!({"input": "a", "store": true}), "store"),
        (json!({"input": "a", "background": true}), "background"),
        (json!({"input": "a", "prompt": {"id": "pmpt_1"}}), "prompt"),
        (
            json!({"input": "a", "previous_response_id": "resp_1"}),
            "previous_response_id",
        ),
        (json!({"input": "a", "max_output_tokens": 0}), "max_output_tokens"),
        (
            json!({"input": "a", "max_output_tokens": 4096}),
            "max_output_tokens",
        ),
        (json!({"input": "word ".repeat(5000)}), "input"),
    ] {
        let reply = world.respond(fields.clone()).await;
        let error = &reply.json()["error"];
        assert_eq!(
            (reply.status, &error["param"]),
            (StatusCode::BAD_REQUEST, &json!(param)),
            "{fields} {error}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("{param}: ")), "{fields} {message}");
    }
    assert!(world.heads.seen().is_empty());
}
