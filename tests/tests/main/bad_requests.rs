//! Requests that cannot be answered: each gets an error that names its field and says what would be right, and the
//! cluster answers the others as before.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tramontane_tests::client::{Answer, Client};
use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::wait::need;

/// Tokens that the miniature's prompts and answers may have together.
const CONTEXT: usize = 4096;
const CHAT: &str = "/v1/chat/completions";
const PLAIN: &str = "/v1/completions";

/// A body, and the error that it gets: status, field, and a part of the message.
struct Case {
    path: &'static str,
    body: String,
    status: u16,
    param: Option<&'static str>,
    says: &'static str,
}

fn case(path: &'static str, body: impl ToString, param: &'static str, says: &'static str) -> Case {
    Case {
        path,
        body: body.to_string(),
        status: 400,
        param: Some(param),
        says,
    }
}

/// A body that is no request at all.
fn broken(body: impl ToString, says: &'static str) -> Case {
    Case {
        param: None,
        ..case(CHAT, body, "", says)
    }
}

/// A right chat request but for one field.
fn chat(field: &str, value: Value, param: &'static str, says: &'static str) -> Case {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]});
    body[field] = value;
    case(CHAT, body, param, says)
}

/// A right plain request but for one field.
fn plain(field: &str, value: Value, param: &'static str, says: &'static str) -> Case {
    let mut body = json!({"model": MODEL, "prompt": [1, 2, 3]});
    body[field] = value;
    case(PLAIN, body, param, says)
}

fn bodies() -> Vec<Case> {
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    vec![
        broken("", "not JSON"),
        broken("{\"model\": ", "not JSON"),
        broken("model=mini", "not JSON"),
        broken("[]", "expected a JSON object"),
        broken("{\"model\": \"a\", \"model\": \"b\"}", "\"model\" is there twice"),
        broken(deep(200_000), "expected a JSON object"),
        case(
            CHAT,
            format!("{{\"x\": {}}}", deep(200_000)),
            "x",
            "at most 127 levels",
        ),
        case(CHAT, format!("{{\"x\": {}}}", deep(128)), "x", "nested too deep"),
    ]
}

fn chats() -> Vec<Case> {
    let message = |message: Value| json!([message]);
    let long = "one two three four ".repeat(CONTEXT);
    vec![
        case(
            CHAT,
            json!({"messages": []}),
            "model",
            "is missing, it must be \"mini-large-3\"",
        ),
        chat("model", json!(7), "model", "expected a string"),
        Case {
            status: 404,
            ..chat(
                "model",
                json!("gpt-4"),
                "model",
                "this cluster serves \"mini-large-3\"",
            )
        },
        case(
            CHAT,
            json!({"model": MODEL}),
            "messages",
            "must be an array of at least one message",
        ),
        chat("messages", json!([]), "messages", "at least one message"),
        chat("messages", json!("Hi"), "messages", "expected"),
        chat(
            "messages",
            message(json!({"role": "user", "content": 5})),
            "messages[0].content",
            "string",
        ),
        chat(
            "messages",
            message(json!({"role": "king", "content": "Hi"})),
            "messages[0].role",
            "\"user\"",
        ),
        chat(
            "messages",
            message(json!({"role": "user", "content": long})),
            "messages",
            "context of 4096",
        ),
        chat("max_tokens", json!(-1), "max_tokens", "from 1 to 4096"),
        chat("max_tokens", json!(0), "max_tokens", "from 1 to 4096"),
        chat(
            "max_tokens",
            json!(1_000_000_000_000_u64),
            "max_tokens",
            "from 1 to 4096",
        ),
        chat("max_tokens", json!("5"), "max_tokens", "whole number"),
        chat(
            "max_tokens",
            json!(CONTEXT),
            "max_tokens",
            "fit the context of 4096",
        ),
        chat("temperature", json!("hot"), "temperature", "from 0 to 2"),
        chat("temperature", json!(2.5), "temperature", "from 0 to 2"),
        chat("top_p", json!(0), "top_p", "above 0"),
        chat("seed", json!(0.5), "seed", "whole number"),
        chat("stop", json!([""]), "stop", "must not be empty"),
        chat("stream", json!("yes"), "stream", "boolean"),
        chat(
            "stream_options",
            json!({}),
            "stream_options",
            "only where stream is true",
        ),
        chat(
            "top_logprobs",
            json!(3),
            "top_logprobs",
            "only where logprobs is true",
        ),
        chat("n", json!(17), "n", "from 1 to 16"),
        chat("tools", json!("none"), "tools", "expected"),
        chat(
            "tool_choice",
            json!("must"),
            "tool_choice",
            "use \"auto\", \"none\", \"required\"",
        ),
    ]
}

fn plains() -> Vec<Case> {
    let prompt = |prompt: Value, param, says| plain("prompt", prompt, param, says);
    vec![
        prompt(json!(null), "prompt", "is missing"),
        prompt(json!([]), "prompt", "is empty"),
        prompt(json!({"text": "Hi"}), "prompt", "string, an array of token ids"),
        prompt(json!([1, 8192]), "prompt[1]", "ids are below 8192"),
        prompt(json!([[1], [2, 9000]]), "prompt[1][1]", "ids are below 8192"),
        prompt(json!([-1]), "prompt[0]", "below 0"),
        prompt(
            json!([4_294_967_296_u64]),
            "prompt[0]",
            "outside every vocabulary",
        ),
        prompt(json!([1, "a"]), "prompt[1]", "expected a token id"),
        prompt(json!(vec![5; CONTEXT]), "prompt", "at most 4095 leave room"),
        prompt(json!(vec![5; CONTEXT * 20]), "prompt", "at most 4095 leave room"),
        prompt(
            json!("word ".repeat(CONTEXT * 2)),
            "prompt",
            "at most 4095 leave room",
        ),
        prompt(json!(vec!["a"; 65]), "prompt", "at most 64"),
        plain("logprobs", json!(21), "logprobs", "from 0 to 20"),
        plain("max_tokens", json!(4094), "max_tokens", "at most 4093 fit"),
        plain("ignore_eos", json!(1), "ignore_eos", "boolean"),
    ]
}

/// Checks an error and its form: OpenAI's clients read these four fields.
fn check(answer: &Answer, case: &Case) -> Result<(), String> {
    need(answer.status == case.status, || {
        format!("the status is not {}", case.status)
    })?;
    let body = answer.json();
    let error = body["error"].as_object().ok_or("there is no error")?;
    let keys: Vec<&str> = error.keys().map(String::as_str).collect();
    need(keys == ["message", "type", "param", "code"], || {
        format!("fields {keys:?}")
    })?;
    need(error["type"] == "invalid_request_error", || {
        "another type".to_owned()
    })?;
    need(error["param"].as_str() == case.param, || {
        format!("the field is not {:?}", case.param)
    })?;
    let message = error["message"].as_str().ok_or("there is no message")?;
    need(message.contains(case.says), || {
        format!("{:?} is not said", case.says)
    })?;
    need(message.len() < 1000, || "the message is too long".to_owned())
}

async fn check_routes(client: &Client) {
    let soon = Duration::from_secs(10);
    let no_body = String::new();
    let answer = client
        .send(Method::GET, CHAT, no_body, soon)
        .await
        .expect("an answer");
    assert_eq!(answer.status, 405, "{answer:?}");
    let answer = client.get("/v1/embeddings").await.expect("an answer");
    assert_eq!(answer.status, 404, "{answer:?}");
    assert_eq!(answer.json()["error"]["code"], "unknown_route");
    let answer = client.get("/v1/models/gpt-4").await.expect("an answer");
    assert_eq!(answer.status, 404, "{answer:?}");
    let answer = client
        .send(Method::POST, CHAT, " ".repeat(5 << 20), soon)
        .await
        .expect("an answer");
    assert_eq!(answer.status, 413, "{answer:?}");
    let answer = announce_body(client, 5 << 20).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("\"code\":\"body_too_large\""), "{answer}");
}

/// What is said of a body of so many bytes, of which none is sent.
async fn announce_body(client: &Client, bytes: usize) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(&client.address).await?;
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), read).await??;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_request_is_told_its_fault_and_disturbs_nothing() {
    let mut cluster = Cluster::start(Plan::new(1)).await;
    let client = cluster.client(1);
    let mut faults = Vec::new();
    for case in bodies().into_iter().chain(chats()).chain(plains()) {
        let answer = client.post(case.path, &case.body).await.expect("an answer");
        let shown: String = case.body.chars().take(200).collect();
        let wrong = check(&answer, &case);
        faults.extend(
            wrong
                .err()
                .map(|wrong| format!("{wrong}: {} {shown}: {answer:?}", case.path)),
        );
    }
    assert!(faults.is_empty(), "{faults:#?}");
    check_routes(&client).await;
    cluster.check_alive();
    cluster.until_idle().await;
    cluster.check_answers().await;
}
