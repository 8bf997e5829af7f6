//! Dense models of the family, in both layouts, over HTTP.

use serde_json::{Value, json};
use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::fixtures::{fixture, golden_of};

use crate::golden::{assert_equal, check_against_records, complete_all};

/// A conversation, with the chat format and the vocabulary of the folder.
async fn chat(cluster: &Cluster) -> Value {
    let body = json!({
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hello, who are you?"}],
        "temperature": 0,
        "max_tokens": 8,
        "logprobs": true,
    });
    let answer = cluster.client(1).post("/v1/chat/completions", body).await;
    let mut answer = answer.and_then(|answer| answer.ok()).expect("an answer").json();
    assert!(answer["usage"]["prompt_tokens"].as_u64() > Some(6), "{answer}");
    answer["choices"].take()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dense_models_answer_on_two_stages_as_on_one_worker_in_either_layout() {
    for (consolidated, hugging_face) in [
        ("micro-ministral", "micro-ministral-hf"),
        ("micro-ministral-tied", "micro-ministral-tied-hf"),
    ] {
        let records = golden_of(consolidated);
        let plan = |name: &str, plan: Plan| Plan {
            model: fixture(name),
            ..plan
        };
        let cluster = Cluster::start(plan(consolidated, Plan::new(1))).await;
        let one = complete_all(&cluster.client(1), &records).await;
        check_against_records(&records, &one, 80);
        let spoken = chat(&cluster).await;
        drop(cluster);

        // Its workers have no files: they fetch their slices from the coordinator.
        let fetching = Plan::new(2).shape(2, 1).fetching();
        let mut cluster = Cluster::start(plan(hugging_face, fetching)).await;
        let placed = cluster
            .until_placed("2 stages without experts", |replica| {
                replica.layers().len() == 2 && replica.stages.iter().all(|stage| stage.groups.is_empty())
            })
            .await;
        assert_eq!(placed.devices().len(), 2);
        let two = complete_all(&cluster.client(1), &records).await;
        assert_equal(&two, &one, hugging_face);

        assert_eq!(chat(&cluster).await, spoken, "{hugging_face}");
        cluster.check_alive();
        cluster.until_idle().await;
    }
}
