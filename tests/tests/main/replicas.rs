//! Several replicas in one cluster: a loss touches its own replica only, and requests follow their prefixes.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tramontane_tests::client::{Client, all_at_once};
use tramontane_tests::cluster::{Cluster, READY_WITHIN};
use tramontane_tests::config::{MODEL, Plan, ROOMY};
use tramontane_tests::process::tramontane;
use tramontane_tests::status::{Replica, Status};
use tramontane_tests::stream::Streamed;
use tramontane_tests::wait::{need, until};

/// Half of the streams under way when a worker is killed.
const STREAMS: usize = 3;
/// Tokens of each.
const TOKENS: usize = 200;
/// How far each is when it happens.
const KILLED_AT: usize = 40;
/// How many times the gaps before the loss those after it may be: the one that one in a hundred exceeds, and the largest.
/// Twice as many sequences are in each step then, and the lost replica's part is loaded and warmed up on the same two
/// cores; a replica that is placed anew itself answers nothing for many times as long.
const P99_GAPS: u32 = 2;
const LARGEST_GAPS: u32 = 4;

/// A prompt that no other begins like: token ids of ordinary text.
fn prompt(number: usize, tokens: usize) -> Vec<usize> {
    (0..tokens)
        .map(|index| 1100 + (number * 977 + index * 131) % 6000)
        .collect()
}

fn completion(prompt: &[usize], max_tokens: usize, stream: bool) -> Value {
    json!({
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "min_tokens": max_tokens,
        "stream": stream,
    })
}

/// The replicas that serve, by id.
fn serving(status: &Status, count: usize) -> Result<BTreeMap<u64, Replica>, String> {
    let serving = status
        .replicas
        .iter()
        .filter(|replica| replica.phase == "serving");
    let serving: BTreeMap<u64, Replica> = serving.map(|one| (one.id, one.clone())).collect();
    need(
        serving.len() == count && status.replicas_serving as usize == count,
        || format!("{:?}, {:?}", status.replicas, status.replicas_short),
    )?;
    Ok(serving)
}

/// How many attempts were given to each replica so far.
async fn routed(client: &Client) -> Result<BTreeMap<u64, f64>, String> {
    let text = client.get("/metrics").await?.ok()?.body;
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("tramontane_requests_routed_total{") else {
            continue;
        };
        let (_, after) = rest.split_once("replica=\"").ok_or("no replica")?;
        let (replica, _) = after.split_once('"').ok_or("no end of it")?;
        let (_, value) = rest.rsplit_once(' ').ok_or("no value")?;
        let replica = replica.parse::<u64>().map_err(|error| error.to_string())?;
        *counts.entry(replica).or_insert(0.0) += value.parse::<f64>().map_err(|error| error.to_string())?;
    }
    Ok(counts)
}

/// A stream under way.
struct Running {
    /// Which replica took it in.
    replica: u64,
    parts: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<Result<Streamed, String>>,
}

/// Starts a stream and waits for its first part.
async fn start(client: &Client, body: Value) -> Running {
    let before = routed(client).await.expect("metrics");
    let (sender, mut parts) = watch::channel(0);
    let own = client.clone();
    let task = tokio::spawn(async move { own.completion(&body, sender).await });
    parts.wait_for(|&parts| parts > 0).await.expect("a first part");
    let after = routed(client).await.expect("metrics");
    let took = after
        .iter()
        .filter(|(replica, count)| **count > before.get(replica).copied().unwrap_or(0.0));
    let took: Vec<u64> = took.map(|(&replica, _)| replica).collect();
    assert_eq!(took.len(), 1, "one replica was given it: {before:?}, {after:?}");
    Running {
        replica: took[0],
        parts,
        task,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_a_worker_touches_the_streams_of_its_replica_only_and_changes_none() {
    let plan = Plan::new(4)
        .shape(2, 1)
        .set("placement.replicas = 2")
        .set("routing.max_imbalance = 0")
        .set("steps.max_rows = 64")
        .set("steps.max_prefill_rows = 16");
    let mut cluster = Cluster::start(plan).await;
    let before = cluster
        .until_status("two replicas", READY_WITHIN, |status| serving(status, 2))
        .await;
    let mut devices: Vec<&str> = before.values().flat_map(Replica::devices).collect();
    devices.sort_unstable();
    assert_eq!(devices, ["worker-1/0", "worker-2/0", "worker-3/0", "worker-4/0"]);
    let client = cluster.client(1);
    let url = format!("http://{}", client.address);
    let told = tramontane(["status", "--url", &url], Duration::from_secs(30)).await;
    assert!(
        told.stdout.contains("replicas serving: 2 of 2 wanted"),
        "{told:?}"
    );

    // What every stream has to say, from the same cluster before anything happens to it.
    let prompts: Vec<Vec<usize>> = (0..2 * STREAMS).map(|number| prompt(number, 20)).collect();
    let expected = all_at_once(2 * STREAMS, &prompts, async |prompt| {
        let body = completion(prompt, TOKENS, false);
        let answer = client.post("/v1/completions", body).await?.ok()?;
        let text = answer.json()["choices"][0]["text"].as_str().map(str::to_owned);
        text.ok_or(answer.body)
    })
    .await;
    let expected: Vec<String> = expected.into_iter().collect::<Result<_, _>>().expect("answers");

    let mut running = Vec::new();
    for prompt in &prompts {
        running.push(start(&client, completion(prompt, TOKENS, true)).await);
    }
    let on_first = running.iter().filter(|one| one.replica == 1).count();
    assert!(
        on_first > 0 && on_first < running.len(),
        "{on_first} of them on one replica: both must have some"
    );
    let ordinary_from = Instant::now();
    // Prompts arrive in ordinary times, too.
    let arrivals: Vec<Vec<usize>> = (0..2 * STREAMS).map(|number| prompt(100 + number, 60)).collect();
    let arrived = all_at_once(2 * STREAMS, &arrivals, async |prompt| {
        client
            .post("/v1/completions", completion(prompt, 4, false))
            .await?
            .ok()
    })
    .await;
    arrived
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .expect("answers");
    for one in &mut running {
        one.parts
            .wait_for(|&parts| parts >= KILLED_AT)
            .await
            .expect("parts");
    }
    let last_of_first = before[&1].stages.last().expect("stages").owner.clone();
    let number = last_of_first
        .strip_prefix("worker-")
        .and_then(|rest| rest.split('/').next());
    let lost: usize = number.and_then(|number| number.parse().ok()).expect("a number");
    assert!(
        running.iter().all(|one| !one.task.is_finished()),
        "they are not over yet"
    );
    let resubmitted = client
        .metric("tramontane_requests_resubmitted_total")
        .await
        .expect("metrics");
    let killed = Instant::now();
    cluster.kill_worker(lost);

    // One replica serves all the while, and the other is placed anew on what it has left.
    let after = until("two replicas again", READY_WITHIN, async || {
        client
            .get("/readyz")
            .await
            .expect("an answer")
            .ok()
            .expect("ready");
        let after = serving(&cluster.status().await?, 2)?;
        need(after[&1].generation > before[&1].generation, || {
            "not yet".to_owned()
        })?;
        Ok(after)
    })
    .await;
    assert_eq!(after[&2].generation, before[&2].generation);
    assert_eq!(after[&2].stages, before[&2].stages);
    assert_eq!(after[&1].devices().len(), 1, "{:?}", after[&1]);

    let mut ended = Vec::new();
    for (one, expected) in running.into_iter().zip(&expected) {
        let streamed = one.task.await.expect("no panic").expect("a whole stream");
        assert_eq!(streamed.text, *expected, "on replica {}", one.replica);
        assert_eq!(streamed.finish_reason, "length");
        ended.push((one.replica, streamed));
    }
    let again = client
        .metric("tramontane_requests_resubmitted_total")
        .await
        .expect("metrics");
    #[expect(clippy::cast_precision_loss, reason = "few")]
    let of_first = on_first as f64;
    assert_eq!(
        again.unwrap_or(0.0) - resubmitted.unwrap_or(0.0),
        of_first,
        "each stream of the replica that lost a worker was submitted once more, and no other"
    );

    // Of the other replica's streams: the gap that one in a hundred exceeds, and the largest.
    let gaps = |from, to| {
        let second = ended.iter().filter(|(replica, _)| *replica == 2);
        let gaps = second.flat_map(|(_, streamed)| streamed.gaps(from, to));
        let mut gaps: Vec<Duration> = gaps.collect();
        gaps.sort_unstable();
        let p99 = gaps[gaps.len() * 99 / 100];
        (p99, *gaps.last().expect("gaps"))
    };
    let ordinary = gaps(ordinary_from, killed);
    let afterwards = gaps(killed, Instant::now());
    println!(
        "gaps of the other replica's streams, p99 and largest: {ordinary:?} before, {afterwards:?} after"
    );
    assert!(
        afterwards.0 <= ordinary.0 * P99_GAPS && afterwards.1 <= ordinary.1 * LARGEST_GAPS,
        "{afterwards:?} after the loss, {ordinary:?} before"
    );
    cluster.until_idle().await;
}

/// Prompts that begin alike, more of them than one replica's cache holds: an odd number, so that turns do not bring each
/// to the same replica every time.
const GROUPS: usize = 9;
/// Blocks of 16 tokens that the prompts of a group share.
const SHARED: usize = 12 * 16;
const ROUNDS: usize = 3;

/// Asks every group's prompts in rounds, one after the other; tokens of all prompts, and how many of them were cached.
/// Without a load to tell the replicas apart it is the prompts' first blocks that spread the groups, the same way in
/// every run: neither replica gets more of them than its cache holds.
async fn cached_tokens(policy: &str) -> (u64, u64) {
    // Two devices of one worker, which heads both replicas. Each has room for six groups and a request that runs.
    let plan = Plan::new(0)
        .devices(&[&[ROOMY, ROOMY]])
        .shape(1, 1)
        .set("placement.replicas = 2")
        .set("placement.kv_tokens_min = 1024")
        .set("placement.kv_tokens_max = 1248")
        .set(&format!("routing.policy = {policy:?}"));
    let cluster = Cluster::start(plan).await;
    cluster
        .until_status("two replicas", READY_WITHIN, |status| serving(status, 2))
        .await;
    let client = cluster.client(1);
    let (mut all, mut cached) = (0, 0);
    for round in 0..ROUNDS {
        for group in 0..GROUPS {
            let mut tokens = prompt(group, SHARED);
            tokens.extend(prompt(1000 + GROUPS * round + group, 8));
            let body = completion(&tokens, 1, false);
            let answer = client.post("/v1/completions", body).await.expect("an answer");
            let usage = &answer.ok().expect("a completion").json()["usage"];
            let number = |value: &Value| value.as_u64().expect("a number");
            all += number(&usage["prompt_tokens"]);
            cached += number(&usage["prompt_tokens_details"]["cached_tokens"]);
        }
    }
    cluster.until_idle().await;
    (all, cached)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_begin_alike_find_twice_as_much_cached_as_in_turn() {
    let (all, by_prefix) = cached_tokens("prefix").await;
    let (same, in_turn) = cached_tokens("round_robin").await;
    println!("of {all} prompt tokens {by_prefix} were cached by prefix, {in_turn} in turn");
    assert_eq!(all, same);
    assert!(by_prefix * 2 > all, "{by_prefix} of {all}");
    assert!(
        by_prefix >= 2 * in_turn,
        "{by_prefix} by prefix, {in_turn} in turn"
    );
}
