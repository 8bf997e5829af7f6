//! Recorded tokens and log-probabilities, and equal bits whatever the placement.

use serde::Deserialize;
use tramontane_model::placement::KvFormat;
use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_proto::Ended;

use crate::cluster::{Cluster, StagePlan, replica, repository};

/// One line of `golden.jsonl`: what an independent implementation computed.
#[derive(Deserialize)]
pub(crate) struct Record {
    pub(crate) prompt_ids: Vec<u32>,
    pub(crate) greedy: Vec<u32>,
    prompt_logprobs: Vec<Option<f64>>,
    /// None where the model is dense.
    prompt_router_gap: Option<Vec<Option<f64>>>,
    router_gap: Option<Vec<Option<f64>>>,
    top5: Vec<Vec<(u32, f64)>>,
}

/// Whether the router was so near to another expert that rounding may rightly choose it.
fn is_exempt(gaps: Option<&Vec<Option<f64>>>, at: usize) -> bool {
    let gap = gaps.and_then(|gaps| gaps.get(at).copied().flatten());
    gap.is_some_and(|gap| gap < 1e-3)
}

/// All records of a fixture.
pub(crate) fn records_of(fixture: &str) -> Vec<Record> {
    let path = repository()
        .join("tests/fixtures")
        .join(fixture)
        .join("golden.jsonl");
    let text = std::fs::read_to_string(path).expect("the fixture");
    let all = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a record"));
    all.collect()
}

/// The first so many of the miniature with prompts of at most so many tokens that generate something.
pub(crate) fn records(most_prompt_tokens: usize, count: usize) -> Vec<Record> {
    let all = records_of("mini-large-3").into_iter();
    all.filter(|record| record.prompt_ids.len() <= most_prompt_tokens && !record.greedy.is_empty())
        .take(count)
        .collect()
}

pub(crate) fn with_top5() -> SamplingParams {
    SamplingParams {
        logprobs: Some(5),
        ..SamplingParams::GREEDY
    }
}

async fn run(cluster: &mut Cluster, records: &[Record]) -> Vec<Vec<SampledToken>> {
    let mut outputs = Vec::new();
    for record in records {
        let limit = u32::try_from(record.greedy.len()).expect("short");
        let (tokens, _) = cluster
            .generate(&record.prompt_ids, &[], with_top5(), limit)
            .await;
        outputs.push(tokens);
    }
    cluster.until_idle().await;
    outputs
}

/// How outputs differ from the records.
#[derive(Debug, Default)]
struct Compared {
    /// Records whose tokens are all as recorded.
    equal: usize,
    /// Steps up to each record's first token that is not, but for those at which the router was near to another expert; and
    /// those of them in which one of the best five is off.
    steps: usize,
    steps_off: usize,
    /// The best five of these steps, and those of them whose log-probability is off by more than 0.02.
    values: usize,
    values_off: usize,
}

fn compare(records: &[Record], outputs: &[Vec<SampledToken>]) -> Compared {
    let mut compared = Compared::default();
    for (record, output) in records.iter().zip(outputs) {
        let same = output.iter().zip(&record.greedy);
        let same = same
            .take_while(|(token, recorded)| token.token == **recorded)
            .count();
        compared.equal += usize::from(output.len() == same && record.greedy.len() == same);
        for (step, token) in output.iter().enumerate().take(same + 1) {
            if is_exempt(record.router_gap.as_ref(), step) {
                continue;
            }
            let near = |(id, recorded): &&(u32, f64)| {
                let found = token.top.iter().find(|(other, _)| other == id);
                found.is_some_and(|(_, logprob)| (f64::from(*logprob) - recorded).abs() <= 0.02)
            };
            let best = &record.top5[step];
            let off = best.len() - best.iter().filter(near).count();
            compared.steps += 1;
            compared.steps_off += usize::from(off > 0);
            compared.values += best.len();
            compared.values_off += off;
        }
    }
    assert!(compared.steps > 50, "{compared:?}");
    compared
}

/// Greedy tokens equal; log-probabilities of the recorded best five within 0.02 for 99 % of the steps.
pub(crate) fn check_against(records: &[Record], outputs: &[Vec<SampledToken>]) {
    for (record, output) in records.iter().zip(outputs) {
        let tokens: Vec<u32> = output.iter().map(|token| token.token).collect();
        assert_eq!(tokens, record.greedy);
    }
    let compared = compare(records, outputs);
    assert!(compared.steps_off * 100 <= compared.steps, "{compared:?}");
}

/// As [`check_against`] with a coarser cache: the tokens of 95 % of the records, and 99 % of the log-probabilities.
fn check_nearly(records: &[Record], outputs: &[Vec<SampledToken>]) {
    let compared = compare(records, outputs);
    println!("{compared:?}");
    assert!(compared.equal * 100 >= records.len() * 95, "{compared:?}");
    assert!(compared.values_off * 100 <= compared.values, "{compared:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stages_with_remote_experts_give_the_recorded_tokens_and_the_bits_of_one_worker() {
    // Prompts beyond the lengths at which the rotary scaling and the query scaling set in.
    let all = records(600, usize::MAX);
    assert!(all.iter().any(|record| record.prompt_ids.len() > 256));
    let records = records(24, 8);
    let workers = [("w1", 1), ("w2", 1), ("w3", 1), ("w4", 1)];
    let mut cluster = Cluster::start(&workers, 64).await;
    cluster
        .assign(&replica(1, &[(0, 6, "w1/0", &[(16, "w1/0")])]))
        .await;
    check_against(&all, &run(&mut cluster, &all).await);
    let alone = run(&mut cluster, &records).await;
    let spread = replica(
        2,
        &[
            (0, 3, "w1/0", &[(8, "w1/0"), (16, "w2/0")]),
            (3, 6, "w3/0", &[(8, "w3/0"), (16, "w4/0")]),
        ],
    );
    cluster.assign(&spread).await;
    assert_eq!(
        run(&mut cluster, &records).await,
        alone,
        "2 stages with 2 groups each"
    );
    let crossed = replica(
        3,
        &[
            (0, 2, "w2/0", &[(4, "w2/0"), (16, "w3/0")]),
            (2, 6, "w3/0", &[(12, "w3/0"), (16, "w2/0")]),
        ],
    );
    cluster.assign(&crossed).await;
    assert_eq!(
        run(&mut cluster, &records).await,
        alone,
        "owners that hold a group of each other's stage"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_of_f16_gives_nearly_all_recorded_tokens_and_equal_bits_on_two_stages() {
    let all = records(600, usize::MAX);
    let few = records(24, 8);
    let mut cluster = Cluster::start(&[("w1", 1), ("w2", 1)], 64).await;
    let placed = |generation, stages: &[StagePlan<'_>], format| {
        let mut replica = replica(generation, stages);
        replica.kv.format = format;
        replica
    };
    let whole: &[StagePlan<'_>] = &[(0, 6, "w1/0", &[(16, "w1/0")])];
    cluster.assign(&placed(1, whole, KvFormat::F32)).await;
    let as_f32 = run(&mut cluster, &few).await;
    // The same device, another format.
    cluster.assign(&placed(2, whole, KvFormat::F16)).await;
    let as_f16 = run(&mut cluster, &few).await;
    assert_ne!(as_f16, as_f32, "the format changes nothing");
    let outputs = run(&mut cluster, &all).await;
    check_nearly(&all, &outputs);
    let halves: &[StagePlan<'_>] = &[
        (0, 3, "w1/0", &[(8, "w1/0"), (16, "w2/0")]),
        (3, 6, "w2/0", &[(16, "w2/0")]),
    ];
    cluster.assign(&placed(3, halves, KvFormat::F16)).await;
    assert_eq!(
        run(&mut cluster, &few).await,
        as_f16,
        "2 stages, one with 2 groups"
    );
    cluster.assign(&placed(4, whole, KvFormat::F32)).await;
    assert_eq!(run(&mut cluster, &few).await, as_f32, "as f32 again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_devices_and_resubmission_change_no_bit() {
    let records = records(24, 4);
    let mut cluster = Cluster::start(&[("w1", 3)], 5).await;
    let stages = [
        (0, 1, "w1/0", [].as_slice()),
        (1, 3, "w1/1", [(16, "w1/1")].as_slice()),
        (3, 6, "w1/2", [(16, "w1/2")].as_slice()),
    ];
    cluster.assign(&replica(1, &stages)).await;
    let chunked = run(&mut cluster, &records).await;
    for (record, output) in records.iter().zip(&chunked) {
        let tokens: Vec<u32> = output.iter().map(|token| token.token).collect();
        assert_eq!(tokens, record.greedy);
        // As a gateway does after a loss: what was emitted goes in again, as generated rows.
        let limit = u32::try_from(tokens.len()).expect("short");
        let half = tokens.len() / 2;
        let (rest, _) = cluster
            .generate(&record.prompt_ids, &tokens[..half], with_top5(), limit)
            .await;
        assert_eq!(rest, output[half..], "resubmitted after {half} tokens");
    }
    let mut whole = Cluster::start(&[("w1", 1)], 64).await;
    whole
        .assign(&replica(1, &[(0, 6, "w1/0", &[(16, "w1/0")])]))
        .await;
    assert_eq!(
        run(&mut whole, &records).await,
        chunked,
        "whole prompts on one device"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sampling_depends_on_the_seed_alone() {
    let record = &records(24, 1)[0];
    let mut cluster = Cluster::start(&[("w1", 1)], 64).await;
    cluster
        .assign(&replica(1, &[(0, 6, "w1/0", &[(16, "w1/0")])]))
        .await;
    let seeded = |seed| SamplingParams {
        temperature: 2.0,
        seed,
        ..SamplingParams::GREEDY
    };
    let first = cluster.generate(&record.prompt_ids, &[], seeded(7), 12).await;
    assert_eq!(
        cluster.generate(&record.prompt_ids, &[], seeded(7), 12).await,
        first
    );
    let others = [8, 9, 10];
    let mut differs = false;
    for seed in others {
        differs |= cluster
            .generate(&record.prompt_ids, &[], seeded(seed), 12)
            .await
            .0
            != first.0;
    }
    assert!(differs, "seeds change nothing");
    let (tokens, ended) = cluster
        .generate(&record.prompt_ids, &[], SamplingParams::GREEDY, 64)
        .await;
    assert_eq!(
        (tokens.last().map(|token| token.token), ended),
        (Some(2), Ended::Stop)
    );
}

/// Log-probabilities of the prompts within 0.02 of the recorded ones for 99 % of the tokens. A token's is told by the row
/// before it: by that row's gap it is exempt.
pub(crate) fn check_scores(records: &[Record], scores: &[Vec<SampledToken>]) {
    let (mut tokens, mut off) = (0, 0);
    for (record, scores) in records.iter().zip(scores) {
        let ids: Vec<u32> = scores.iter().map(|scored| scored.token).collect();
        assert_eq!(ids, record.prompt_ids[1..]);
        for (at, scored) in scores.iter().enumerate() {
            assert!(scored.top.len() >= 3);
            assert!(scored.top.is_sorted_by(|one, next| one.1 >= next.1));
            if is_exempt(record.prompt_router_gap.as_ref(), at) {
                continue;
            }
            let recorded = record.prompt_logprobs[at + 1].expect("all but the first");
            tokens += 1;
            off += u32::from((f64::from(scored.logprob) - recorded).abs() > 0.02);
        }
    }
    assert!(tokens > 250, "only {tokens} tokens were compared");
    assert!(
        off * 100 <= tokens,
        "{off} of {tokens} tokens differ by more than 0.02"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_are_scored_as_recorded_and_with_equal_bits_in_pieces_and_beside_a_cache() {
    let records = records(64, 16);
    let scoring = SamplingParams {
        prompt_logprobs: Some(3),
        ..with_top5()
    };
    let mut whole = Cluster::start(&[("w1", 1)], 64).await;
    whole
        .assign(&replica(1, &[(0, 6, "w1/0", &[(16, "w1/0")])]))
        .await;
    let mut scores = Vec::new();
    for record in &records {
        let (plain, _) = whole.generate(&record.prompt_ids, &[], with_top5(), 2).await;
        assert_eq!(whole.prompt_scores, []);
        let (tokens, _) = whole.generate(&record.prompt_ids, &[], scoring.clone(), 2).await;
        assert_eq!(tokens, plain);
        scores.push(whole.prompt_scores.clone());
    }
    check_scores(&records, &scores);
    let mut pieces = Cluster::start(&[("w1", 2)], 7).await;
    pieces.steps.prefix_cache = true;
    let stages = [
        (0, 2, "w1/0", [(16, "w1/0")].as_slice()),
        (2, 6, "w1/1", [(16, "w1/1")].as_slice()),
    ];
    pieces.assign(&replica(1, &stages)).await;
    for (record, scores) in records.iter().zip(&scores).take(6) {
        for _ in 0..2 {
            pieces.generate(&record.prompt_ids, &[], scoring.clone(), 2).await;
            assert_eq!(pieces.prompt_scores, *scores);
            assert_eq!(pieces.cached_prompt_tokens, Some(0));
        }
    }
    pieces.until_idle().await;
}
