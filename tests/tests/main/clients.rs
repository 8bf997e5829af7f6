//! Python clients against a cluster: OpenAI's own, and answers checked with `jsonschema`.

use std::process::Command;
use std::time::Duration;

use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::fixtures::repository;
use tramontane_tests::process::{run, target};

/// Runs a client against the cluster's first coordinator; it must say that it has done these steps.
async fn run_client(cluster: &Cluster, script: &str, within: Duration, steps: &[&str]) {
    let (target, _) = target();
    let python = target.join("python-clients/bin/python");
    assert!(
        python.is_file(),
        "{} is missing: run `tests/clients/install.sh {}` first, as `make test` does",
        python.display(),
        target.display()
    );
    let mut command = Command::new(python);
    command
        .arg(repository().join("tests/clients").join(script))
        .arg(format!("http://{}/v1", cluster.client(1).address))
        .arg(MODEL);
    let ran = run(command, within).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    for step in steps {
        assert!(
            ran.stdout.contains(&format!("{step}: ")),
            "no {step} in {}",
            ran.stdout
        );
    }
    cluster.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_openai_client_lists_chats_streams_and_calls_tools() {
    let cluster = Cluster::start(Plan::new(2).shape(2, 1)).await;
    let steps = [
        "models",
        "chat",
        "stream",
        "tool call",
        "tool result",
        "completion",
        "error",
    ];
    run_client(&cluster, "openai_client.py", Duration::from_secs(120), &steps).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_what_schemas_expressions_and_tools_say() {
    let cluster = Cluster::start(Plan::new(1).shape(1, 1)).await;
    let steps = [
        "schemas",
        "guided_regex",
        "guided_choice",
        "json_object",
        "tool_choice required",
        "tool_choice named",
        "strict tools",
        "error",
    ];
    run_client(&cluster, "structured_client.py", Duration::from_secs(300), &steps).await;
}
