//! `/tokenize`, `/detokenize`, `/version`, Mistral's models, and what stands in the logs.

use std::io;
use std::sync::Mutex;

use super::*;

#[tokio::test]
async fn text_becomes_tokens_and_text_again() {
    let world = world();
    let prompt = "Tell me the capital of Vietnam.";
    let reply = world.post("/tokenize", json!({"prompt": prompt})).await.json();
    let with_bos = [&[1], &QUESTION[..]].concat();
    assert_eq!(
        reply,
        json!({"tokens": with_bos, "count": 13, "max_model_len": 4096})
    );
    let bare =
        json!({"prompt": prompt, "add_special_tokens": false, "return_token_strs": true, "model": MODEL});
    let reply = world.post("/tokenize", bare).await.json();
    assert_eq!(reply["tokens"], json!(QUESTION));
    assert_eq!(reply["token_strs"][0], "T");

    let back = world
        .post("/detokenize", json!({"tokens": with_bos}))
        .await
        .json();
    assert_eq!(back, json!({"prompt": prompt}));
    let shown = json!({"tokens": with_bos, "skip_special_tokens": false});
    let back = world.post("/detokenize", shown).await.json();
    assert_eq!(back["prompt"], format!("<s>{prompt}"));
    assert!(world.heads.seen().is_empty());
}

#[tokio::test]
async fn a_conversation_has_the_tokens_that_the_model_gets() {
    let world = world();
    let fields = json!({
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    });
    let reply = world.post("/tokenize", fields.clone()).await.json();
    world.chat(fields).await;
    assert_eq!(reply["tokens"], json!(world.heads.seen()[0].1.prompt));
}

#[tokio::test]
async fn faults_name_the_field() {
    let world = world();
    for (path, body, param, message) in [
        (
            "/tokenize",
            json!({}),
            json!("prompt"),
            "prompt: is missing, it must be a string unless there are messages",
        ),
        (
            "/tokenize",
            json!({"prompt": "a", "messages": []}),
            json!("prompt"),
            "prompt: and messages are both there, a request has one of them",
        ),
        (
            "/tokenize",
            json!({"messages": []}),
            json!("messages"),
            "messages: must have at least one message",
        ),
        (
            "/tokenize",
            json!({"prompt": "a", "model": "gpt"}),
            json!("model"),
            "model: \"gpt\" does not exist, this cluster serves \"mini-large-3\"",
        ),
        (
            "/detokenize",
            json!({}),
            json!("tokens"),
            "tokens: is missing, it must be an array of token ids",
        ),
        (
            "/detokenize",
            json!({"tokens": [1, 8192]}),
            json!("tokens[1]"),
            "tokens[1]: token id 8192 is outside the vocabulary, ids are below 8192",
        ),
        (
            "/detokenize",
            json!({"tokens": [1, "a"]}),
            json!("tokens[1]"),
            "tokens[1]: invalid type: string \"a\", expected a token id, a whole number from 0",
        ),
    ] {
        let error = world.post(path, body).await.json()["error"].clone();
        assert_eq!(
            (&error["param"], error["message"].as_str()),
            (&param, Some(message))
        );
    }
}

#[tokio::test]
async fn the_version_and_the_models_of_either_client_are_told() {
    let world = world();
    let version = world.get("/version").await.json();
    assert_eq!(version, json!({"version": env!("CARGO_PKG_VERSION")}));
    let listed = world.get("/mistral/v1/models").await.json();
    let model = &listed["data"][0];
    assert_eq!(model["type"], "base");
    assert_eq!(model["max_context_length"], 4096);
    assert_eq!(model["capabilities"]["reasoning"], true);
    assert_eq!(world.get("/mistral/v1/models/mini-large-3").await.json(), *model);
    let other = world.get("/mistral/v1/models/other").await;
    assert_eq!(other.status, StatusCode::NOT_FOUND);
}

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn logs_have_ids_and_never_prompts() {
    // With one subscriber alone, a thread without any could decide for all that a line is never wanted.
    let _another = tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish());
    let kept = Kept::default();
    let writer = kept.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let world = Setup {
        acts: vec![Act::BreakAfter(2)],
        ..Setup::default()
    }
    .build();
    let fields = json!({
        "messages": [{"role": "user", "content": "a secret"}],
        "tools": [{"function": {"name": "f", "description": "a secret"}}],
        "user": "a secret",
        "metadata": {"a secret": "a secret"},
        "n": 2,
    });
    let answered = world.chat(fields).await;
    assert_eq!(answered.status, StatusCode::OK);
    let refused = world
        .complete(json!({"prompt": "a secret", "temperature": 9}))
        .await;
    world.post("/tokenize", json!({"prompt": "a secret"})).await;
    world.all_closed().await;
    tokio::task::yield_now().await;
    let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let response = |reply: &Reply| {
        let mut fields = lines.iter().map(|line| &line["fields"]);
        let found =
            fields.find(|line| line["request"] == reply.request_id() && line["message"] == "response");
        found.unwrap_or_else(|| panic!("no line tells the response of {reply:?}:\n{text}"))
    };
    let told = answered.headers["traceresponse"].to_str().unwrap();
    assert_eq!(
        told.split('-').nth(1),
        response(&answered)["trace"].as_str(),
        "{told}"
    );
    for (field, value) in [
        ("status", json!(200)),
        ("model", json!(MODEL)),
        ("choices", json!(2)),
        ("cached_tokens", json!(2)),
        ("completion_tokens", json!(2 * ANSWER.len())),
        ("finish_reason", json!("stop")),
        ("queue_ms", json!(1.5)),
        ("retries", json!(1)),
        ("replica", json!(1)),
        ("generation", json!(1)),
    ] {
        assert_eq!(response(&answered)[field], value, "{field}");
    }
    let refusal = response(&refused);
    assert_eq!(
        (&refusal["error"], &refusal["status"]),
        (&json!("invalid_request_error"), &json!(400))
    );
    assert!(refusal["choices"].is_null(), "{refusal}");
    let joined = lines.iter().any(|line| {
        line["fields"]["request"] == answered.request_id() && line["fields"]["message"] == "prompt submitted"
    });
    assert!(joined, "{text}");
    for secret in ["secret", "Hanoi", "Vietnam"] {
        assert!(!text.contains(secret), "{secret} is in the logs:\n{text}");
    }
}
