//! The OpenAPI document by its own schema, and requests that schemathesis makes of it, right ones and wrong ones.

use std::process::Command;
use std::time::Duration;

use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::Plan;
use tramontane_tests::fixtures::repository;
use tramontane_tests::process::{run, target};

/// What every response is checked for.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance,negative_data_rejection,unsupported_method";
/// Requests that are made up for each route, beside those that cover its document.
const EXAMPLES: u32 = 200;
/// Longest wait for one answer: no request hangs.
const ANSWER_SECONDS: u32 = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes, and a tool that is large: make soak"]
async fn soak_schemathesis_finds_no_server_error_and_no_hang() {
    let (target, _) = target();
    let program = target.join("python-soak/bin/schemathesis");
    let hint = "run `tests/clients/install.sh TARGET soak` first, as `make soak` does";
    assert!(program.is_file(), "{} is missing: {hint}", program.display());
    let mut cluster = Cluster::start(Plan::new(2).shape(2, 1)).await;
    let client = cluster.client(1);
    let document = client.get("/openapi.json").await.expect("an answer").body;
    let file = target.join("openapi.json");
    std::fs::write(&file, document).expect("writes");
    let mut command = Command::new(program.with_file_name("openapi-spec-validator"));
    command.arg(&file);
    let ran = run(command, Duration::from_secs(60)).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);

    let mut command = Command::new(program);
    command
        .args(["run", &format!("http://{}/openapi.json", client.address)])
        .args(["--phases", "examples,coverage,fuzzing", "--checks", CHECKS])
        .args(["--max-examples", &EXAMPLES.to_string(), "--seed", "1"])
        .args(["--request-timeout", &ANSWER_SECONDS.to_string(), "--workers", "4"])
        // It would take the model from the other requests while it loads anew.
        .args(["--exclude-path", "/cluster/replan"])
        .args(["--continue-on-failure", "--no-shrink"])
        .current_dir(target)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONPATH", repository().join("tests/clients"))
        .env("SCHEMATHESIS_HOOKS", "schemathesis_hooks");
    let ran = run(command, Duration::from_secs(840)).await;
    println!("{}", ran.stdout);
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    cluster.check_alive();
    cluster.until_idle().await;
    cluster.check_answers().await;
}
