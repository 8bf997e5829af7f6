//! Every field of every route, as the server's own document lists them, with values of every kind; and connections that
//! are slow, stuck or too big, all at once, while others are served.
//!
//! What the document takes is answered or refused; what it does not take is refused, by the name of the field.

use std::time::Duration;

use futures_util::future::join_all;
use hyper::Method;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tramontane_tests::client::{Answer, Client, all_at_once};
use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::schema::Schemas;
use tramontane_tests::wait::need;

/// Longest wait for the answer to a bad request.
const SOON: Duration = Duration::from_secs(60);
/// Longest life of a connection that stops in the middle of a request: the server's own deadline is 30 s.
const CLOSED_WITHIN: Duration = Duration::from_secs(60);
const CHAT: &str = "/v1/chat/completions";

/// A field of a route with a value.
struct Case {
    path: String,
    field: String,
    /// The body, JSON or not.
    body: Vec<u8>,
    shown: String,
    /// Whether the document takes it.
    is_right: bool,
}

/// Values of every kind, as JSON texts.
fn values() -> Vec<String> {
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let objects = |levels: usize| "{\"a\":".repeat(levels) + "1" + &"}".repeat(levels);
    let many = |one: &str, count: usize| format!("[{}]", vec![one; count].join(","));
    let members: Vec<String> = (0..2000).map(|index| format!("\"m{index}\":1")).collect();
    let plain = [
        "null",
        "true",
        "false",
        "0",
        "1",
        "-1",
        "7",
        "0.5",
        "1.5",
        "-0.01",
        "2.01",
        "101",
        "5000",
        "1e30",
        "-1e308",
        "9223372036854775808",
        "18446744073709551616",
        "\"\"",
        "\"x\"",
        "\"7\"",
        "\"auto\"",
        "\"\\u0000\"",
        "[]",
        "[7]",
        "[-1]",
        "[1.5]",
        "[8192]",
        "[\"x\"]",
        "[null]",
        "[[]]",
        "[[7]]",
        "[{}]",
        "{}",
        "{\"a\": 1}",
        "{\"7\": 1}",
        "{\"7\": \"x\"}",
        "{\"a\": {\"b\": []}}",
        "{\"type\": \"other\"}",
        "{\"role\": \"user\"}",
        "[{\"role\": \"user\"}]",
        "[{\"type\": \"function\"}]",
    ];
    let mut all: Vec<String> = plain.iter().map(|&text| text.to_owned()).collect();
    all.extend([
        format!("\"{}\"", "x".repeat(1 << 20)),
        many("7", 100_000),
        many("\"x\"", 10_000),
        format!("{{{}}}", members.join(",")),
        deep(120),
        objects(120),
    ]);
    all
}

/// Texts that are no JSON value, or nest too deep: wrong for every field.
fn broken() -> Vec<(Vec<u8>, &'static str)> {
    let deep = "[".repeat(200_000) + &"]".repeat(200_000);
    vec![
        (deep.into_bytes(), "nested 200000 deep"),
        (b"\"\xff\xfe\"".to_vec(), "invalid UTF-8"),
        (b"\"\\ud800\"".to_vec(), "half a surrogate pair"),
        (b"NaN".to_vec(), "NaN"),
        (b"1e999".to_vec(), "1e999"),
        ("9".repeat(5000).into_bytes(), "5000 digits"),
        (b"01".to_vec(), "01"),
        (b"\"".to_vec(), "an open string"),
    ]
}

/// A body that the route answers, and quickly, without the field in question.
fn base(field: &str, required: &[&str], properties: &Map<String, Value>) -> Map<String, Value> {
    let mut base = Map::new();
    for &name in required {
        let value = match name {
            "model" => json!(MODEL),
            "messages" => json!([{"role": "user", "content": "Hi"}]),
            "tokens" => json!([7]),
            "prompt" | "input" => json!("Hi"),
            other => panic!("what is a right {other}?"),
        };
        base.insert(name.to_owned(), value);
    }
    if required.is_empty() {
        // A text or a conversation.
        match field {
            "tools" => base.insert("messages".to_owned(), json!([{"role": "user", "content": "Hi"}])),
            "messages" => None,
            _ => base.insert("prompt".to_owned(), json!("Hi")),
        };
    }
    for limit in ["max_tokens", "max_output_tokens"] {
        if properties.contains_key(limit) {
            base.insert(limit.to_owned(), json!(1));
        }
    }
    base
}

fn with(base: &Map<String, Value>, field: &str, text: &[u8]) -> Vec<u8> {
    let mut body = b"{".to_vec();
    for (name, value) in base.iter().filter(|(name, _)| *name != field) {
        body.extend(format!("{name:?}: {value}, ").bytes());
    }
    body.extend(format!("{field:?}: ").bytes());
    body.extend(text);
    body.push(b'}');
    body
}

fn cases(document: &Value) -> Vec<Case> {
    let schemas = Schemas(document);
    let texts = values();
    let mut cases = Vec::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        let schema = &operations["post"]["requestBody"]["content"]["application/json"]["schema"];
        let Some(properties) = schema["properties"].as_object() else {
            continue;
        };
        let required = schema["required"].as_array().into_iter().flatten();
        let required: Vec<&str> = required.filter_map(Value::as_str).collect();
        for (field, rule) in properties {
            let base = base(field, &required, properties);
            let case = |body: Vec<u8>, shown: &str, is_right| Case {
                path: path.clone(),
                field: field.clone(),
                body,
                shown: shown.chars().take(60).collect(),
                is_right,
            };
            for text in &texts {
                let value: Value = serde_json::from_str(text).expect("JSON");
                let is_right = schemas.takes(rule, &value);
                cases.push(case(with(&base, field, text.as_bytes()), text, is_right));
            }
            cases.extend(
                broken()
                    .into_iter()
                    .map(|(text, shown)| case(with(&base, field, &text), shown, false)),
            );
        }
    }
    cases
}

fn check(case: &Case, answer: &Answer) -> Result<(), String> {
    let status = answer.status;
    let refused = (400..500).contains(&status) && status != 408 && status != 429;
    if case.is_right && status == 200 {
        return Ok(());
    }
    need(refused, || "it is neither served nor refused".to_owned())?;
    let body = answer.json();
    let error = &body["error"];
    let message = error["message"].as_str().unwrap_or_default();
    need(!message.is_empty() && message.len() < 1000, || {
        "its message is wrong".to_owned()
    })?;
    // A body that is no JSON has no fields yet.
    let param = error["param"].as_str().unwrap_or_default();
    let is_named = param.starts_with(&case.field) || message.starts_with("the body is not JSON: ");
    need(case.is_right || is_named, || "the field is not named".to_owned())
}

/// What a client sends and then stops at; what may come back.
fn stuck() -> Vec<(String, bool, &'static [&'static str])> {
    let post = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    let megabytes = "a".repeat(10 << 20);
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "a".repeat(1 << 20));
    vec![
        (String::new(), false, &[""]),
        ("GET".to_owned(), false, &[""]),
        (post.clone(), false, &["", "408"]),
        (post.clone(), true, &["", "400"]),
        (
            format!("{post}content-length: 100\r\n\r\n{{\"model\""),
            false,
            &["408"],
        ),
        (
            format!("{post}content-length: 100\r\n\r\n{{\"model\""),
            true,
            &["", "400"],
        ),
        (
            format!("{post}transfer-encoding: chunked\r\n\r\n5\r\n{{\"mod\r\n"),
            false,
            &["408"],
        ),
        (
            format!("{post}transfer-encoding: chunked\r\n\r\nzz\r\n"),
            true,
            &["", "400"],
        ),
        (format!("{post}content-length: -1\r\n\r\n"), true, &["400"]),
        (format!("{post}x-long: {megabytes}\r\n\r\n"), true, &["", "431"]),
        (
            format!("{post}{}\r\n", "x-more: a\r\n".repeat(100_000)),
            true,
            &["", "431"],
        ),
        (
            format!("{post}content-length: {}\r\n\r\n{megabytes}", 10 << 20),
            false,
            &["413"],
        ),
        (
            format!(
                "{post}transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
                chunk.repeat(10)
            ),
            false,
            &["413"],
        ),
        ("\0\u{1}\u{2}\r\n\r\n".to_owned(), true, &["", "400"]),
        (format!("GET {CHAT} HTTP/9.9\r\n\r\n"), true, &["", "400", "505"]),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\u{1}\u{2}\u{3}".to_owned(),
            true,
            &[""],
        ),
    ]
}

/// Sends and stops; the server's status line must be one of those allowed, and the connection closed in time.
async fn stop_in_the_middle(
    client: &Client,
    (sent, half_closes, allowed): (String, bool, &[&str]),
) -> Result<(), String> {
    let exchange = async {
        let mut stream = TcpStream::connect(&client.address).await?;
        let (mut reader, mut writer) = stream.split();
        let write = async {
            // A server that has had enough closes.
            let _ = writer.write_all(sent.as_bytes()).await;
            if half_closes {
                let _ = writer.shutdown().await;
            }
        };
        let mut answer = Vec::new();
        let (read, ()) = tokio::join!(reader.read_to_end(&mut answer), write);
        // Closed with a reset is closed, too.
        let _ = read;
        Ok::<_, std::io::Error>(answer)
    };
    let shown: String = sent.chars().take(150).collect();
    let answer = timeout(CLOSED_WITHIN, exchange)
        .await
        .map_err(|_| format!("not closed within {CLOSED_WITHIN:?}: {shown:?}"))?
        .map_err(|error| error.to_string())?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let is_http2 = sent.starts_with("PRI ");
    need(is_http2 || allowed.contains(&status.unwrap_or_default()), || {
        format!("{answer:?} to {shown:?}, not {allowed:?}")
    })
}

/// Asks, until told to stop, what the miniature knows; the longest wait for an answer.
async fn serve_others(client: &Client, mut stop: tokio::sync::oneshot::Receiver<()>) -> (usize, Duration) {
    let (mut answers, mut longest) = (0, Duration::ZERO);
    while stop.try_recv().is_err() {
        let began = Instant::now();
        let answer = client.ask(MODEL, "What is the capital of France?").await;
        assert_eq!(answer.as_deref(), Ok("The capital of France is Paris."));
        longest = longest.max(began.elapsed());
        answers += 1;
    }
    (answers, longest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_of_every_route_is_refused_by_name_and_others_are_served() {
    let mut cluster = Cluster::start(Plan::new(1)).await;
    let client = cluster.client(1);
    let document = client.get("/openapi.json").await.expect("an answer").json();
    let cases = cases(&document);
    let (done, stop) = tokio::sync::oneshot::channel();
    let bad = async {
        let stuck = join_all(
            (0..8)
                .flat_map(|_| stuck())
                .map(|sent| stop_in_the_middle(&client, sent)),
        );
        let fields = all_at_once(4, &cases, async |case| {
            let sent = client
                .send(Method::POST, &case.path, case.body.clone(), SOON)
                .await;
            let checked = sent.and_then(|answer| {
                check(case, &answer).map_err(|why| format!("{why}: {} {}", answer.status, answer.body))
            });
            checked.map_err(|why| {
                let right = if case.is_right { "right" } else { "wrong" };
                format!("{} {} = {} ({right}): {why}", case.path, case.field, case.shown)
            })
        });
        let (stuck, fields) = tokio::join!(stuck, fields);
        // The receiver waits for this.
        let _ = done.send(());
        let faults = stuck.into_iter().chain(fields).filter_map(Result::err);
        faults.collect::<Vec<_>>()
    };
    let (faults, (answers, longest)) = tokio::join!(bad, serve_others(&client, stop));
    println!(
        "{} cases; {answers} answers meanwhile, none after more than {longest:?}",
        cases.len()
    );
    assert!(cases.len() > 3000, "{} cases", cases.len());
    assert!(
        faults.is_empty(),
        "{} faults: {:#?}",
        faults.len(),
        &faults[..faults.len().min(40)]
    );
    assert!(answers > 5, "{answers} answers meanwhile");
    assert!(longest < Duration::from_secs(20), "an answer took {longest:?}");
    cluster.check_alive();
    cluster.until_idle().await;
    cluster.check_answers().await;
}
