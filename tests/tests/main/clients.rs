//! Python clients against clusters: those of OpenAI and Mistral, of which only the address is each one's own, and answers
//! checked with `jsonschema`.

use std::process::Command;
use std::time::Duration;

use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::fixtures::repository;
use tramontane_tests::process::{run, target};

/// Runs a client against the cluster's first coordinator, below a path; what it said.
async fn run_client(cluster: &Cluster, script: &str, prefix: &str, within: Duration) -> String {
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
        .arg(format!("http://{}{prefix}", cluster.client(1).address))
        .arg(MODEL)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let ran = run(command, within).await;
    println!("{script}: {}", ran.stdout);
    assert_eq!(ran.code, Some(0), "{script}: {}{}", ran.stdout, ran.stderr);
    cluster.until_idle().await;
    ran.stdout
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_of_openai_and_mistral_find_what_they_know() {
    let cluster = Cluster::start(Plan::new(2).shape(2, 1)).await;
    for (script, prefix) in [
        ("openai_chat.py", "/v1"),
        ("openai_completions.py", "/v1"),
        ("openai_responses.py", "/v1"),
        ("mistral_client.py", "/mistral"),
    ] {
        let said = run_client(&cluster, script, prefix, Duration::from_secs(240)).await;
        assert!(said.trim_end().ends_with("steps went well"), "{said}");
    }
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
    let said = run_client(&cluster, "structured_client.py", "/v1", Duration::from_secs(300)).await;
    for step in steps {
        assert!(said.contains(&format!("{step}: ")), "no {step} in {said}");
    }
}
