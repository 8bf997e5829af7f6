//! Expanded rows of prompts: as recorded, and with equal bits however prompts are cut, placed, cached and computed again.

use tramontane_model::sampling::{SampledToken, SamplingParams};

use crate::cluster::{Cluster, replica};
use crate::golden::{Record, check_scores, records, with_top5};

const GROUP: u32 = 8;

/// The tokens and the prompt's scores of each record.
async fn run(cluster: &mut Cluster, records: &[Record]) -> Vec<(Vec<SampledToken>, Vec<SampledToken>)> {
    let sampling = SamplingParams {
        prompt_logprobs: Some(3),
        ..with_top5()
    };
    let mut answers = Vec::new();
    for record in records {
        let limit = u32::try_from(record.greedy.len()).expect("short");
        let (tokens, _) = cluster
            .generate(&record.prompt_ids, &[], sampling.clone(), limit)
            .await;
        answers.push((tokens, cluster.prompt_scores.clone()));
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expanded_prompts_give_what_is_recorded_with_equal_bits_in_pieces_from_a_cache_and_again() {
    let mut records = records(64, usize::MAX);
    records.retain(|record| record.prompt_ids.len() > 17);
    records.truncate(12);
    assert_eq!(records.len(), 12, "prompts of more than two groups");
    let whole = [(0, 6, "w1/0", [(16, "w1/0")].as_slice())];
    let mut cluster = Cluster::start(&[("w1", 1)], 64).await;
    cluster.assign(&replica(1, &whole)).await;
    let absorbed = run(&mut cluster, &records).await;
    cluster.steps.expanded_group = GROUP;
    cluster.assign(&replica(2, &whole)).await;
    let expanded = run(&mut cluster, &records).await;
    let mut scores = Vec::new();
    for (record, (tokens, scored)) in records.iter().zip(&expanded) {
        let tokens: Vec<u32> = tokens.iter().map(|token| token.token).collect();
        assert_eq!(tokens, record.greedy);
        scores.push(scored.clone());
    }
    check_scores(&records, &scores);
    assert_ne!(expanded, absorbed, "nothing was computed otherwise");
    cluster.until_idle().await;

    // Two stages, a group a step, and what a cache holds of the first time.
    let stages = [
        (0, 2, "w1/0", [(16, "w1/0")].as_slice()),
        (2, 6, "w1/1", [(16, "w1/1")].as_slice()),
    ];
    let mut pieces = Cluster::start(&[("w1", 2)], 9).await;
    (pieces.steps.expanded_group, pieces.steps.prefix_cache) = (GROUP, true);
    pieces.assign(&replica(1, &stages)).await;
    assert_eq!(run(&mut pieces, &records).await, expanded);
    for (record, (tokens, _)) in records.iter().zip(&expanded) {
        let limit = u32::try_from(record.greedy.len()).expect("short");
        let (again, _) = pieces.generate(&record.prompt_ids, &[], with_top5(), limit).await;
        assert_eq!(again, *tokens);
        assert!(
            pieces.cached_prompt_tokens >= Some(16),
            "nothing came from the cache"
        );
        // As after a loss.
        let half = tokens.len() / 2;
        let (rest, _) = pieces
            .generate(&record.prompt_ids, &record.greedy[..half], with_top5(), limit)
            .await;
        assert_eq!(rest, tokens[half..], "resubmitted after {half} tokens");
    }
    pieces.until_idle().await;
}
