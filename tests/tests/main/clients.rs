//! OpenAI's own Python client against a cluster.

use std::process::Command;
use std::time::Duration;

use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::fixtures::repository;
use tramontane_tests::process::{run, target};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_openai_client_lists_chats_streams_and_calls_tools() {
    let (target, _) = target();
    let python = target.join("python-clients/bin/python");
    assert!(
        python.is_file(),
        "{} is missing: run `tests/clients/install.sh {}` first, as `make test` does",
        python.display(),
        target.display()
    );
    let cluster = Cluster::start(Plan::new(2).shape(2, 1)).await;
    let mut command = Command::new(python);
    command
        .arg(repository().join("tests/clients/openai_client.py"))
        .arg(format!("http://{}/v1", cluster.client(1).address))
        .arg(MODEL);
    let ran = run(command, Duration::from_secs(120)).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    for step in [
        "models",
        "chat",
        "stream",
        "tool call",
        "tool result",
        "completion",
        "error",
    ] {
        assert!(
            ran.stdout.contains(&format!("{step}: ")),
            "no {step} in {}",
            ran.stdout
        );
    }
    cluster.until_idle().await;
}
