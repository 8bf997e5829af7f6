//! Coordinators that are lost and come back.

use std::time::Duration;

use hyper::Method;
use serde_json::json;
use tokio::time::Instant;
use tramontane_tests::client::{Client, all_at_once};
use tramontane_tests::cluster::{Cluster, READY_WITHIN};
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::status::{Replica, Status};
use tramontane_tests::wait::{need, until};

/// The longest that clients of the coordinators that are left may notice anything.
const FAILOVER: Duration = Duration::from_secs(3);

/// What of a placement must not change: where everything is, and which generation it is.
fn identity(replica: &Replica) -> (u64, u64, Vec<tramontane_tests::status::Stage>) {
    (replica.id, replica.generation, replica.stages.clone())
}

/// Whole numbers that a coordinator counts for raft.
async fn raft(client: &Client, what: &str) -> Result<u64, String> {
    let name = format!("tramontane_raft_{what}");
    let value = client.metric(&name).await?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    value
        .map(|value| value as u64)
        .ok_or(format!("{name} is not there"))
}

/// Tries once, in little time, as the cluster may be between leaders.
async fn answers_soon(client: &Client) -> Result<(), String> {
    let soon = Duration::from_secs(2);
    client
        .send(Method::GET, "/readyz", String::new(), soon)
        .await?
        .ok()?;
    let question = json!({
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
    });
    let path = "/v1/chat/completions";
    let answer = client
        .send(Method::POST, path, question.to_string(), soon)
        .await?
        .ok()?;
    need(answer.body.contains("Paris"), || answer.body)
}

/// A status in which all coordinators are listed and one of them leads.
fn led_by_one_of_three(status: &Status) -> Result<usize, String> {
    let coordinators = status.nodes.iter().filter(|node| node.role != "worker");
    let listed = coordinators.clone().count();
    let leaders = coordinators.filter(|node| node.role == "leader").count();
    need((listed, leaders) == (3, 1), || {
        format!("{listed} coordinators, {leaders} lead")
    })?;
    let leader = status.leader.ok_or("nobody leads")?;
    usize::try_from(leader).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_that_are_killed_are_done_without_and_come_back_with_their_log() {
    let mut cluster = Cluster::start(Plan::new(2).coordinators(3).shape(2, 1)).await;
    let before = cluster
        .until_placed("2 stages", |replica| replica.stages.len() == 2)
        .await;
    let first = cluster
        .until_status("three coordinators", READY_WITHIN, led_by_one_of_three)
        .await;
    cluster.check_answers().await;
    let term_before = cluster.status().await.expect("a status").term;

    lose_the_leader(&mut cluster, first).await;
    let after = cluster
        .until_placed("2 stages still", |replica| replica.stages.len() == 2)
        .await;
    assert_eq!(
        identity(&after),
        identity(&before),
        "a new leader placed the model anew"
    );

    come_back(&mut cluster, first, term_before).await;
    restart_all(&mut cluster, &before).await;
    cluster.check_alive();
    cluster.until_idle().await;
}

async fn lose_the_leader(cluster: &mut Cluster, leader: usize) {
    cluster.kill_coordinator(leader);
    let killed = Instant::now();
    // Both answer, and both know of another leader.
    all_at_once(2, cluster.clients(), async |client| {
        until("an answer after the leader's end", FAILOVER, async || {
            answers_soon(&client).await?;
            let led = raft(&client, "leader").await?;
            need(led != 0 && led != leader as u64, || {
                format!("coordinator {led} leads")
            })
        })
        .await;
    })
    .await;
    let new = cluster.leader().await;
    assert_ne!(new, leader);
    let took = killed.elapsed();
    println!("the others answer and are led {took:?} after the leader's end");
    assert!(took <= FAILOVER, "{took:?}");
}

/// The one that was killed goes on with the log that it had.
async fn come_back(cluster: &mut Cluster, number: usize, term_before: u64) {
    let others = cluster.clients();
    let committed = raft(&others[0], "commit_index").await.expect("a number");
    cluster.start_coordinator(number);
    let client = cluster.client(number);
    let term = until("a coordinator that is back", READY_WITHIN, async || {
        client.get("/readyz").await?.ok()?;
        let applied = raft(&client, "applied_index").await?;
        need(applied >= committed, || {
            format!("it has applied {applied} of {committed}")
        })?;
        let (own, other) = (raft(&client, "term").await?, raft(&others[0], "term").await?);
        need(own == other, || format!("its term is {own}, the others' {other}"))?;
        Ok(own)
    })
    .await;
    assert!(term > term_before, "term {term} follows {term_before}");
    cluster
        .until_status("three coordinators", READY_WITHIN, led_by_one_of_three)
        .await;
    let (name, pid) = (format!("coordinator-{number}"), cluster.coordinator_pid(number));
    cluster
        .until_status("the new process", READY_WITHIN, |status| {
            let node = status.node(&name).ok_or("it is not listed")?;
            need(node.pid == pid, || format!("{node:?} is not process {pid}"))
        })
        .await;
    answers_soon(&client).await.expect("it answers");
}

/// All at once are restarted: the placement is in their logs, and the workers never stopped.
async fn restart_all(cluster: &mut Cluster, before: &Replica) {
    let term = raft(&cluster.client(1), "term").await.expect("a number");
    let index = raft(&cluster.client(1), "commit_index").await.expect("a number");
    for number in cluster.running() {
        cluster.kill_coordinator(number);
    }
    for number in 1..=3 {
        cluster.start_coordinator(number);
    }
    cluster.until_ready().await;
    cluster
        .until_status("three coordinators", READY_WITHIN, led_by_one_of_three)
        .await;
    let after = cluster.until_placed("what was placed", |_| true).await;
    assert_eq!(identity(&after), identity(before), "it was placed anew");
    for client in cluster.clients() {
        assert!(raft(&client, "term").await.expect("a number") > term);
        assert!(raft(&client, "commit_index").await.expect("a number") >= index);
    }
    cluster.check_answers().await;
}
