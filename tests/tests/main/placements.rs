//! Recorded answers whatever the placement, and DET-1: the same bits, however layers and experts are spread, whoever
//! shares the batch, and however the prompt is cut.

use tramontane_tests::client::Client;
use tramontane_tests::cluster::{Cluster, READY_WITHIN};
use tramontane_tests::config::{Plan, ROOMY};
use tramontane_tests::fixtures::{Golden, golden};
use tramontane_tests::status::Replica;
use tramontane_tests::wait::need;

use crate::golden::{Output, assert_equal, check_against_records, complete, complete_all};

/// Steps of the records that are compared at least.
const STEPS: usize = 700;
/// Room for few layers.
const SMALL: u64 = 24 << 20;
/// Room for some more.
const MEDIUM: u64 = 40 << 20;

/// A cluster, and what makes its placement the one that is meant.
struct Placement {
    what: &'static str,
    plan: Plan,
    right: fn(&Replica) -> bool,
}

fn placements() -> [Placement; 4] {
    [
        Placement {
            what: "2 stages of 2 expert groups on 4 workers",
            plan: Plan::new(4).coordinators(3).shape(2, 2),
            right: |replica| {
                let groups = replica.stages.iter().map(|stage| stage.groups.len());
                groups.eq([2, 2]) && replica.devices().len() == 4
            },
        },
        Placement {
            what: "2 stages on 2 workers",
            plan: Plan::new(2).shape(2, 1),
            right: |replica| replica.layers().len() == 2 && replica.devices().len() == 2,
        },
        Placement {
            what: "2 devices of 1 worker",
            plan: Plan::new(0).devices(&[&[ROOMY, ROOMY]]).shape(2, 1),
            right: |replica| replica.devices() == ["worker-1/0", "worker-1/1"],
        },
        Placement {
            what: "3 unequal stages, prompts in chunks of 24",
            plan: Plan::new(0)
                .devices(&[&[SMALL], &[ROOMY], &[MEDIUM]])
                .shape(3, 1)
                .set("placement.kv_tokens_max = 8192")
                .set("steps.max_rows = 64")
                .set("steps.max_prefill_rows = 24"),
            right: |replica| replica.devices().len() == 3 && replica.layers() != [2, 2, 2],
        },
    ]
}

/// Asks for every `step`-th prompt, one after the other: no other sequence is in their batches.
async fn check_alone(client: &Client, records: &[Golden], expected: &[Output], step: usize, what: &str) {
    for (index, (record, expected)) in records.iter().zip(expected).enumerate().step_by(step) {
        let alone = complete(client, record).await;
        assert_eq!(alone, *expected, "record {index}: {what}, alone");
    }
}

/// Waits until every device holds what the planner counts for it, and no more, within 3 %.
pub(crate) async fn check_bytes(cluster: &Cluster) {
    let what = "devices that hold what is planned";
    cluster
        .until_status(what, READY_WITHIN, |status| {
            for device in status.nodes.iter().flat_map(|node| &node.devices) {
                let (held, planned) = (device.held_bytes, device.planned_bytes);
                let right = held > 0 && held <= planned && (planned - held) * 100 <= planned * 3;
                need(right, || format!("{device:?}"))?;
            }
            Ok(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_placement_gives_the_recorded_answers_and_the_same_bits() {
    let records = golden();
    assert_eq!(records.len(), 54);
    let whole = Plan::new(1)
        .set("steps.max_rows = 1100")
        .set("steps.max_prefill_rows = 1024");
    let cluster = Cluster::start(whole).await;
    cluster
        .until_placed("1 stage", |replica| replica.devices() == ["worker-1/0"])
        .await;
    let one = complete_all(&cluster.client(1), &records).await;
    check_against_records(&records, &one, STEPS);
    check_alone(&cluster.client(1), &records, &one, 1, "1 worker").await;
    cluster.until_idle().await;
    drop(cluster);
    for Placement { what, plan, right } in placements() {
        let mut cluster = Cluster::start(plan).await;
        let placed = cluster.until_placed(what, right).await;
        println!("{what}: layers {:?}", placed.layers());
        check_bytes(&cluster).await;
        let outputs = complete_all(&cluster.client(1), &records).await;
        cluster.check_alive();
        check_against_records(&records, &outputs, STEPS);
        assert_equal(&outputs, &one, what);
        check_alone(&cluster.client(1), &records, &one, 3, what).await;
        cluster.until_idle().await;
    }
}
