//! Configuration files that cannot be used: the program ends at once and names file and key.

use std::path::Path;
use std::time::Duration;

use tramontane_tests::config::{Plan, addresses, write_coordinator, write_token, write_worker};
use tramontane_tests::process::tramontane;

/// Longest wait for a program that cannot start.
const WITHIN: Duration = Duration::from_secs(60);

/// Right files of a coordinator and of a worker.
fn right_files(dir: &Path) -> (String, String) {
    write_token(dir);
    let plan = Plan::new(1);
    let all = addresses(&plan);
    let read = |path| std::fs::read_to_string(path).expect("just written");
    (
        read(write_coordinator(dir, &plan, &all, 1)),
        read(write_worker(dir, &plan, &all, 1, ([127, 0, 0, 1], 0).into())),
    )
}

/// Starts a role from a text; it must end with an error that says every part, the file's name first.
async fn refused(dir: &Path, role: &str, text: &str, parts: &[&str]) {
    let path = dir.join("bad.toml");
    std::fs::write(&path, text).expect("writes");
    let ran = tramontane([role.as_ref(), "--config".as_ref(), path.as_os_str()], WITHIN).await;
    assert_eq!(ran.code, Some(1), "{role} of {text}: {ran:?}");
    for part in [&["bad.toml"], parts].concat() {
        assert!(
            ran.stderr.contains(part),
            "{role} does not say {part:?}: {}",
            ran.stderr
        );
    }
}

#[tokio::test]
async fn bad_files_are_refused_with_file_and_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let (coordinator, worker) = right_files(dir.path());
    for role in ["coordinator", "worker"] {
        let ran = tramontane([role, "--config", "no/such/file.toml"], WITHIN).await;
        assert_eq!(ran.code, Some(1));
        assert!(
            ran.stderr
                .contains("no/such/file.toml: cannot read the configuration"),
            "{}",
            ran.stderr
        );
        refused(dir.path(), role, "name = \"w\nid = 1", &["line 1"]).await;
        refused(dir.path(), role, "", &["missing field"]).await;
    }
    let unknown = ["sevret = 1\n", &coordinator].concat();
    refused(
        dir.path(),
        "coordinator",
        &unknown,
        &["unknown field `sevret`", "join_token_file"],
    )
    .await;
    let unknown = format!("{worker}memory = 1\n");
    refused(
        dir.path(),
        "worker",
        &unknown,
        &["unknown field `memory`", "memory_bytes"],
    )
    .await;
    let wrong_type = coordinator.replace("id = 1\n", "id = \"one\"\n");
    refused(dir.path(), "coordinator", &wrong_type, &["expected u64"]).await;
    let unknown = format!("{coordinator}placement.kv_format = \"f8\"\n");
    let parts = ["kv_format", "unknown variant `f8`", "`f16`"];
    refused(dir.path(), "coordinator", &unknown, &parts).await;
    // All faults at once.
    let faults = coordinator
        .replace("id = 1\n", "id = 7\n")
        .replace("\"join-token\"", "\"nowhere\"")
        + "placement.kv_block_tokens = 0\n";
    let parts = [
        "id is 7",
        "nowhere",
        "placement.kv_block_tokens is 0, it must be between 1 and 1024",
    ];
    refused(dir.path(), "coordinator", &faults, &parts).await;
    let open = worker.replace("rpc.listen = \"127.0.0.1:0\"", "rpc.listen = \"0.0.0.0:7200\"");
    refused(
        dir.path(),
        "worker",
        &open,
        &["rpc.listen is 0.0.0.0:7200", "rpc.advertise is missing"],
    )
    .await;
}

#[tokio::test]
async fn bad_arguments_are_refused() {
    for (arguments, part) in [
        (
            &["serve", "--model", "/no/such/folder"][..],
            "/no/such/folder: there is no params.json",
        ),
        (&["demo", "--coordinators", "2"], "1, 3 or 5"),
        (&["demo", "--worker-memory", "9=1GiB"], "there is no worker-9"),
        (
            &["status", "--url", "https://127.0.0.1:1"],
            "needs --ca, --certificate and --key",
        ),
        (
            &["status", "--url", "http://127.0.0.1:1"],
            "cannot reach 127.0.0.1:1",
        ),
    ] {
        let ran = tramontane(arguments, WITHIN).await;
        assert!(ran.code.is_some_and(|code| code != 0), "{ran:?}");
        assert!(ran.stderr.contains(part), "{part:?} is not said: {}", ran.stderr);
    }
}
