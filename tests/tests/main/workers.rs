//! Workers that are added, lost and come back.

use std::time::Duration;

use serde_json::{Value, json};
use tramontane_tests::cluster::{Cluster, READY_WITHIN};
use tramontane_tests::config::{MODEL, Plan, ROOMY};
use tramontane_tests::process::tramontane;
use tramontane_tests::wait::{need, until};

/// Room for more than half of the miniature, and for less than all of it.
const HALF: u64 = 28 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_added_is_used_after_a_replan_and_done_without_when_it_is_lost() {
    let plan = Plan::new(1)
        .set("placement.stages = 2")
        .set("placement.settle_ms = 1000");
    let mut cluster = Cluster::start(plan).await;
    let alone = cluster
        .until_placed("all on one", |replica| replica.devices() == ["worker-1/0"])
        .await;
    let number = cluster.add_worker(&[ROOMY]);
    let name = format!("worker-{number}");
    cluster
        .until_status("a standby", READY_WITHIN, |status| {
            let node = status.node(&name).ok_or("it is not listed")?;
            need(node.standby && node.state == "joined", || format!("{node:?}"))
        })
        .await;
    let still = cluster.until_placed("all on one still", |_| true).await;
    assert_eq!(still.generation, alone.generation, "it was placed anew unasked");

    let url = format!("http://{}", cluster.client(1).address);
    let ran = tramontane(["replan", "--url", &url], Duration::from_secs(30)).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let told: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let both = cluster
        .until_placed("both used", |replica| {
            replica.devices() == ["worker-1/0", "worker-2/0"]
        })
        .await;
    assert!(both.generation > alone.generation);
    assert_eq!(told, json!({"replica": both.id, "generation": both.generation}));
    cluster.until_ready().await;
    cluster.check_answers().await;

    cluster.kill_worker(number);
    let left = cluster
        .until_placed("what is left", |replica| replica.devices() == ["worker-1/0"])
        .await;
    assert!(left.generation > both.generation);
    cluster.until_ready().await;
    cluster.check_answers().await;
    cluster.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_for_the_model_requests_are_told_how_many_bytes_are_missing() {
    let plan = Plan::new(0)
        .devices(&[&[HALF], &[HALF]])
        .coordinators(3)
        .set("placement.settle_ms = 1000")
        .set("placement.kv_tokens_max = 4096")
        .set("steps.max_rows = 64")
        .set("steps.max_prefill_rows = 32");
    let mut cluster = Cluster::start(plan).await;
    cluster
        .until_placed("both used", |replica| replica.devices().len() == 2)
        .await;
    cluster.check_answers().await;
    cluster.kill_worker(2);
    for client in cluster.clients() {
        let reason = until("a reason that says what is missing", READY_WITHIN, async || {
            let answer = client.get("/readyz").await?;
            let body = answer.json();
            let reason = body["reason"].as_str().unwrap_or_default().to_owned();
            need(answer.status == 503 && body["ready"] == json!(false), || {
                answer.body.clone()
            })?;
            need(missing_bytes(&reason).is_some(), || reason.clone())?;
            Ok(reason)
        })
        .await;
        let missing = missing_bytes(&reason).expect("just seen");
        assert!((1..HALF).contains(&missing), "{reason}");
        let question = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]});
        for (path, body) in [
            ("/v1/chat/completions", question),
            ("/v1/completions", json!({"model": MODEL, "prompt": [1, 2]})),
        ] {
            let refused = client.post(path, body).await.expect("an answer");
            assert_eq!(refused.status, 503, "{refused:?}");
            let error = &refused.json()["error"];
            assert_eq!(error["code"], "not_serving", "{refused:?}");
            let message = error["message"].as_str().expect("a message");
            assert!(missing_bytes(message) == Some(missing), "{message}");
        }
    }
    let status = cluster.status().await.expect("a status");
    assert!(
        status.missing.as_deref().and_then(missing_bytes).is_some(),
        "{status:?}"
    );
    cluster.start_worker(2);
    cluster.until_ready().await;
    cluster.check_answers().await;
    cluster.until_idle().await;
}

/// The number in "N are missing", if a text says it.
fn missing_bytes(text: &str) -> Option<u64> {
    let before = text.split_once(" are missing")?.0;
    before.rsplit(' ').next()?.parse().ok().filter(|&bytes| bytes > 0)
}
