//! Rolling restarts under load: workers drain and come back, coordinators hand over the lead, and no client sees any of
//! it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tramontane_tests::client::{Client, all_at_once};
use tramontane_tests::cluster::{Cluster, READY_WITHIN};
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::process::tramontane;
use tramontane_tests::wait::{need, until};

/// Tokens of each stream.
const TOKENS: usize = 48;
/// Different prompts.
const PROMPTS: usize = 8;

/// A prompt that no other begins like: token ids of ordinary text.
fn prompt(number: usize) -> Vec<usize> {
    (0..24)
        .map(|index| 1100 + (number * 971 + index * 137) % 6000)
        .collect()
}

fn completion(number: usize, stream: bool) -> Value {
    json!({
        "model": MODEL,
        "prompt": prompt(number),
        "max_tokens": TOKENS,
        "min_tokens": TOKENS,
        "temperature": 0.8,
        "seed": 7 + number,
        "stream": stream,
    })
}

/// Clients that stream one answer after the other, each from a coordinator that is ready, as behind a balancer.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    /// Streams that ended as they should.
    done: Arc<AtomicUsize>,
    clients: JoinSet<Vec<String>>,
}

/// A coordinator that is ready; if none is, one that is not about to stop.
async fn balanced(clients: &[Client], turn: usize) -> Option<Client> {
    let mut waits = None;
    for index in 0..clients.len() {
        let client = &clients[(turn + index) % clients.len()];
        let soon = Duration::from_secs(2);
        let Ok(answer) = client.send(Method::GET, "/readyz", String::new(), soon).await else {
            continue;
        };
        if answer.status == 200 {
            return Some(client.clone());
        }
        if !answer.body.contains("shutting down") {
            waits = Some(client.clone());
        }
    }
    waits
}

impl Load {
    pub(crate) fn start(clients: &[Client], expected: &[String], streams: usize) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut load = Self {
            stop: Arc::clone(&stop),
            done: Arc::clone(&done),
            clients: JoinSet::new(),
        };
        for stream in 0..streams {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            let (clients, expected) = (clients.to_vec(), expected.to_vec());
            load.clients.spawn(async move {
                let mut wrong = Vec::new();
                let mut turn = stream;
                while !stop.load(Ordering::Relaxed) && wrong.len() < 4 {
                    turn += 1;
                    let Some(client) = balanced(&clients, turn).await else {
                        wrong.push("no coordinator takes requests".to_owned());
                        continue;
                    };
                    let number = turn % PROMPTS;
                    let (parts, _) = watch::channel(0);
                    match client.completion(&completion(number, true), parts).await {
                        Ok(streamed) if streamed.text == expected[number] => {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(streamed) => {
                            wrong.push(format!("{:?}, not {:?}", streamed.text, expected[number]));
                        }
                        Err(error) => wrong.push(format!("{}: {error}", client.address)),
                    }
                }
                wrong
            });
        }
        load
    }

    /// Waits until so many more streams have ended well.
    pub(crate) async fn goes_on(&self, streams: usize) {
        let before = self.done.load(Ordering::Relaxed);
        until("streams that go on", READY_WITHIN, async || {
            let done = self.done.load(Ordering::Relaxed);
            need(done >= before + streams, || format!("{done} after {before}"))
        })
        .await;
    }

    /// Ends the load; nothing may have gone wrong.
    pub(crate) async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let wrong: Vec<String> = self.clients.join_all().await.into_iter().flatten().collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        self.done.load(Ordering::Relaxed)
    }
}

fn plan() -> Plan {
    Plan::new(3)
        .coordinators(3)
        .set("placement.stages = 2")
        .set("placement.settle_ms = 2000")
        .set("placement.replicas = 1")
        .set("requests.serving_wait_s = 60")
        .set("requests.shutdown_grace_s = 60")
        .set("steps.max_rows = 64")
        .set("steps.max_prefill_rows = 16")
}

/// What every prompt has to say, before anything happens.
pub(crate) async fn expected(cluster: &Cluster) -> Vec<String> {
    let client = cluster.client(1);
    let texts = all_at_once(4, 0..PROMPTS, async |number| {
        let answer = client
            .post("/v1/completions", completion(number, false))
            .await?
            .ok()?;
        let text = answer.json()["choices"][0]["text"].as_str().map(str::to_owned);
        text.ok_or(answer.body)
    })
    .await;
    texts.into_iter().collect::<Result<_, _>>().expect("answers")
}

/// Waits until a worker is a member in this state, and a replica of two stages serves.
async fn settled(cluster: &Cluster, worker: usize, state: &str) {
    let name = format!("worker-{worker}");
    cluster
        .until_status("a worker in its place", READY_WITHIN, |status| {
            let node = status.node(&name).ok_or("it is not listed")?;
            need(node.state == state, || format!("{node:?}"))?;
            let replica = status.serving()?;
            need(replica.stages.len() == 2, || format!("{replica:?}"))
        })
        .await;
}

/// Drains a worker by the command, which waits; then restarts it.
async fn drain_and_restart(cluster: &mut Cluster, worker: usize) {
    let name = format!("worker-{worker}");
    let url = format!("http://{}", cluster.client(cluster.running()[0]).address);
    let arguments = [
        "drain",
        name.as_str(),
        "--wait",
        "--timeout",
        "90",
        "--url",
        url.as_str(),
    ];
    let ran = tramontane(arguments, Duration::from_secs(120)).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains(&format!("{name} is drained")), "{ran:?}");
    settled(cluster, worker, "drained").await;
    let status = cluster.status().await.expect("a status");
    let devices = status.replicas.iter().flat_map(|replica| replica.devices());
    assert!(
        devices.clone().all(|device| !device.starts_with(&name)),
        "{status:?}"
    );
    cluster.stop_worker(worker).await;
    cluster.start_worker(worker);
    settled(cluster, worker, "joined").await;
}

/// Tells a worker to stop, as systemd does: it drains by itself.
async fn stop_and_restart(cluster: &mut Cluster, worker: usize) {
    let asked = Instant::now();
    let log = cluster.stop_worker(worker).await;
    let took = asked.elapsed();
    assert!(log.contains("the cluster does without this worker"), "{log}");
    println!("worker {worker} left {took:?} after it was told to stop");
    cluster.start_worker(worker);
    settled(cluster, worker, "joined").await;
}

/// Restarts a coordinator; another leads before it is gone, if it led.
async fn restart_coordinator(cluster: &mut Cluster, number: usize) {
    let led = cluster.leader().await == number;
    cluster.stop_coordinator(number).await;
    if led {
        // No election was waited for: another led when this one ended.
        let status = cluster.status().await.expect("a status at once");
        assert!(
            status.leader.is_some_and(|leader| leader != number as u64),
            "{status:?}"
        );
    }
    cluster.start_coordinator(number);
    let name = format!("coordinator-{number}");
    let pid = cluster.coordinator_pid(number);
    cluster
        .until_status("the new process", READY_WITHIN, |status| {
            let node = status.node(&name).ok_or("it is not listed")?;
            need(node.pid == pid && node.state == "up", || format!("{node:?}"))
        })
        .await;
    let client = cluster.client(number);
    until("a coordinator that is ready", READY_WITHIN, async || {
        client.get("/readyz").await?.ok().map(|_| ())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_and_the_leader_are_restarted_under_streams_that_notice_nothing() {
    let mut cluster = Cluster::start(plan()).await;
    let placed = cluster
        .until_placed("2 stages", |replica| replica.stages.len() == 2)
        .await;
    let expected = expected(&cluster).await;
    let unknown = tramontane(
        [
            "drain",
            "worker-9",
            "--url",
            &format!("http://{}", cluster.client(1).address),
        ],
        Duration::from_secs(30),
    )
    .await;
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(
        unknown.stderr.contains("there is no worker worker-9"),
        "{unknown:?}"
    );

    let load = Load::start(&cluster.clients(), &expected, 3);
    load.goes_on(2).await;
    let used: Vec<usize> = (1..=3)
        .filter(|worker| placed.devices().contains(&format!("worker-{worker}/0").as_str()))
        .collect();
    drain_and_restart(&mut cluster, used[0]).await;
    load.goes_on(2).await;
    stop_and_restart(&mut cluster, used[1]).await;
    load.goes_on(2).await;
    let leader = cluster.leader().await;
    restart_coordinator(&mut cluster, leader).await;
    load.goes_on(2).await;
    let streams = load.end().await;
    println!("{streams} streams, all as without any restart");
    cluster.check_alive();
    cluster.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn soak_rolling_restart() {
    let mut cluster = Cluster::start(plan()).await;
    cluster
        .until_placed("2 stages", |replica| replica.stages.len() == 2)
        .await;
    let expected = expected(&cluster).await;
    let load = Load::start(&cluster.clients(), &expected, 8);
    load.goes_on(8).await;
    let began = Instant::now();
    for worker in 1..=3 {
        drain_and_restart(&mut cluster, worker).await;
        load.goes_on(8).await;
    }
    for worker in 1..=3 {
        stop_and_restart(&mut cluster, worker).await;
        load.goes_on(8).await;
    }
    for coordinator in 1..=3 {
        restart_coordinator(&mut cluster, coordinator).await;
        load.goes_on(8).await;
    }
    // The leader last, whichever it is now.
    let leader = cluster.leader().await;
    restart_coordinator(&mut cluster, leader).await;
    load.goes_on(8).await;
    let streams = load.end().await;
    println!(
        "10 restarts in {:?}: {streams} streams, no error, all texts equal",
        began.elapsed()
    );
    cluster.check_alive();
    cluster.until_idle().await;
}
