//! Copies of weights in spare memory: what a loss costs with them.

use serde_json::{Value, json};
use tokio::sync::watch;
use tramontane_tests::client::all_at_once;
use tramontane_tests::cluster::{Cluster, READY_WITHIN};
use tramontane_tests::config::{MODEL, Plan, ROOMY};
use tramontane_tests::status::{Node, Replica, Status};
use tramontane_tests::stream::Streamed;
use tramontane_tests::wait::need;

const STREAMS: usize = 4;
/// How far each is when a worker is killed.
const KILLED_AT: usize = 20;
const READ: &str = "tramontane_weights_read_bytes_total{for=\"placement\"}";

/// A stream of 100 tokens, greedy or sampled.
fn body(number: usize) -> Value {
    let prompt: Vec<usize> = (0..12)
        .map(|index| 1100 + (number * 977 + index * 131) % 6000)
        .collect();
    json!({
        "model": MODEL, "prompt": prompt, "max_tokens": 100, "min_tokens": 100, "seed": number, "stream": true,
        "temperature": if number.is_multiple_of(2) { 0.0 } else { 0.9 },
    })
}

fn number_of(device: &str) -> usize {
    let name = device
        .strip_prefix("worker-")
        .and_then(|rest| rest.split('/').next());
    name.and_then(|name| name.parse().ok())
        .expect("a worker's number")
}

/// The replica and a worker that stands by for it, once any other may be lost without a byte being read.
async fn until_stood_by_for(cluster: &Cluster) -> (Replica, Node) {
    let look = |status: &Status| {
        let (replica, free) = status.stood_by_for()?;
        Ok((replica.clone(), free.clone()))
    };
    cluster
        .until_status("a replica with standbys", READY_WITHIN, look)
        .await
}

/// Bytes of weights that a worker has read for placements.
async fn read_by(cluster: &Cluster, number: usize) -> f64 {
    let read = cluster
        .worker_metrics(number)
        .metric(READ)
        .await
        .expect("metrics");
    read.unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_loss_of_a_worker_with_a_standby_nothing_is_read_and_no_token_is_changed() {
    let plan = Plan::new(3)
        .coordinators(3)
        .shape(2, 1)
        .set("placement.replicas = 1");
    let mut cluster = Cluster::start(plan).await;
    let client = cluster.client(1);
    let bodies: Vec<Value> = (0..STREAMS).map(body).collect();
    let ask = async |body: &Value, parts| client.completion(body, parts).await.expect("a stream");
    let expected: Vec<Streamed> = all_at_once(STREAMS, &bodies, async |body| {
        ask(body, watch::channel(0).0).await
    })
    .await;

    for last in [true, false] {
        let (before, free) = until_stood_by_for(&cluster).await;
        cluster.until_idle().await;
        let stage = if last {
            before.stages.last()
        } else {
            before.stages.first()
        };
        let victim = number_of(&stage.expect("stages").owner);
        let others: Vec<usize> = (1..=3).filter(|&number| number != victim).collect();
        let [device] = &free.devices[..] else {
            panic!("{free:?}")
        };
        assert_eq!(device.state, "idle", "it computes");
        assert!(
            !device.standby.is_empty() && device.standby_bytes == device.standby_total_bytes,
            "{device:?}"
        );
        assert!(device.held_bytes >= device.standby_bytes, "{device:?}");
        let kept = cluster
            .worker_metrics(number_of(&free.id))
            .metric("tramontane_standby_bytes")
            .await;
        assert_eq!(kept, Ok(Some(device.standby_bytes as f64)));
        let worst = client.metric("tramontane_replica_worst_loss_bytes").await;
        assert_eq!(worst, Ok(Some(0.0)));
        let mut read = Vec::new();
        for &number in &others {
            read.push(read_by(&cluster, number).await);
        }

        let (streams, mut parts): (Vec<_>, Vec<_>) = bodies
            .iter()
            .map(|body| {
                let (sender, parts) = watch::channel(0);
                let (client, body) = (client.clone(), body.clone());
                let stream = tokio::spawn(async move { client.completion(&body, sender).await });
                (stream, parts)
            })
            .unzip();
        for parts in &mut parts {
            parts.wait_for(|&parts| parts >= KILLED_AT).await.expect("parts");
        }
        assert!(
            streams.iter().all(|stream| !stream.is_finished()),
            "they are over"
        );
        cluster.kill_worker(victim);
        for (stream, expected) in streams.into_iter().zip(&expected) {
            let streamed = stream.await.expect("no panic").expect("a whole stream");
            assert_eq!(streamed.text, expected.text);
        }
        let after = cluster
            .until_placed("the next generation", |replica| {
                replica.generation > before.generation
            })
            .await;
        assert_eq!(after.generation, before.generation + 1, "{after:?}");
        let moved = |stage: &tramontane_tests::status::Stage| {
            let owner = match number_of(&stage.owner) == victim {
                true => number_of(&free.id),
                false => number_of(&stage.owner),
            };
            (stage.layers, owner)
        };
        let stages: Vec<_> = after
            .stages
            .iter()
            .map(|stage| (stage.layers, number_of(&stage.owner)))
            .collect();
        assert_eq!(stages, before.stages.iter().map(moved).collect::<Vec<_>>());
        for (&number, before) in others.iter().zip(read) {
            assert_eq!(
                read_by(&cluster, number).await,
                before,
                "worker {number} has read weights"
            );
        }

        // A worker that joins becomes a standby, and what serves does not notice.
        cluster.start_worker(victim);
        let (with_standbys, _) = until_stood_by_for(&cluster).await;
        assert_eq!(with_standbys.generation, after.generation);
    }
    cluster.check_alive();
    cluster.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_further_replica_is_placed_on_standbys() {
    let plan = Plan::new(3)
        .set("placement.stages = 2")
        .set("placement.settle_ms = 1000");
    let mut cluster = Cluster::start(plan).await;
    let (first, free) = until_stood_by_for(&cluster).await;
    let number = cluster.add_worker(&[ROOMY]);
    let second = |status: &Status| {
        need(status.replicas_serving == 2, || format!("{:?}", status.replicas))?;
        status.replicas.get(1).cloned().ok_or("there is none".to_owned())
    };
    let second = cluster
        .until_status("a second replica", READY_WITHIN, second)
        .await;
    let mut devices = second.devices();
    devices.sort_unstable();
    let mut expected = [format!("{}/0", free.id), format!("worker-{number}/0")];
    expected.sort_unstable();
    assert_eq!(devices, expected);
    let still = cluster.until_placed("the first as it was", |_| true).await;
    assert_eq!((still.generation, still.stages), (first.generation, first.stages));
    cluster.check_answers().await;
    cluster.check_alive();
    cluster.until_idle().await;
}
