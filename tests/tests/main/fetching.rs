//! Workers without files of the model: each gets what it is given from a coordinator, once, and nothing more.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tramontane_tests::checkpoint::Copy;
use tramontane_tests::cluster::{Cluster, READY_WITHIN};
use tramontane_tests::config::Plan;
use tramontane_tests::fixtures::{fixture, golden, mini};
use tramontane_tests::process::{program, run};
use tramontane_tests::wait::need;

use crate::golden::{check_against_records, complete_all};

const WEIGHTS: &str = "consolidated.safetensors";
/// Steps of the records that are compared at least.
const STEPS: usize = 700;
const FETCHED: &str = "tramontane_fetched_bytes_total";

/// Length of the weights, and what of them takes room on disk.
fn weights(dir: &Path) -> (u64, u64) {
    let file = std::fs::metadata(dir.join(WEIGHTS)).expect("the weights");
    (file.len(), 512 * file.blocks())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_fetch_what_they_are_given_and_keep_it_over_a_restart() {
    // Copies of each other's part would be fetched too.
    let plan = Plan::new(2).coordinators(3).shape(2, 1).fetching();
    let plan = plan.set("placement.standbys = false");
    let mut cluster = Cluster::start(plan).await;
    let records = golden();
    check_against_records(&records, &complete_all(&cluster.client(1), &records).await, STEPS);
    let (whole, _) = weights(&mini());
    let mut held = 0;
    for number in [1, 2] {
        let (length, on_disk) = weights(&cluster.fetched_dir(number));
        assert_eq!(length, whole, "holes are where nothing was fetched");
        assert!(
            on_disk < whole * 3 / 4,
            "worker {number} has {on_disk} of {whole} bytes"
        );
        held += on_disk;
    }
    // The vision tower is in the file and on no device.
    assert!(held > whole * 3 / 4, "both have {held} of {whole} bytes");
    let fetched = cluster
        .worker_metric(FETCHED)
        .await
        .expect("metrics")
        .unwrap_or(0.0);
    assert!(fetched > 0.0);

    // A whole restart: the same places, and nothing is fetched again.
    cluster.kill_worker(1);
    cluster.kill_worker(2);
    cluster.start_worker(1);
    cluster.start_worker(2);
    cluster.until_ready().await;
    check_against_records(&records, &complete_all(&cluster.client(1), &records).await, STEPS);
    let again = cluster
        .worker_metric(FETCHED)
        .await
        .expect("metrics")
        .unwrap_or(0.0);
    // Which of the two has which stage may have changed.
    assert!(again <= fetched, "{again} bytes after {fetched}");
    cluster.check_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_told_in_the_status_where_there_is_a_manifest() {
    const TENSOR: &str = "layers.1.attention.wo.weight";
    let copy = Copy::of(&fixture("micro-bf16"));
    let mut command = std::process::Command::new(program());
    command.args(["checkpoint", "manifest"]).arg(copy.path());
    assert_eq!(run(command, READY_WITHIN).await.code, Some(0));
    copy.bytes(WEIGHTS, |bytes| {
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("a length"));
        let data = 8 + usize::try_from(length).expect("a header");
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..data]).expect("JSON");
        let begin = header[TENSOR]["data_offsets"][0].as_u64().expect("an offset");
        bytes[data + usize::try_from(begin).expect("an offset")] ^= 1;
    });
    for fetching in [false, true] {
        let mut plan = Plan::new(1).set("placement.settle_ms = 500");
        plan.model = copy.path().to_owned();
        plan.fetch = fetching;
        let cluster = Cluster::launch(plan).await;
        let said = cluster
            .until_status("a device that failed", READY_WITHIN, |status| {
                let node = status.node("worker-1").ok_or("it has not joined")?;
                let device = node.devices.first().ok_or("it has no device")?;
                need(device.state.starts_with("failed"), || format!("{status:?}"))?;
                Ok(device.state.clone())
            })
            .await;
        for part in [WEIGHTS, TENSOR, "are not those that manifest.json was made of"] {
            assert!(said.contains(part), "{part:?} is not said: {said}");
        }
    }
}
