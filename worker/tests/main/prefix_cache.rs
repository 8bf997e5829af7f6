//! DET-1: what a prefix cache holds is what would be computed again, on or off, bit for bit.

use crate::cluster::{Cluster, replica};
use crate::golden::{records, with_top5};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_from_the_cache_gives_the_same_bits() {
    let mut records = records(64, usize::MAX);
    records.retain(|record| record.prompt_ids.len() > 17);
    records.truncate(3);
    assert_eq!(records.len(), 3, "prompts longer than a block");
    let stages = [
        (0, 3, "w1/0", [(16, "w1/0")].as_slice()),
        (3, 6, "w1/1", [(16, "w1/1")].as_slice()),
    ];
    // Chunks so small that several of one prompt are in flight.
    let mut cluster = Cluster::start(&[("w1", 2)], 7).await;
    cluster.assign(&replica(1, &stages)).await;
    let mut plain = Vec::new();
    for record in &records {
        let limit = u32::try_from(record.greedy.len()).expect("short");
        let (tokens, _) = cluster
            .generate(&record.prompt_ids, &[], with_top5(), limit)
            .await;
        let ids: Vec<u32> = tokens.iter().map(|token| token.token).collect();
        assert_eq!(ids, record.greedy);
        assert_eq!(cluster.cached_prompt_tokens, Some(0));
        plain.push(tokens);
    }
    cluster.steps.prefix_cache = true;
    cluster.assign(&replica(2, &stages)).await;
    for (record, plain) in records.iter().zip(&plain) {
        let limit = u32::try_from(record.greedy.len()).expect("short");
        let full = u32::try_from((record.prompt_ids.len() - 1) / 16 * 16).expect("short");
        for again in 0..2 {
            let (tokens, _) = cluster
                .generate(&record.prompt_ids, &[], with_top5(), limit)
                .await;
            assert_eq!(tokens, *plain, "time {again}");
            if again > 0 {
                assert_eq!(cluster.cached_prompt_tokens, Some(full));
            }
        }
        // As after a loss: what was emitted is found as generated rows.
        let half = plain.len() / 2;
        let emitted = &record.greedy[..half];
        let (rest, _) = cluster
            .generate(&record.prompt_ids, emitted, with_top5(), limit)
            .await;
        assert_eq!(rest, plain[half..], "resubmitted after {half} tokens");
        // The next turn gives the same tokens as prompt: other keys and values than those of generated rows.
        let turn = [&record.prompt_ids[..], emitted].concat();
        let first = cluster.generate(&turn, &[], with_top5(), 3).await;
        let second = cluster.generate(&turn, &[], with_top5(), 3).await;
        assert_eq!(first, second);
        assert!(cluster.cached_prompt_tokens >= Some(full));
    }
    cluster.until_idle().await;
}
