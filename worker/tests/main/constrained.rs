//! Answers that are held to a grammar: what they are, and that they are the same alone, in a batch, in chunks, wherever
//! a sequence opens, and on one stage and on two.

use std::sync::LazyLock;

use tramontane_model::grammar::Grammar;
use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_model::tekken::Vocabulary;
use tramontane_proto::Ended;

use crate::batch::{Growing, executor, run};
use crate::choosing::{PROMPT, ids, two_stages};
use crate::cluster::{Cluster, replica, repository};

const EOS: u32 = 2;

static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let path = repository().join("cli/assets/mini-large-3/tekken.json");
    Vocabulary::load(&path, 8192).expect("the vocabulary")
});

/// The text of tokens, without an end token.
fn text(tokens: &[u32]) -> String {
    let tokens = tokens.strip_suffix(&[EOS]).unwrap_or(tokens);
    let bytes = tokens.iter().flat_map(|&token| {
        let rank = (token as usize).checked_sub(VOCABULARY.special.len());
        VOCABULARY.tokens[rank.expect("no special token")].iter().copied()
    });
    String::from_utf8(bytes.collect()).expect("whole characters")
}

fn held_to(grammar: &str) -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        seed: 3,
        grammar: Some(Grammar::new(grammar).expect("short")),
        logprobs: Some(3),
        ..SamplingParams::GREEDY
    }
}

const RECORD: &str = r#"start: %json {"type": "object", "properties": {"city": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"},
    "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 2, "maxItems": 3}},
    "required": ["city", "sizes"], "additionalProperties": false,
    "x-guidance": {"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}}
"#;

/// Whether this is a record as the schema above has them.
fn is_record(text: &str) -> bool {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(text) else {
        return false;
    };
    let city = value["city"].as_str().unwrap_or_default();
    let sizes = value["sizes"].as_array().map_or(&[][..], Vec::as_slice);
    let letters = city.char_indices().all(|(place, c)| match place {
        0 => c.is_ascii_uppercase(),
        _ => c.is_ascii_lowercase(),
    });
    letters
        && (3..=9).contains(&city.len())
        && (2..=3).contains(&sizes.len())
        && sizes
            .iter()
            .all(|size| size.as_u64().is_some_and(|size| size < 100))
        && value.as_object().is_some_and(|members| members.len() == 2)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_what_they_are_held_to() {
    let mut cluster = two_stages().await;
    for seed in 0..4 {
        let sampling = SamplingParams {
            seed,
            ..held_to(RECORD)
        };
        let (tokens, ended) = cluster.generate(&PROMPT, &[], sampling, 96).await;
        let answer = text(&ids(&tokens));
        assert_eq!(ended, Ended::Stop, "{answer}");
        assert!(is_record(&answer), "{answer}");
    }
    let plain = cluster.generate(&PROMPT, &[], greedy(), 1).await.0;
    // The model's own end comes before the grammar's, a bias brings nothing back, and min_tokens gives way at the end.
    let sampling = SamplingParams {
        logit_bias: vec![(EOS, 100.0), (4321, 100.0)],
        min_tokens: 40,
        held_back: vec![EOS],
        ..SamplingParams {
            temperature: 0.0,
            ..held_to("start: \"the sea\" | \"the river\"\n")
        }
    };
    let (tokens, ended) = cluster.generate(&PROMPT, &[], sampling, 50).await;
    assert_eq!(ended, Ended::Stop);
    assert!(
        ["the sea", "the river"].contains(&text(&ids(&tokens)).as_str()),
        "{tokens:?}"
    );
    assert_eq!(
        tokens[0].top, plain[0].top,
        "log-probabilities are the plain ones"
    );
    // A grammar that means nothing ends the request at once with an error of its own, and the cluster goes on.
    for grammar in ["start: missing\n", "start: /(a/\n"] {
        let (tokens, ended) = cluster.generate(&PROMPT, &[], held_to(grammar), 20).await;
        assert_eq!(tokens, [], "{grammar}");
        assert!(
            matches!(&ended, Ended::Grammar(why) if !why.is_empty()),
            "{grammar}: {ended:?}"
        );
    }
    let again = cluster.generate(&PROMPT, &[], greedy(), 1).await.0;
    assert_eq!(again, plain);
    cluster.until_idle().await;
}

fn greedy() -> SamplingParams {
    SamplingParams {
        logprobs: Some(3),
        ..SamplingParams::GREEDY
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_the_same_on_one_stage_on_two_and_resubmitted() {
    let mut two = two_stages().await;
    let mut one = Cluster::start(&[("w1", 1)], 64).await;
    one.assign(&replica(1, &[(0, 6, "w1/0", &[(16, "w1/0")])])).await;
    for sampling in [
        held_to(RECORD),
        SamplingParams {
            frequency_penalty: 1.0,
            min_tokens: 30,
            held_back: vec![EOS],
            ..held_to("start: /([a-z]+ )+[0-9]{2}/\n")
        },
    ] {
        let whole = two.generate(&PROMPT, &[], sampling.clone(), 48).await.0;
        assert!(whole.len() > 8, "{}", text(&ids(&whole)));
        assert_eq!(
            one.generate(&PROMPT, &[], sampling.clone(), 48).await.0,
            whole,
            "on one stage"
        );
        let emitted = ids(&whole);
        for already in [1, whole.len() / 2, whole.len() - 1] {
            let rest = two
                .generate(&PROMPT, &emitted[..already], sampling.clone(), 48)
                .await
                .0;
            assert_eq!(rest, whole[already..], "resubmitted after {already} tokens");
        }
    }
    two.until_idle().await;
    one.until_idle().await;
}

#[test]
fn an_answer_is_the_same_alone_in_a_batch_and_wherever_a_sequence_opens() {
    const TOKENS: usize = 14;
    let mut executor = executor();
    let new = |sequence: u64| {
        let sampling = match sequence {
            0 => held_to(RECORD),
            1 => SamplingParams::GREEDY,
            2 => SamplingParams {
                repetition_penalty: 1.3,
                logit_bias: vec![(1500, 3.0)],
                ..held_to("start: /[a-z ]+(, [a-z]+)*/\n")
            },
            _ => SamplingParams {
                seed: sequence,
                ..held_to(RECORD)
            },
        };
        let prompt = (0..6 + 5 * sequence as u32).map(|i| 400 + 31 * sequence as u32 + 11 * (i % 7));
        Growing::new(sequence, sampling, prompt.collect())
    };
    let mut alone: Vec<Vec<SampledToken>> = Vec::new();
    for sequence in 0..5 {
        let mut one = new(sequence);
        let found = (0..TOKENS).map(|generated| {
            let chunk = one.chunk(64, generated == 0);
            let sampled = run(&mut executor, vec![chunk]).remove(0);
            one.tokens.push(sampled.token);
            sampled
        });
        alone.push(found.collect());
    }
    assert_ne!(alone[3], alone[4]);
    let mut all: Vec<Growing> = (0..5).map(new).collect();
    for generated in 0..TOKENS {
        let chunks = all.iter_mut().map(|one| one.chunk(64, generated == 0)).collect();
        for ((one, sampled), alone) in all.iter_mut().zip(run(&mut executor, chunks)).zip(&alone) {
            assert_eq!(sampled, alone[generated], "token {generated} in a batch");
            one.tokens.push(sampled.token);
        }
    }
    // Each opens anew at some place of its prompt or its answer, and goes on in chunks.
    for (one, alone) in all.iter_mut().zip(&alone) {
        for start in [1, one.prompt, one.prompt + 4] {
            one.done = start;
            let rows = if start < one.prompt { one.prompt } else { 3 };
            let chunk = one.chunk(rows, true);
            let sampled = run(&mut executor, vec![chunk]).remove(0);
            assert_eq!(sampled, alone[one.done - one.prompt], "opened at {start}");
            let before = one.done;
            let chunk = one.chunk(3, false);
            // Twice, as when a step is run again.
            let sampled = run(&mut executor, vec![chunk.clone()]).remove(0);
            assert_eq!(
                sampled,
                alone[before + 3 - one.prompt],
                "opened at {start}, then went on"
            );
            assert_eq!(run(&mut executor, vec![chunk]).remove(0), sampled, "run again");
        }
        // A token that was not the expected one.
        let chunk = one.chunk(1, false);
        let expected = run(&mut executor, vec![chunk.clone()]).remove(0);
        let mut other = chunk.clone();
        other.tokens = vec![one.tokens[one.prompt]];
        run(&mut executor, vec![other]);
        assert_eq!(run(&mut executor, vec![chunk]).remove(0), expected);
    }
}
