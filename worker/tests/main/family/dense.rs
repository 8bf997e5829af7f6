//! Dense models with grouped-query attention against their records: on one worker and on two stages, with tied and
//! untied embeddings, in both layouts.

use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_worker::process;

use crate::cluster::{Cluster, StagePlan, replica, repository};
use crate::golden::{Record, check_against, check_scores, records_of, with_top5};

const WHOLE: &[StagePlan<'static>] = &[(0, 3, "w1/0", &[])];
const TWO_STAGES: &[StagePlan<'static>] = &[(0, 1, "w1/0", &[]), (1, 3, "w2/0", &[])];

/// What was generated for a record, and what was told of its prompt.
type Answer = (Vec<SampledToken>, Vec<SampledToken>);

/// Greedy continuations, prompts scored.
async fn answers(cluster: &mut Cluster, records: &[Record]) -> Vec<Answer> {
    let sampling = SamplingParams {
        prompt_logprobs: Some(3),
        ..with_top5()
    };
    let mut answers = Vec::new();
    for record in records {
        let limit = u32::try_from(record.greedy.len().max(1)).expect("short");
        let (tokens, _) = cluster
            .generate(&record.prompt_ids, &[], sampling.clone(), limit)
            .await;
        answers.push((tokens, cluster.prompt_scores.clone()));
    }
    cluster.until_idle().await;
    answers
}

fn check(records: &[Record], answers: &[Answer]) {
    let tokens: Vec<Vec<SampledToken>> = answers
        .iter()
        .zip(records)
        // A record without a continuation stopped before a near tie.
        .map(|((tokens, _), record)| tokens[..record.greedy.len()].to_vec())
        .collect();
    check_against(records, &tokens);
    let scores: Vec<Vec<SampledToken>> = answers.iter().map(|(_, scores)| scores.clone()).collect();
    check_scores(records, &scores);
}

/// The recorded answers on one worker and on two stages, to the same bits; gives them.
async fn recorded_answers(fixture: &str) -> Vec<Answer> {
    let records = records_of(fixture);
    assert!(records.iter().any(|record| record.prompt_ids.len() > 256));
    let dir = repository().join("tests/fixtures").join(fixture);
    let mut cluster = Cluster::start_with(&dir, &[("w1", 1), ("w2", 1)], 64, process::spawn_gpu).await;
    cluster.assign(&replica(1, WHOLE)).await;
    let whole = answers(&mut cluster, &records).await;
    check(&records, &whole);
    cluster.assign(&replica(2, TWO_STAGES)).await;
    let split = answers(&mut cluster, &records).await;
    assert_eq!(split, whole, "{fixture} on two stages");
    whole
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dense_model_gives_the_recorded_answers_in_either_layout() {
    let consolidated = recorded_answers("micro-ministral").await;
    assert_eq!(recorded_answers("micro-ministral-hf").await, consolidated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dense_model_with_tied_embeddings_gives_the_recorded_answers_in_either_layout() {
    let consolidated = recorded_answers("micro-ministral-tied").await;
    assert_eq!(recorded_answers("micro-ministral-tied-hf").await, consolidated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_resubmission_and_a_prefix_cache_change_no_bit_of_a_dense_model() {
    let dir = repository().join("tests/fixtures/micro-ministral-tied");
    let mut records = records_of("micro-ministral-tied");
    records.retain(|record| record.greedy.len() > 4);
    let mut whole = Cluster::start_with(&dir, &[("w1", 1)], 64, process::spawn_gpu).await;
    whole.assign(&replica(1, WHOLE)).await;
    let mut pieces = Cluster::start_with(&dir, &[("w1", 1), ("w2", 1)], 7, process::spawn_gpu).await;
    pieces.steps.prefix_cache = true;
    pieces.assign(&replica(1, TWO_STAGES)).await;
    for record in &records {
        let (prompt, limit) = (
            &record.prompt_ids,
            u32::try_from(record.greedy.len()).expect("short"),
        );
        let (tokens, _) = whole.generate(prompt, &[], with_top5(), limit).await;
        for time in 0..2 {
            let again = pieces.generate(prompt, &[], with_top5(), limit).await.0;
            assert_eq!(again, tokens, "time {time}");
        }
        if prompt.len() > 16 {
            assert!(pieces.cached_prompt_tokens > Some(0));
        }
        let emitted: Vec<u32> = tokens[..3].iter().map(|token| token.token).collect();
        let (rest, _) = pieces.generate(prompt, &emitted, with_top5(), limit).await;
        assert_eq!(rest, tokens[3..], "resubmitted");
    }
}
