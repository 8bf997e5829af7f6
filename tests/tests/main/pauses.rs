//! Processes that are stopped for a while, as a debugger, a full disk or a suspended machine does, and go on.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tramontane_tests::client::{Client, all_at_once};
use tramontane_tests::cluster::{Cluster, READY_WITHIN};
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::status::Status;
use tramontane_tests::stream::Streamed;
use tramontane_tests::wait::{need, until};

/// Streams under way at each coordinator.
const STREAMS: usize = 2;
/// How far each is when a process is stopped.
const STOPPED_AT: usize = 10;
/// The default of `leases.lease_ms`.
const LEASE: Duration = Duration::from_secs(2);
/// How long a leader is stopped.
const PAUSE: Duration = Duration::from_secs(10);

/// A stream of so many tokens, greedy or sampled.
fn body(number: usize, tokens: usize) -> Value {
    let prompt: Vec<usize> = (0..12)
        .map(|index| 1100 + (number * 977 + index * 131) % 6000)
        .collect();
    json!({
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": tokens,
        "min_tokens": tokens,
        "temperature": if number.is_multiple_of(2) { 0.0 } else { 0.9 },
        "seed": number,
        "stream": true,
    })
}

/// A stream under way.
struct Running {
    parts: watch::Receiver<usize>,
    task: JoinHandle<Result<Streamed, String>>,
}

fn start(client: &Client, body: Value) -> Running {
    let (sender, parts) = watch::channel(0);
    let own = client.clone();
    let task = tokio::spawn(async move { own.completion(&body, sender).await });
    Running { parts, task }
}

/// What every stream has to say: each alone at the first coordinator, before anything happens.
async fn undisturbed(cluster: &Cluster, bodies: &[Value]) -> Vec<Streamed> {
    let client = cluster.client(cluster.running()[0]);
    let all = all_at_once(bodies.len(), bodies, async |body| {
        client.completion(body, watch::channel(0).0).await
    });
    all.await.into_iter().collect::<Result<_, _>>().expect("answers")
}

/// Starts the streams, in turn at every coordinator, and waits until all are under way.
async fn begin(cluster: &Cluster, bodies: &[Value]) -> Vec<Running> {
    let clients = cluster.clients();
    let mut running: Vec<Running> = bodies
        .iter()
        .zip(clients.iter().cycle())
        .map(|(body, client)| start(client, body.clone()))
        .collect();
    for one in &mut running {
        let begun = one.parts.wait_for(|&parts| parts >= STOPPED_AT).await;
        begun.expect("parts");
    }
    assert!(
        running.iter().all(|one| !one.task.is_finished()),
        "they are not over yet"
    );
    running
}

async fn check_whole(running: Vec<Running>, expected: &[Streamed]) {
    for (one, expected) in running.into_iter().zip(expected) {
        let streamed = one.task.await.expect("no panic").expect("a whole stream");
        assert_eq!(streamed.text, expected.text);
        assert_eq!(streamed.finish_reason, expected.finish_reason);
    }
}

/// What of the placement must not change.
fn placement(status: &Status) -> Vec<(u64, u64, String)> {
    let replicas = status.replicas.iter();
    let each = replicas.map(|one| (one.id, one.generation, format!("{} {:?}", one.phase, one.stages)));
    each.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_stopped_for_ten_seconds_leads_no_more_and_every_stream_is_whole() {
    let mut cluster = Cluster::start(Plan::new(2).coordinators(3).shape(2, 1)).await;
    let bodies: Vec<Value> = (0..3 * STREAMS).map(|number| body(number, 300)).collect();
    let expected = undisturbed(&cluster, &bodies).await;
    let before = cluster.status().await.expect("a status");
    let leader = cluster.leader().await;

    let running = begin(&cluster, &bodies).await;
    let stopped = Instant::now();
    cluster.pause_coordinator(leader);
    let others: Vec<Client> = cluster
        .running()
        .into_iter()
        .filter(|&number| number != leader)
        .map(|number| cluster.client(number))
        .collect();
    // Another leads, and all workers have come to it before their leases ran out.
    let next = until("another leader with every worker", READY_WITHIN, async || {
        let answer = others[0].get("/cluster/status").await?.ok()?;
        let status: Status = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
        need(status.leader != before.leader, || {
            format!("{:?} leads", status.leader)
        })?;
        let workers = status.nodes.iter().filter(|node| node.role == "worker");
        let joined = workers.filter(|node| node.state == "joined").count();
        need(joined == 2, || format!("{joined} workers have joined"))?;
        Ok(status)
    })
    .await;
    assert!(next.term > before.term);
    assert_eq!(
        placement(&next),
        placement(&before),
        "the next leader placed the model anew"
    );
    for client in &others {
        client
            .get("/readyz")
            .await
            .expect("an answer")
            .ok()
            .expect("ready");
        let answer = client.ask(MODEL, "What is the capital of France?").await;
        assert_eq!(answer.as_deref(), Ok("The capital of France is Paris."));
    }
    tokio::time::sleep_until(stopped + PAUSE).await;
    cluster.resume_coordinator(leader);
    // No stale read: its first answer is the next leader's, or that it leads no more.
    let client = cluster.client(leader);
    let answer = client.get("/cluster/status").await.expect("an answer");
    if answer.status == 200 {
        let told: Status = serde_json::from_str(&answer.body).expect("a status");
        assert!(told.term >= next.term && told.leader != before.leader, "{told:?}");
    } else {
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    check_whole(running, &expected).await;
    // No stale write: nothing that it did is in what all agree on.
    for client in cluster.clients() {
        until("one placement everywhere", READY_WITHIN, async || {
            let answer = client.get("/cluster/status").await?.ok()?;
            let status: Status = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
            need(placement(&status) == placement(&before), || {
                format!("{:?}", status.replicas)
            })?;
            need(status.term >= next.term, || format!("term {}", status.term))
        })
        .await;
    }
    cluster.check_alive();
    cluster.check_answers().await;
    cluster.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_stopped_past_its_lease_is_done_without_and_changes_nothing_when_it_wakes() {
    let plan = Plan::new(3)
        .coordinators(3)
        .shape(2, 1)
        .set("placement.replicas = 1");
    let mut cluster = Cluster::start(plan).await;
    let bodies: Vec<Value> = (0..3 * STREAMS).map(|number| body(number, 120)).collect();
    let expected = undisturbed(&cluster, &bodies).await;
    let before = cluster
        .until_placed("2 stages", |replica| replica.stages.len() == 2)
        .await;
    let clients = cluster.clients();
    // The first stage is the head, which gateways and its stage's successor have open streams with.
    let head = before.stages[0].owner.clone();
    let number: usize = head
        .strip_prefix("worker-")
        .and_then(|rest| rest.split('/').next()?.parse().ok())
        .expect("a number");
    let name = format!("worker-{number}");

    let running = begin(&cluster, &bodies).await;
    cluster.pause_worker(number);
    let stopped = Instant::now();
    // Readiness tells the truth within one lease, and what it takes to agree on it.
    let noticed = all_at_once(clients.len(), &clients, async |client| {
        until(
            "the end of readiness, or the next generation",
            READY_WITHIN,
            async || {
                let answer = client.get("/readyz").await?;
                let generation = answer.json()["generation"].as_u64();
                need(
                    answer.status == 503 || generation > Some(before.generation),
                    || format!("still generation {generation:?}"),
                )?;
                Ok(stopped.elapsed())
            },
        )
        .await
    })
    .await;
    println!("readiness told the truth after {noticed:?}");
    assert!(
        noticed.iter().all(|&after| after <= LEASE + LEASE / 2),
        "{noticed:?}"
    );
    let after = cluster
        .until_placed("the next generation", |replica| {
            replica.generation > before.generation
        })
        .await;
    assert!(
        after.devices().iter().all(|device| !device.starts_with(&name)),
        "{after:?}"
    );
    check_whole(running, &expected).await;

    cluster.resume_worker(number);
    cluster
        .until_status("a standby that computes nothing", READY_WITHIN, |status| {
            let node = status.node(&name).ok_or("it is not listed")?;
            let computes = node.devices.iter().any(|device| device.state != "idle");
            need(node.state == "joined" && node.standby && !computes, || {
                format!("{node:?}")
            })
        })
        .await;
    let still = cluster.until_placed("the same", |_| true).await;
    assert_eq!(still.generation, after.generation, "it was placed anew");
    assert_eq!(still.stages, after.stages);
    let again = undisturbed(&cluster, &bodies[..2]).await;
    for (again, expected) in again.iter().zip(&expected) {
        assert_eq!(again.text, expected.text);
    }
    cluster.check_alive();
    cluster.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_requests_go_on_and_changes_say_why_they_wait() {
    let mut cluster = Cluster::start(Plan::new(2).coordinators(3).shape(2, 1)).await;
    let bodies: Vec<Value> = (0..2 * STREAMS).map(|number| body(number, 150)).collect();
    let expected = undisturbed(&cluster, &bodies).await;
    let before = cluster.status().await.expect("a status");
    let leader = cluster.leader().await;
    let kept = cluster
        .running()
        .into_iter()
        .find(|&number| number != leader)
        .expect("two follow");
    let client = cluster.client(kept);
    let mut running: Vec<Running> = bodies.iter().map(|body| start(&client, body.clone())).collect();
    for one in &mut running {
        one.parts
            .wait_for(|&parts| parts >= STOPPED_AT)
            .await
            .expect("parts");
    }
    for number in cluster.running() {
        if number != kept {
            cluster.kill_coordinator(number);
        }
    }
    for (path, post) in [("/cluster/replan", true), ("/cluster/status", false)] {
        until(path, READY_WITHIN, async || {
            let answer = match post {
                true => client.post(path, "").await?,
                false => client.get(path).await?,
            };
            let message = answer.json()["error"]["message"].to_string();
            need(answer.status == 503 && message.contains("majority"), || {
                format!("{answer:?}")
            })
        })
        .await;
    }
    let new = client.ask(MODEL, "What is the capital of France?").await;
    assert_eq!(new.as_deref(), Ok("The capital of France is Paris."));
    client
        .get("/readyz")
        .await
        .expect("an answer")
        .ok()
        .expect("ready");
    check_whole(running, &expected).await;
    for number in (1..=3).filter(|&number| number != kept) {
        cluster.start_coordinator(number);
    }
    cluster.until_ready().await;
    let after = cluster.until_placed("what was placed", |_| true).await;
    assert_eq!(after.generation, before.replicas[0].generation);
    cluster.until_idle().await;
}
