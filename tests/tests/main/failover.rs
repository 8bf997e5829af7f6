//! How long streams are silent when a worker is lost: `make bench-failover`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tramontane_tests::chaos::until_well;
use tramontane_tests::client::Client;
use tramontane_tests::cluster::{Cluster, READY_WITHIN};
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::status::Replica;
use tramontane_tests::stream::Asked;
use tramontane_tests::wait::{need, until};

/// Streams that are live.
const STREAMS: usize = 8;
/// Tokens of each at most.
const TOKENS: usize = 300;
/// How many tokens each has when the worker is killed, one after the other.
const KILLED_AT: [usize; 4] = [10, 50, 100, 200];
/// The default of `leases.lease_ms`.
const LEASE: Duration = Duration::from_secs(2);
/// Rounds over these where nothing else is said.
const ROUNDS: usize = 3;

/// Reads a stream and tells when each part came; goes on until it is dropped.
async fn read(client: Client, number: usize, times: watch::Sender<Vec<Instant>>) {
    let prompt: Vec<usize> = (0..20)
        .map(|index| 1100 + (number * 977 + index * 131) % 6000)
        .collect();
    let body = json!({
        "model": MODEL, "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": true, "temperature": 0.8, "seed": number,
        "logprobs": 0, "stream": true,
    });
    let asked = client
        .stream("/v1/completions", &body, READY_WITHIN)
        .await
        .expect("an answer");
    let Asked::Begun(mut events) = asked else {
        panic!("no stream");
    };
    while let Some(data) = events.next(READY_WITHIN).await.expect("a stream") {
        let chunk: Value = serde_json::from_str(&data).unwrap_or_default();
        assert!(chunk.get("error").is_none(), "{data}");
        times.send_modify(|times| times.push(Instant::now()));
    }
}

/// The silence of each stream when a worker is killed that has a part of the replica.
async fn silences(
    cluster: &mut Cluster,
    client: &Client,
    victim: usize,
    at: usize,
    round: usize,
) -> Vec<Duration> {
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        let (sender, times) = watch::channel(Vec::new());
        let task = tokio::spawn(read(client.clone(), round * STREAMS + number, sender));
        streams.push((times, Aborted(task)));
    }
    for (times, _) in &mut streams {
        times.wait_for(|times| times.len() >= at).await.expect("parts");
    }
    let killed = Instant::now();
    cluster.kill_worker(victim);
    let mut silences = Vec::new();
    for (times, _) in &mut streams {
        // What was under way when it happened may come after it; then there is nothing for a while.
        let is_back = |times: &Vec<Instant>| {
            times
                .last()
                .is_some_and(|last| *last > killed + Duration::from_millis(200))
        };
        let times = times.wait_for(is_back).await.expect("more parts").clone();
        let after = times
            .windows(2)
            .filter(|pair| pair[1] > killed)
            .map(|pair| pair[1] - pair[0]);
        silences.push(after.max().expect("a gap"));
    }
    silences
}

/// A task that ends when it is dropped.
struct Aborted(tokio::task::JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The number of the worker that has the first or the last stage.
fn worker(replica: &Replica, last: bool) -> usize {
    let stage = if last {
        replica.stages.last()
    } else {
        replica.stages.first()
    };
    let owner = &stage.expect("stages").owner;
    let number = owner
        .strip_prefix("worker-")
        .and_then(|rest| rest.split('/').next());
    number.and_then(|number| number.parse().ok()).expect("a number")
}

fn shown(silences: &mut [Duration]) -> String {
    silences.sort_unstable();
    let at = |percent: usize| {
        let rank = (silences.len() * percent).div_ceil(100).max(1);
        silences[rank - 1].as_secs_f64()
    };
    format!(
        "{:4} streams  p50 {:.2} s  p90 {:.2} s  p99 {:.2} s  most {:.2} s",
        silences.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    )
}

async fn measure(workers: usize, standbys: bool) {
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(ROUNDS);
    let plan = Plan::new(workers)
        .coordinators(3)
        .shape(2, 1)
        .set("placement.replicas = 1")
        .set(&format!("placement.standbys = {standbys}"));
    let mut cluster = Cluster::start(plan).await;
    let client = cluster.client(1);
    // A leader gives nobody up within its first lease, which is not what is measured.
    sleep(LEASE).await;
    let mut by_place: BTreeMap<usize, Vec<Duration>> = BTreeMap::new();
    for round in 0..rounds * KILLED_AT.len() {
        until_well(&mut cluster).await;
        // With no more workers than stages, one that is back is used when somebody asks for it.
        let replica = until("two stages", READY_WITHIN, async || {
            let status = cluster.status().await?;
            let replica = match standbys {
                true => status.stood_by_for()?.0,
                false => status.serving()?,
            };
            if replica.stages.len() < 2 {
                client.post("/cluster/replan", "").await?;
            }
            need(replica.stages.len() == 2, || format!("{replica:?}"))?;
            Ok(replica.clone())
        })
        .await;
        cluster.until_idle().await;
        let at = KILLED_AT[round % KILLED_AT.len()];
        let victim = worker(&replica, (round / KILLED_AT.len()).is_multiple_of(2));
        let found = silences(&mut cluster, &client, victim, at, round).await;
        println!(
            "killed worker-{victim} at {at} tokens: {}",
            shown(&mut found.clone())
        );
        by_place.entry(at).or_default().extend(found);
        cluster.start_worker(victim);
    }
    println!("{workers} workers, 2 stages:");
    for (at, silences) in &mut by_place {
        println!("  at {at:3} tokens: {}", shown(silences));
    }
    let mut all: Vec<Duration> = by_place.into_values().flatten().collect();
    println!("  all:           {}", shown(&mut all));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: make bench-failover"]
async fn bench_silence_of_streams_when_a_worker_with_a_standby_is_lost() {
    measure(3, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: make bench-failover"]
async fn bench_silence_of_streams_when_a_worker_without_a_standby_is_lost() {
    measure(2, false).await;
}
