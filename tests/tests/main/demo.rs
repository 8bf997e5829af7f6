//! `tramontane demo`, as `make demo` runs it: answers, and no process left however it ends.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tramontane_proto::net::Identity;
use tramontane_tests::client::Client;
use tramontane_tests::cluster::{READY_WITHIN, turn};
use tramontane_tests::config::MODEL;
use tramontane_tests::process::{kill, program, runs, tramontane};
use tramontane_tests::status::{Node, Status};
use tramontane_tests::wait::{need, until};

const WITHIN: Duration = Duration::from_secs(180);

/// Process ids in the table of a status.
fn pids(output: &str) -> Vec<u32> {
    let rows = output
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let nodes = rows.filter(|row| {
        row.first()
            .is_some_and(|name| name.starts_with("coordinator-") || name.starts_with("worker-"))
    });
    nodes.filter_map(|row| row.get(2)?.parse().ok()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demo_answers_its_questions_and_leaves_no_process() {
    let _turn = turn().await;
    let ran = tramontane(["demo"], WITHIN).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    for part in [
        "leader coordinator-",
        "0..",
        "..6",
        "generation 1: serving",
        "The capital of France is Paris.",
        "yellow",
        "36",
        "{\"country\": \"Italy\", \"capital\": \"Rome\"}",
        "tokens/s",
    ] {
        assert!(ran.stdout.contains(part), "{part:?} is not said:\n{}", ran.stdout);
    }
    let nodes = pids(&ran.stdout);
    assert_eq!(nodes.len(), 7, "{}", ran.stdout);
    let left: Vec<u32> = nodes.into_iter().filter(|&pid| runs(pid)).collect();
    assert!(left.is_empty(), "processes {left:?} are left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demo_asks_what_it_is_given_on_other_shapes() {
    let _turn = turn().await;
    let question = "What is the capital of France?";
    let shape = [
        "--coordinators",
        "1",
        "--workers",
        "2",
        "--expert-groups",
        "1",
        "--worker-memory",
        "2=64MiB",
    ];
    let ran = tramontane([&["demo"], &shape[..], &[question]].concat(), WITHIN).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    assert!(
        ran.stdout.contains("> What is the capital of France?"),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stdout.contains("The capital of France is Paris."),
        "{}",
        ran.stdout
    );
    assert_eq!(pids(&ran.stdout).len(), 3, "{}", ran.stdout);
}

/// A demo that stays up, of so many coordinators and workers; it ends with the test.
struct Demo {
    child: Child,
    output: PathBuf,
    _dir: TempDir,
}

impl Demo {
    async fn start(coordinators: usize, workers: usize, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let output = dir.path().join("output");
        let file = std::fs::File::create(&output).expect("a file");
        let mut command = Command::new(program());
        command
            .args(["demo", "--serve", "--stages", "1", "--expert-groups", "1"])
            .args(["--coordinators", &coordinators.to_string()])
            .args(["--workers", &workers.to_string()])
            .args(more)
            .arg("--data-dir")
            .arg(dir.path().join("cluster"))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file"))
            .stderr(file);
        let mut demo = Self {
            child: command.spawn().expect("it starts"),
            output,
            _dir: dir,
        };
        until("a demo that is up", READY_WITHIN, async || {
            let ended = demo.child.try_wait().expect("a child");
            assert!(ended.is_none(), "it ended ({ended:?}): {}", demo.said());
            need(demo.said().contains("The cluster is up"), || demo.said())
        })
        .await;
        let nodes = pids(&demo.said());
        let all_run = nodes.iter().all(|&pid| runs(pid));
        assert!(
            nodes.len() == coordinators + workers && all_run,
            "{}",
            demo.said()
        );
        demo
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// A client of the first coordinator.
    fn client(&self) -> Client {
        let said = self.said();
        let (_, after) = said
            .split_once("tramontane status --url http://")
            .expect("an address");
        Client::new(
            after.split_whitespace().next().expect("an address"),
            Identity::Loopback,
        )
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn status(client: &Client) -> Result<Status, String> {
    let answer = client.get("/cluster/status").await?.ok()?;
    serde_json::from_str(&answer.body).map_err(|error| error.to_string())
}

/// Whether a node is there as another process than before, and which.
fn is_back(status: &Status, before: &Node) -> Result<u32, String> {
    let node = status.node(&before.id).ok_or("it is not listed")?;
    let is_there = ["joined", "up"].contains(&node.state.as_str());
    need(node.pid != before.pid && is_there && runs(node.pid), || {
        format!("{node:?}")
    })?;
    Ok(node.pid)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_a_demo_that_are_killed_come_back_with_their_names() {
    let _turn = turn().await;
    let demo = Demo::start(3, 2, &["--replicas", "1"]).await;
    let client = demo.client();
    let before = status(&client).await.expect("a status");
    let follower = before
        .nodes
        .iter()
        .find(|node| node.role == "follower")
        .expect("one follows");
    let serving = before.serving().expect("it serves").stages[0].owner.clone();
    let worker = serving
        .split('/')
        .next()
        .and_then(|name| before.node(name))
        .expect("a worker");
    // The first coordinator is the one that is asked.
    let follower = match follower.id.as_str() {
        "coordinator-1" => before
            .nodes
            .iter()
            .rfind(|node| node.role == "follower")
            .expect("two follow"),
        _ => follower,
    };
    for node in [follower, worker] {
        kill(node.pid);
    }
    for node in [follower, worker] {
        until(&format!("{} again", node.id), READY_WITHIN, async || {
            is_back(&status(&client).await?, node)
        })
        .await;
        let told = format!(
            "{} ended (signal: 9 (SIGKILL)); it is started again in 2 s",
            node.id
        );
        assert!(demo.said().contains(&told), "{}", demo.said());
    }
    let answer = client.ask(MODEL, "What is the capital of France?").await;
    assert_eq!(answer.as_deref(), Ok("The capital of France is Paris."));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_restart_a_demo_ends_once_all_of_its_nodes_are_dead() {
    let _turn = turn().await;
    let mut demo = Demo::start(1, 1, &["--no-restart"]).await;
    for pid in pids(&demo.said()) {
        kill(pid);
    }
    let status = until("the end of the demo", Duration::from_secs(60), async || {
        demo.child
            .try_wait()
            .expect("a child")
            .ok_or("it runs".to_owned())
    })
    .await;
    let said = demo.said();
    assert!(!status.success() && said.contains("no node is left"), "{said}");
    assert!(
        said.contains("the others go on") && !said.contains("started again"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_end_with_a_demo_that_is_killed() {
    let _turn = turn().await;
    let mut demo = Demo::start(1, 1, &[]).await;
    let nodes = pids(&demo.said());
    demo.child.kill().expect("it can be killed");
    until("the end of its nodes", Duration::from_secs(30), async || {
        let left: Vec<u32> = nodes.iter().copied().filter(|&pid| runs(pid)).collect();
        need(left.is_empty(), || format!("{left:?} are left"))
    })
    .await;
}
