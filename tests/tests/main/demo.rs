//! `tramontane demo`, as `make demo` runs it: answers, and no process left however it ends.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tramontane_tests::cluster::{READY_WITHIN, turn};
use tramontane_tests::process::{program, runs, tramontane};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_end_with_a_demo_that_is_killed() {
    let _turn = turn().await;
    let dir = tempfile::tempdir().expect("a directory");
    let output = dir.path().join("output");
    let file = std::fs::File::create(&output).expect("a file");
    let mut command = Command::new(program());
    command
        .args([
            "demo",
            "--serve",
            "--coordinators",
            "1",
            "--workers",
            "1",
            "--stages",
            "1",
            "--expert-groups",
            "1",
        ])
        .arg("--data-dir")
        .arg(dir.path().join("cluster"))
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("a file"))
        .stderr(file);
    let mut demo = Killed(command.spawn().expect("it starts"));
    let read = || std::fs::read_to_string(&output).unwrap_or_default();
    until("a demo that is up", READY_WITHIN, async || {
        let ended = demo.0.try_wait().expect("a child");
        assert!(ended.is_none(), "it ended ({ended:?}): {}", read());
        need(read().contains("The cluster is up"), read)
    })
    .await;
    let nodes = pids(&read());
    assert!(
        nodes.len() == 2 && nodes.iter().all(|&pid| runs(pid)),
        "{}",
        read()
    );
    demo.0.kill().expect("it can be killed");
    until("the end of its nodes", Duration::from_secs(30), async || {
        let left: Vec<u32> = nodes.iter().copied().filter(|&pid| runs(pid)).collect();
        need(left.is_empty(), || format!("{left:?} are left"))
    })
    .await;
}

/// A child that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
