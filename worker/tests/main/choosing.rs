//! How tokens are chosen, through whole workers: what each parameter does, and that it does it again.

use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_proto::Ended;

use crate::cluster::{Cluster, replica};

/// "Tell me the capital of Vietnam.", as recorded.
pub(crate) const PROMPT: [u32; 13] = [
    1, 1084, 1522, 1639, 1278, 2735, 3235, 1307, 1581, 3293, 1110, 1325, 1046,
];
const EOS: u32 = 2;

pub(crate) fn ids(tokens: &[SampledToken]) -> Vec<u32> {
    tokens.iter().map(|token| token.token).collect()
}

/// Two stages on two workers, prompts in chunks of 5: what the sampler needs goes over the wire.
pub(crate) async fn two_stages() -> Cluster {
    let mut cluster = Cluster::start(&[("w1", 1), ("w2", 1)], 5).await;
    let stages = [
        (0, 3, "w1/0", [(16, "w1/0")].as_slice()),
        (3, 6, "w2/0", [(16, "w2/0")].as_slice()),
    ];
    cluster.assign(&replica(1, &stages)).await;
    cluster
}

fn greedy() -> SamplingParams {
    SamplingParams {
        logprobs: Some(5),
        ..SamplingParams::GREEDY
    }
}

/// Greedy, and goes on for so many tokens at least.
fn greedy_for(min_tokens: u32) -> SamplingParams {
    SamplingParams {
        min_tokens,
        held_back: vec![EOS],
        ..greedy()
    }
}

fn repeats(tokens: &[SampledToken]) -> usize {
    let mut distinct = ids(tokens);
    distinct.sort_unstable();
    distinct.dedup();
    tokens.len() - distinct.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_parameter_does_what_it_says() {
    let mut cluster = two_stages().await;
    let (plain, ended) = cluster.generate(&PROMPT, &[], greedy(), 64).await;
    assert_eq!(
        (plain.last().map(|token| token.token), ended),
        (Some(EOS), Ended::Stop)
    );
    let natural = plain.len() as u32;

    for narrowed in [
        SamplingParams { top_k: 1, ..greedy() },
        SamplingParams {
            min_p: 1.0,
            ..greedy()
        },
    ] {
        let hot = SamplingParams {
            temperature: 2.0,
            seed: 3,
            ..narrowed
        };
        let found = cluster.generate(&PROMPT, &[], hot, 64).await.0;
        assert_eq!(found, plain, "one token is left");
    }

    let first = plain[0].token;
    let banned = SamplingParams {
        logit_bias: vec![(first, -100.0)],
        ..greedy()
    };
    let found = cluster.generate(&PROMPT, &[], banned, 8).await.0;
    assert!(!ids(&found).contains(&first));
    assert_eq!(found[0].token, plain[0].top[1].0, "the second best");
    assert_eq!(found[0].top, plain[0].top, "log-probabilities are the plain ones");
    assert_eq!(found[0].logprob, plain[0].top[1].1);

    let forced = SamplingParams {
        temperature: 1.0,
        logit_bias: vec![(4321, 100.0)],
        ..greedy()
    };
    let found = cluster.generate(&PROMPT, &[], forced, 6).await.0;
    assert_eq!(ids(&found), [4321; 6]);
    assert!(found[0].logprob < -5.0, "{}", found[0].logprob);

    let later = cluster
        .generate(&PROMPT, &[], greedy_for(natural + 5), 64)
        .await
        .0;
    assert_eq!(later[..plain.len() - 1], plain[..plain.len() - 1]);
    let end = ids(&later).iter().position(|&id| id == EOS);
    assert!(end.is_none_or(|end| end as u32 >= natural + 5), "{end:?}");
    let same = cluster
        .generate(&PROMPT, &[], greedy_for(natural - 1), 64)
        .await
        .0;
    assert_eq!(same, plain, "as many as there are anyway");
    cluster.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn penalties_act_on_tokens_that_were_there_before() {
    let mut cluster = two_stages().await;
    let long = cluster.generate(&PROMPT, &[], greedy_for(60), 60).await.0;
    assert!(repeats(&long) > 5, "{:?}", ids(&long));
    for penalised in [
        SamplingParams {
            frequency_penalty: 2.0,
            ..greedy_for(60)
        },
        SamplingParams {
            presence_penalty: 2.0,
            ..greedy_for(60)
        },
        SamplingParams {
            repetition_penalty: 1.5,
            ..greedy_for(60)
        },
    ] {
        let found = cluster.generate(&PROMPT, &[], penalised.clone(), 60).await.0;
        let (found, long) = (ids(&found), ids(&long));
        let pairs = found.iter().zip(&long);
        let place = pairs.take_while(|(found, long)| found == long).count();
        let before = [&PROMPT, &long[..place]].concat();
        assert!(
            place < long.len() && before.contains(&long[place]),
            "{penalised:?}: {found:?}, without {long:?}"
        );
    }
    let rare = SamplingParams {
        frequency_penalty: 2.0,
        ..greedy_for(60)
    };
    let found = cluster.generate(&PROMPT, &[], rare, 60).await.0;
    assert!(repeats(&found) < repeats(&long), "{:?}", ids(&found));
    let repelled = SamplingParams {
        repetition_penalty: 100.0,
        ..greedy_for(20)
    };
    let found = cluster.generate(&PROMPT, &[], repelled, 20).await.0;
    assert_eq!(repeats(&found), 0, "{:?}", ids(&found));
    assert!(
        ids(&found).iter().all(|id| !PROMPT.contains(id)),
        "the prompt counts"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn penalties_go_on_where_a_resubmission_begins() {
    let mut cluster = two_stages().await;
    let sampling = SamplingParams {
        temperature: 1.0,
        top_k: 200,
        top_p: 0.95,
        min_p: 0.001,
        presence_penalty: 0.75,
        frequency_penalty: 1.5,
        repetition_penalty: 1.3,
        logit_bias: vec![(1278, 4.0), (1307, 4.0), (2735, 4.0)],
        min_tokens: 25,
        held_back: vec![EOS],
        seed: 11,
        logprobs: Some(3),
        ..SamplingParams::GREEDY
    };
    let whole = cluster.generate(&PROMPT, &[], sampling.clone(), 30).await.0;
    let free = SamplingParams {
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        repetition_penalty: 1.0,
        ..sampling.clone()
    };
    assert_ne!(
        cluster.generate(&PROMPT, &[], free, 30).await.0,
        whole,
        "penalties matter"
    );
    let again = cluster.generate(&PROMPT, &[], sampling.clone(), 30).await.0;
    assert_eq!(again, whole);
    let emitted = ids(&whole);
    for already in [1, 15, whole.len() - 1] {
        let rest = cluster
            .generate(&PROMPT, &emitted[..already], sampling.clone(), 30)
            .await
            .0;
        assert_eq!(rest, whole[already..], "resubmitted after {already} tokens");
    }
    cluster.until_idle().await;
}
