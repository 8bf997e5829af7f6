//! What an operator sees of requests: their trace in every log, never their prompts, and what the histograms say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use tramontane_tests::client::{Answer, Client};
use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::wait::{need, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SOON: Duration = Duration::from_secs(60);
/// Words that stand in the prompt and must stand nowhere else.
const SECRETS: [&str; 3] = ["zebrafish", "marmalade", "Quetzal"];
/// What a chat's answer and its log line agree on.
const MAX_TOKENS: u64 = 9;

async fn traced(client: &Client, stream: bool) -> Answer {
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let body = json!({
        "model": MODEL,
        "messages": [{"role": "user", "content": format!("{} likes {}?", SECRETS[0], SECRETS[1])}],
        "user": SECRETS[2],
        "temperature": 0,
        "ignore_eos": true,
        "max_tokens": MAX_TOKENS,
        "stream": stream,
    });
    let headers = [("traceparent", parent.as_str())];
    let path = "/v1/chat/completions";
    let answer = client
        .send_with(Method::POST, path, &headers, body.to_string(), SOON)
        .await;
    let answer = answer.and_then(|answer| answer.ok());
    answer.unwrap_or_else(|error| panic!("{error}"))
}

/// Lines of a log that belong to the trace.
fn of_trace(log: &str) -> Vec<Value> {
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .map(|line| line["fields"].clone())
        .filter(|fields| fields["trace"] == TRACE)
        .collect()
}

fn named<'a>(lines: &'a [Value], message: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["message"] == message).collect()
}

/// The lines of the trace in each process's log, once a request has ended everywhere.
async fn lines(cluster: &Cluster, requests: usize) -> BTreeMap<String, Vec<Value>> {
    until("the trace in every log", SOON, async || {
        let logs = cluster.logs();
        let lines: BTreeMap<_, _> = logs
            .iter()
            .map(|(name, log)| (name.clone(), of_trace(log)))
            .collect();
        for (name, lines) in &lines {
            let last = match name.starts_with("worker") {
                true => "sequence closed",
                false => "response",
            };
            let found = named(lines, last).len();
            need(found == requests, || {
                format!("{name} has {found} lines of {last:?}: {lines:#?}")
            })?;
        }
        Ok(lines)
    })
    .await
}

fn check_access_line(line: &Value, answer: &Answer) {
    let id = answer.headers["x-request-id"].to_str().expect("an id");
    for (field, value) in [
        ("request", json!(id)),
        ("method", json!("POST")),
        ("route", json!("/v1/chat/completions")),
        ("status", json!(200)),
        ("model", json!(MODEL)),
        ("choices", json!(1)),
        ("cached_tokens", json!(0)),
        ("completion_tokens", json!(MAX_TOKENS)),
        ("finish_reason", json!("length")),
        ("replica", json!(1)),
        ("generation", json!(1)),
        ("retries", json!(0)),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    assert!(line["prompt"].is_null() && line["error"].is_null(), "{line}");
    let ms = |field: &str| {
        line[field]
            .as_f64()
            .unwrap_or_else(|| panic!("no {field} in {line}"))
    };
    assert!(ms("prompt_tokens") > 5.0, "{line}");
    assert!(
        0.0 < ms("queue_ms") && ms("queue_ms") < ms("first_token_ms"),
        "{line}"
    );
    assert!(ms("first_token_ms") < ms("milliseconds"), "{line}");
}

/// Numbers of the coordinator and of the workers.
async fn metrics(cluster: &Cluster) -> BTreeMap<&'static str, f64> {
    let coordinator = [
        "tramontane_time_to_first_token_seconds_count",
        "tramontane_time_to_first_token_seconds_sum",
        "tramontane_time_between_tokens_seconds_count",
        "tramontane_time_between_tokens_seconds_sum",
        "tramontane_request_seconds_count",
        "tramontane_request_seconds_sum",
        "tramontane_cached_prompt_tokens_count",
        "tramontane_cached_prompt_tokens_sum",
        "tramontane_prompt_tokens_total",
        "tramontane_generated_tokens_total",
    ];
    let workers = [
        "tramontane_queue_seconds_count",
        "tramontane_queue_seconds_sum",
        "tramontane_step_seconds_count",
        "tramontane_step_seconds_sum",
        "tramontane_step_rows_count",
        "tramontane_step_rows_sum",
        "tramontane_step_sequences_count",
        "tramontane_step_sequences_sum",
        "tramontane_stage_bubble_seconds_count",
        "tramontane_stage_bubble_seconds_sum",
    ];
    let mut all = BTreeMap::new();
    for name in coordinator {
        let value = cluster.client(1).metric(name).await.expect("metrics");
        all.insert(name, value.unwrap_or(0.0));
    }
    for name in workers {
        let value = cluster.worker_metric(name).await.expect("metrics");
        all.insert(name, value.unwrap_or(0.0));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_is_in_every_log_no_prompt_is_in_any_and_histograms_count_what_was_sent() {
    let plan = Plan::new(2)
        .shape(2, 1)
        .logged("info,tramontane_coordinator=debug,tramontane_worker=debug");
    let mut cluster = Cluster::start(plan).await;
    let client = cluster.client(1);
    let whole = traced(&client, false).await;
    let streamed = traced(&client, true).await;
    for answer in [&whole, &streamed] {
        let told = answer.headers["traceresponse"].to_str().expect("a header");
        assert!(
            told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-01"),
            "{told}"
        );
    }
    let lines = lines(&cluster, 2).await;
    let access = named(&lines["coordinator-1"], "response");
    check_access_line(access[0], &whole);
    let usage = &whole.json()["usage"];
    assert_eq!(access[0]["prompt_tokens"], usage["prompt_tokens"]);
    // The same prompt again: how much of it was cached depends on its length, the rest does not.
    assert_eq!(access[1]["completion_tokens"], json!(MAX_TOKENS));
    let mut stages = Vec::new();
    for worker in ["worker-1", "worker-2"] {
        let opened = named(&lines[worker], "sequence opened");
        let closed = named(&lines[worker], "sequence closed");
        for (line, request) in opened
            .iter()
            .chain(&closed)
            .zip([&whole, &streamed].iter().cycle())
        {
            let id = request.headers["x-request-id"].to_str().expect("an id");
            assert_eq!(line["request"], id, "{line}");
            assert_eq!(line["fence"], "replica 1 generation 1", "{line}");
        }
        assert_eq!(opened.len(), 2);
        stages.push(opened[0]["stage"].as_u64().expect("a stage"));
    }
    stages.sort_unstable();
    assert_eq!(stages, [0, 1]);

    check_histograms(&cluster, &client).await;

    for (name, log) in cluster.logs() {
        assert!(!log.is_empty(), "{name} logs nothing");
        for secret in SECRETS {
            assert!(!log.contains(secret), "{secret} is in the log of {name}");
        }
    }
    cluster.check_alive();
    cluster.until_idle().await;
}

/// One request at a time: every number follows from the lengths.
async fn check_histograms(cluster: &Cluster, client: &Client) {
    cluster.until_idle().await;
    // Prompt tokens, answer tokens, and how much of the prompt is cached: whole blocks of 16.
    let requests = [(40_u32, 5_u32, 0_u32), (40, 7, 32), (17, 1, 16), (100, 3, 0)];
    let before = metrics(cluster).await;
    let began = Instant::now();
    for (index, (prompt, answer, cached)) in requests.into_iter().enumerate() {
        // The first three begin alike.
        let first = if index == 3 { 5000 } else { 2000 };
        let ids: Vec<u32> = (0..prompt).map(|token| first + token).collect();
        let body = json!({
            "model": MODEL, "prompt": ids, "max_tokens": answer, "temperature": 0, "ignore_eos": true,
        });
        let reply = client
            .post("/v1/completions", body)
            .await
            .and_then(|answer| answer.ok());
        let usage = reply.unwrap_or_else(|error| panic!("{error}")).json()["usage"].clone();
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], cached, "{usage}");
        assert_eq!(usage["completion_tokens"], answer, "{usage}");
        cluster.until_idle().await;
    }
    let took = began.elapsed().as_secs_f64();
    let after = metrics(cluster).await;
    let more = |name: &str| after[name] - before[name];
    let count = |name: &str| more(&format!("tramontane_{name}_count"));
    let sum = |name: &str| more(&format!("tramontane_{name}_sum"));
    let (prompts, answers): (u32, u32) = (40 + 40 + 17 + 100, 5 + 7 + 1 + 3);
    let cached = 32 + 16;
    // A prompt is one step, and each token but the last one more; both stages run every step.
    let (steps, rows) = (answers, prompts - cached + answers - 4);
    for (name, found, expected) in [
        ("requests", count("request_seconds"), 4),
        ("first tokens", count("time_to_first_token_seconds"), 4),
        ("gaps", count("time_between_tokens_seconds"), answers - 4),
        ("queued", count("queue_seconds"), 4),
        ("prompts looked up", count("cached_prompt_tokens"), 4),
        ("cached tokens", sum("cached_prompt_tokens"), cached),
        ("prompt tokens", more("tramontane_prompt_tokens_total"), prompts),
        ("tokens", more("tramontane_generated_tokens_total"), answers),
        ("steps by rows", count("step_rows"), steps),
        ("rows", sum("step_rows"), rows),
        ("steps by sequences", count("step_sequences"), steps),
        ("sequences of steps", sum("step_sequences"), steps),
        ("steps of both stages", count("step_seconds"), 2 * steps),
        // After each step of an open sequence the stage waits: for the next, or for the one that closes it.
        ("bubbles of both stages", count("stage_bubble_seconds"), 2 * steps),
    ] {
        assert!(
            (found - f64::from(expected)).abs() < 0.5,
            "{name}: {found}, not {expected}"
        );
    }
    let (first, gaps) = (
        sum("time_to_first_token_seconds"),
        sum("time_between_tokens_seconds"),
    );
    let (queued, requests) = (sum("queue_seconds"), sum("request_seconds"));
    assert!(0.0 < queued && queued < first, "{queued} {first}");
    assert!(
        first + gaps <= requests && requests < took,
        "{first} + {gaps}, {requests}, {took}"
    );
    // A stage either works on a step or waits for one; the sum of both stages.
    let (working, waiting) = (sum("step_seconds"), sum("stage_bubble_seconds"));
    assert!(
        0.0 < working && 0.0 < waiting && working + waiting < 2.0 * took,
        "{working} {waiting} {took}"
    );
    // Each waits while the other works, so together they wait about as long as they work.
    assert!(waiting > 0.5 * working, "{waiting} of {working}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_are_logged_where_the_configuration_asks_for_them() {
    let plan = Plan::new(1).logged("info").set("log.prompts = true");
    let cluster = Cluster::start(plan).await;
    traced(&cluster.client(1), false).await;
    let line = until("the line of the request", SOON, async || {
        let logs = cluster.logs();
        let lines = of_trace(&logs[0].1);
        named(&lines, "response")
            .first()
            .copied()
            .cloned()
            .ok_or_else(|| format!("{lines:?}"))
    })
    .await;
    let prompt = line["prompt"].as_str().expect("a prompt");
    assert!(
        prompt.contains(SECRETS[0]) && prompt.contains(SECRETS[1]),
        "{prompt}"
    );
}
