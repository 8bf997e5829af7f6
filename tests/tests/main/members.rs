//! Coordinators that are added and removed, and one whose disk is full.

use std::time::Duration;

use serde_json::json;
use tramontane_tests::cluster::{Cluster, READY_WITHIN};
use tramontane_tests::config::Plan;
use tramontane_tests::process::{Ran, tramontane};
use tramontane_tests::status::Status;
use tramontane_tests::wait::{need, until};

use crate::rolling::{Load, expected};

/// Runs a command of `tramontane cluster` against a coordinator that runs.
async fn command(cluster: &Cluster, arguments: &[&str]) -> Ran {
    let url = format!("http://{}", cluster.client(cluster.running()[0]).address);
    let at = ["--url", &url];
    let arguments = ["cluster"].iter().chain(arguments).chain(&at);
    tramontane(arguments, Duration::from_secs(120)).await
}

/// Ids and parts of all members.
fn parts(status: &Status) -> Vec<(u64, String)> {
    let members = status.members.iter();
    members.map(|member| (member.id, member.part.clone())).collect()
}

fn listed(all: &[(u64, &str)]) -> Vec<(u64, String)> {
    all.iter().map(|&(id, part)| (id, part.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_coordinator_is_replaced_by_a_new_one_under_load() {
    let plan = Plan::new(1).coordinators(3).set("requests.shutdown_grace_s = 60");
    let mut cluster = Cluster::start(plan).await;
    let expected = expected(&cluster).await;
    let leader = cluster.leader().await;
    let dead = leader % 3 + 1;
    cluster.kill_coordinator(dead);
    let load = Load::start(&cluster.clients(), &expected, 2);
    load.goes_on(1).await;
    let silent = format!("{dead}");
    cluster
        .until_status("silence of the dead", READY_WITHIN, |status| {
            let member = status.members.iter().find(|member| member.id == dead as u64);
            need(member.is_some_and(|member| !member.active), || {
                format!("{member:?}")
            })
        })
        .await;

    // One of the two that are left is needed.
    let other = (1..=3)
        .find(|number| ![leader, dead].contains(number))
        .expect("three");
    let refused = command(&cluster, &["remove", &other.to_string()]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("lose its quorum"), "{refused:?}");
    let unknown = command(&cluster, &["remove", "77"]).await;
    assert!(
        unknown.stderr.contains("there is no coordinator 77"),
        "{unknown:?}"
    );
    let member = command(&cluster, &["add", "1", "127.0.0.1:9"]).await;
    assert!(member.stderr.contains("is a member already"), "{member:?}");

    let new = cluster.start_coordinator_to_add();
    assert_eq!(new, 4);
    let address = cluster.rpc_address(new).to_string();
    let added = command(&cluster, &["add", "4", &address, "--wait", "--timeout", "60"]).await;
    assert_eq!(added.code, Some(0), "{added:?}");
    let removed = command(&cluster, &["remove", &silent, "--wait", "--timeout", "60"]).await;
    assert_eq!(removed.code, Some(0), "{removed:?}");
    let mut expected_parts: Vec<(u64, &str)> = (1..=4).map(|id| (id, "voter")).collect();
    expected_parts[dead - 1].1 = "removed";
    cluster
        .until_status("the new members", READY_WITHIN, |status| {
            need(parts(status) == listed(&expected_parts), || {
                format!("{:?}", status.members)
            })
        })
        .await;
    let again = command(&cluster, &["add", &silent, "127.0.0.1:9"]).await;
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.stderr.contains("never used again"), "{again:?}");

    // The new one is worth a vote: without another of the first three there is still a leader.
    load.goes_on(2).await;
    let client = cluster.client(new);
    until("a new coordinator that is ready", READY_WITHIN, async || {
        client.get("/readyz").await?.ok().map(|_| ())
    })
    .await;
    let removed = command(
        &cluster,
        &["remove", &leader.to_string(), "--wait", "--timeout", "60"],
    )
    .await;
    assert_eq!(removed.code, Some(0), "the leader hands over first: {removed:?}");
    let left: Vec<u64> = vec![other as u64, 4];
    cluster
        .until_status("another leader", READY_WITHIN, |status| {
            need(status.leader.is_some_and(|id| left.contains(&id)), || {
                format!("{:?}", status.leader)
            })
        })
        .await;
    let list = command(&cluster, &["list"]).await;
    assert_eq!(list.stdout.matches("voter").count(), 2, "{list:?}");
    load.goes_on(2).await;
    load.end().await;
    cluster.check_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_whose_disk_is_full_says_so_and_comes_back_with_room() {
    let plan = Plan::new(1).coordinators(3);
    let mut cluster = Cluster::start(plan).await;
    cluster.until_placed("a replica", |_| true).await;
    let leader = cluster.leader().await;
    let full = cluster.client(leader);
    cluster.fill_disk_of_coordinator(leader);
    // Whatever is to be written next is not.
    let url = format!("http://{}", cluster.client(leader % 3 + 1).address);
    let arguments = ["drain", "worker-1", "--force", "--url", &url];
    let _ = tramontane(arguments, Duration::from_secs(30)).await;
    let reason = until("a readiness that names the file", READY_WITHIN, async || {
        let answer = full.get("/readyz").await?;
        need(answer.status == 503 && answer.body.contains("raft.redb"), || {
            answer.body.clone()
        })?;
        Ok(answer.body)
    })
    .await;
    assert!(reason.contains("cannot write the log"), "{reason}");
    assert_eq!(full.metric("tramontane_raft_log_failed").await, Ok(Some(1.0)));
    let body = json!({"model": tramontane_tests::config::MODEL, "prompt": [1, 2]});
    let refused = full.post("/v1/completions", body).await.expect("an answer");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body.contains("raft.redb"), "{refused:?}");

    // The others go on: the change is made by whoever leads now.
    let other = cluster
        .until_status("another leader", READY_WITHIN, |status| {
            let other = status.leader.filter(|&id| id != leader as u64);
            other.ok_or(format!("{:?}", status.leader))
        })
        .await;
    let undone = tramontane(
        ["drain", "worker-1", "--undo", "--url", &url],
        Duration::from_secs(30),
    )
    .await;
    assert_eq!(undone.code, Some(0), "{undone:?}");
    println!("coordinator {other} leads in place of {leader}");
    cluster.kill_coordinator(leader);
    cluster.start_coordinator(leader);
    cluster.until_ready().await;
    assert_eq!(full.metric("tramontane_raft_log_failed").await, Ok(Some(0.0)));
    cluster.check_answers().await;
}
