//! `tramontane bench serve` against a live cluster: what it says it sent and got is what the cluster counted; and
//! `tramontane bench kernels`, which needs none.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tramontane_tests::client::Client;
use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::Plan;
use tramontane_tests::process::{Ran, program, tramontane};
use tramontane_tests::wait::{need, until};

const WITHIN: Duration = Duration::from_secs(300);

async fn bench(url: &str, arguments: &[&str]) -> Ran {
    let command = ["bench", "serve", "--url", url];
    tramontane(command.iter().chain(arguments), WITHIN).await
}

/// Counts of the coordinator: first tokens, gaps, generated, prompt and cached tokens.
async fn counts(client: &Client) -> [u64; 5] {
    let mut counts = [0; 5];
    for (count, name) in counts.iter_mut().zip([
        "tramontane_time_to_first_token_seconds_count",
        "tramontane_time_between_tokens_seconds_count",
        "tramontane_generated_tokens_total",
        "tramontane_prompt_tokens_total",
        "tramontane_cached_prompt_tokens_sum",
    ]) {
        *count = client.metric(name).await.expect("metrics").unwrap_or(0.0) as u64;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_counts_are_those_of_the_cluster() {
    let cluster = Cluster::start(Plan::new(1)).await;
    let client = cluster.client(1);
    let url = format!("http://{}", client.address);
    let load = [
        "--requests",
        "12",
        "--rate",
        "40",
        "--concurrency",
        "4",
        "--prompt-tokens",
        "20",
        "--output-tokens",
        "6",
        "--spread",
        "0.5",
        "--shared-prefix",
        "32",
        "--prefix-groups",
        "2",
        "--seed",
        "3",
        "--warm-up",
        "2",
        "--goodput",
        "ttft:10m,e2e:10m",
        "--json",
        "-",
    ];
    let mut totals = Vec::new();
    for _ in 0..2 {
        let before = counts(&client).await;
        let ran = bench(&url, &load).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(ran.stderr, "", "no bar without a terminal");
        let found: Value =
            serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
        let after = counts(&client).await;
        let [first, gaps, generated, prompt, cached] = std::array::from_fn(|at| after[at] - before[at]);
        // Two warm-ups: 6 tokens each after 20 + 32, of which the second run finds three whole blocks.
        let warm_cached = if totals.is_empty() { 0 } else { 2 * 48 };
        let (completion, prompts) = (generated - 12, prompt - 2 * 52);
        for (name, value, expected) in [
            ("sent", &found["requests"]["sent"], 12),
            ("ok", &found["requests"]["ok"], first - 2),
            ("failed", &found["requests"]["failed"], 0),
            ("unfinished", &found["requests"]["unfinished"], 0),
            ("completion", &found["completion_tokens"], completion),
            ("prompt", &found["prompt_tokens"], prompts),
            ("cached", &found["cached_tokens"], cached - warm_cached),
            ("gaps", &found["tbt_ms"]["count"], gaps - 2 * 5),
            ("first tokens", &found["ttft_ms"]["count"], 12),
            ("good", &found["goodput"]["requests"], 12),
        ] {
            assert_eq!(value.as_u64(), Some(expected), "{name}: {found}");
        }
        let ms = |kind: &str, what: &str| {
            found[kind][what]
                .as_f64()
                .unwrap_or_else(|| panic!("{kind} {what}: {found}"))
        };
        assert!(
            ms("ttft_ms", "p50") <= ms("ttft_ms", "p99") && ms("ttft_ms", "p99") <= ms("e2e_ms", "max"),
            "{found}"
        );
        assert!(
            ms("e2e_ms", "p50") <= found["seconds"].as_f64().expect("seconds") * 1000.0,
            "{found}"
        );
        totals.push((completion, prompts));
    }
    assert_eq!(totals[0], totals[1], "a seed gives one load");
    assert!(totals[0].1 > 12 * 32 + 12 * 10, "{totals:?}");
    check_file(&url).await;
    check_errors(&url).await;
    check_interrupt(&url, &client).await;
    cluster.until_idle().await;
}

/// Bodies of both routes, and one that the cluster refuses.
async fn check_file(url: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("requests.jsonl");
    let text = "{\"messages\": [{\"role\": \"user\", \"content\": \"What is 2 + 3?\"}], \"temperature\": 0}\n\
                \"Tell me\"\n{\"prompt\": \"x\", \"temperature\": 9}\n";
    std::fs::write(&file, text).expect("writes");
    let json = dir.path().join("results.json");
    let paths = [file, json.clone()].map(|path| path.to_str().expect("a path").to_owned());
    let arguments = [
        "--input",
        &paths[0],
        "--json",
        &paths[1],
        "--requests",
        "6",
        "--warm-up",
        "2",
        "--output-tokens",
        "8",
    ];
    let ran = bench(url, &arguments).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("2 of 6 requests failed"), "{ran:?}");
    for part in [
        "6 requests in",
        "4 ok, 2 failed",
        "time to first token",
        "P99",
        "temperature",
    ] {
        assert!(ran.stdout.contains(part), "{part:?} is not in {}", ran.stdout);
    }
    let found = read(&json);
    assert_eq!(found["requests"]["ok"], 4);
    let errors = found["errors"].as_object().expect("errors");
    let (error, count) = errors.iter().next().expect("an error");
    assert!(error.starts_with("400: temperature") && count == 2, "{found}");
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a file")).expect("JSON")
}

async fn check_errors(url: &str) {
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    for (url, arguments, says) in [
        ("ftp://x", &[][..], "must be http://host:port"),
        (
            &format!("http://{nobody}"),
            &["--ready-within-s", "0"],
            "cannot reach",
        ),
        (url, &["--rate", "0"], "requests per second"),
        (
            url,
            &["--input", "x", "--prompt-tokens", "5"],
            "cannot be used with",
        ),
        (url, &["--prefix-groups", "2"], "--shared-prefix"),
        (url, &["--input", "no/such/file"], "no/such/file"),
        (url, &["--prompt-tokens", "4090"], "mini-large-3 takes 4096"),
        (url, &["--goodput", "ttft=5"], "ttft:500ms"),
    ] {
        let ran = bench(url, arguments).await;
        assert!(ran.code.is_some_and(|code| code != 0), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains(says), "{says:?} is not in {ran:?}");
        assert_eq!(ran.stdout, "", "{arguments:?}");
    }
}

/// An interrupted measurement shows what it has.
async fn check_interrupt(url: &str, client: &Client) {
    let first = "tramontane_time_to_first_token_seconds_count";
    let before = client.metric(first).await.expect("metrics").unwrap_or(0.0);
    let mut command = Command::new(program());
    command
        .args(["bench", "serve", "--url", url, "--duration", "10m", "--json", "-"])
        .args([
            "--concurrency",
            "2",
            "--output-tokens",
            "4",
            "--prompt-tokens",
            "8",
            "--warm-up",
            "0",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().expect("it starts");
    until("answers", WITHIN, async || {
        let now = client.metric(first).await?.unwrap_or(0.0);
        need(now >= before + 6.0, || {
            format!("{now} first tokens, {before} before")
        })
    })
    .await;
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(killed.is_ok_and(|status| status.success()));
    let output = tokio::task::spawn_blocking(|| child.wait_with_output());
    let output = tokio::time::timeout(Duration::from_secs(30), output).await;
    let output = output.expect("it ends").expect("no panic").expect("a child");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(found["interrupted"], true);
    assert!(found["requests"]["ok"].as_u64() >= Some(4), "{found}");
    assert!(found["requests"]["unfinished"].as_u64() <= Some(2), "{found}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("interrupted"), "{stderr}");
}

/// The program has what `tramontane-bench-kernels` does, with the same options.
#[test]
fn kernels_are_measured_without_a_cluster() {
    let params = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/mini-large-3/params.json");
    let output = Command::new(program())
        .args([
            "bench",
            "kernels",
            "--rows",
            "2",
            "--prefill",
            "none",
            "--context",
            "40",
        ])
        .args(["--repeats", "1", "--json", "-", "--shape"])
        .arg(&params)
        .output()
        .expect("the program runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let figures: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(figures["version"], 1);
    let layers = figures["lines"].as_array().expect("lines").iter();
    let layers: Vec<&str> = layers
        .filter(|line| line["op"] == "layer")
        .filter_map(|line| line["part"].as_str())
        .collect();
    assert_eq!(layers, ["moe_layer", "dense_layer"]);
}
