//! A cluster that is told to cache in f16: where it shows, what it takes, and what it answers.

use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::Plan;
use tramontane_tests::fixtures::golden;

use crate::golden::{assert_equal, complete_all, is_as_recorded};
use crate::placements::check_bytes;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configured_f16_cache_is_shown_is_held_and_gives_the_recorded_answers() {
    let records: Vec<_> = golden().into_iter().step_by(2).collect();
    let mut answers = Vec::new();
    for stages in [1, 2] {
        let plan = Plan::new(2).shape(stages, 1).set("placement.kv_format = \"f16\"");
        let mut cluster = Cluster::start(plan).await;
        let placed = cluster
            .until_placed("a cache of f16", |replica| {
                replica.layers().len() == stages as usize
            })
            .await;
        assert_eq!(placed.kv.format.as_deref(), Some("f16"));
        check_bytes(&cluster).await;
        answers.push(complete_all(&cluster.client(1), &records).await);
        cluster.check_alive();
        cluster.until_idle().await;
    }
    let equal = records.iter().zip(&answers[0]);
    let equal = equal
        .filter(|(record, output)| is_as_recorded(record, output))
        .count();
    assert!(equal * 100 >= records.len() * 95, "{equal} of {}", records.len());
    assert_equal(&answers[1], &answers[0], "2 stages that cache in f16");
}
