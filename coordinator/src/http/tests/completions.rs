//! `/v1/completions`.

use super::*;
use crate::gateway::scripted::{CACHED_PROMPT_TOKENS, sampled};

fn body(choices: Value, usage: Value) -> Value {
    json!({
        "id": "ID",
        "object": "text_completion",
        "created": 0,
        "model": MODEL,
        "choices": choices,
        "usage": usage,
    })
}

fn usage(prompt: u64, completion: u64) -> Value {
    usage_with(prompt, CACHED_PROMPT_TOKENS.into(), completion)
}

fn usage_with(prompt: u64, cached: u64, completion: u64) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}

#[tokio::test]
async fn a_text_prompt_is_continued() {
    let world = world();
    let reply = world
        .complete(json!({"prompt": "Tell me the capital of Vietnam."}))
        .await;
    let choice = json!({"index": 0, "text": ANSWER_TEXT, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(reply.normal("cmpl-"), body(json!([choice]), usage(13, 14)));

    let (_, sent) = &world.heads.seen()[0];
    assert_eq!(sent.prompt, [&[1], &QUESTION[..]].concat());
    assert_eq!(
        (sent.max_tokens, sent.stop_tokens.as_slice(), sent.ignore_eos),
        (16, &[2][..], false)
    );
    assert_eq!((sent.sampling.temperature, sent.sampling.top_p), (1.0, 1.0));
    assert_eq!((sent.sampling.choice, sent.sampling.logprobs), (0, None));
    assert_eq!(sent.request.to_string(), reply.request_id());
}

#[tokio::test]
async fn token_ids_are_taken_as_they_are() {
    let world = world();
    let fields = json!({
        "prompt": QUESTION,
        "max_tokens": 3,
        "temperature": 0,
        "top_p": 0.25,
        "seed": -1,
        "user": "someone",
        "metadata": {"a": "1"},
    });
    let reply = world.complete(fields).await;
    let choice = json!({"index": 0, "text": "The capital", "logprobs": null, "finish_reason": "length"});
    assert_eq!(reply.normal("cmpl-"), body(json!([choice]), usage(12, 3)));
    let (_, sent) = &world.heads.seen()[0];
    assert_eq!((sent.prompt.as_slice(), sent.max_tokens), (&QUESTION[..], 3));
    assert_eq!((sent.sampling.temperature, sent.sampling.top_p), (0.0, 0.25));
    assert_eq!(sent.sampling.seed, u64::MAX);
}

#[tokio::test]
async fn how_tokens_are_chosen_reaches_the_head() {
    let world = world();
    let fields = json!({
        "prompt": QUESTION,
        "max_completion_tokens": 9,
        "top_k": 40,
        "min_p": 0.05,
        "presence_penalty": -0.5,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.25,
        "logit_bias": {"900": -100, "31": 2.5},
        "min_tokens": 4,
        "stop_token_ids": [77, 5],
    });
    world.complete(fields.clone()).await;
    let mut ignoring = fields;
    ignoring["ignore_eos"] = json!(true);
    world.complete(ignoring).await;
    let seen = world.heads.seen();
    for ((_, sent), stop_tokens) in seen.iter().zip([&[2, 5, 77][..], &[5, 77]]) {
        let expected = SamplingParams {
            temperature: 1.0,
            top_k: 40,
            min_p: 0.05,
            presence_penalty: -0.5,
            frequency_penalty: 1.5,
            repetition_penalty: 1.25,
            logit_bias: vec![(31, 2.5), (900, -100.0)],
            min_tokens: 4,
            held_back: vec![2, 5, 77],
            seed: sent.sampling.seed,
            ..SamplingParams::GREEDY
        };
        assert_eq!(sent.sampling, expected);
        assert_eq!((sent.max_tokens, sent.ignore_eos), (9, false));
        assert_eq!(sent.stop_tokens, stop_tokens);
    }
}

#[tokio::test]
async fn each_prompt_is_a_choice() {
    // What follows a prompt is its own last token, once for each of its tokens.
    let script: Script = Arc::new(|prompt| {
        let last = prompt.last().copied().unwrap();
        prompt
            .iter()
            .map(|_| crate::gateway::scripted::sampled(last))
            .collect()
    });
    let world = Setup {
        script,
        ..Setup::default()
    }
    .build();
    let reply = world
        .complete(json!({"prompt": [[2735], [5, 1784], [1325, 6, 1307]], "seed": 7}))
        .await;
    let choice =
        |index, text| json!({"index": index, "text": text, "logprobs": null, "finish_reason": "length"});
    let choices = json!([choice(0, " cap"), choice(1, "TheThe"), choice(2, " of of of")]);
    assert_eq!(reply.normal("cmpl-"), body(choices, usage_with(6, 5, 6)));
    let seen = world.heads.seen();
    assert!(
        seen.iter()
            .all(|(_, sent)| (sent.sampling.seed, sent.sampling.choice) == (7, 0))
    );

    let texts = world
        .complete(json!({"prompt": ["Tell me", ""], "max_tokens": 1}))
        .await
        .json();
    // `<s>` and three tokens, `<s>` alone.
    assert_eq!(texts["usage"], usage_with(5, 3, 2));
    assert_eq!(texts["choices"][1]["text"], "");
}

#[tokio::test]
async fn log_probabilities_are_shown_by_text_or_id() {
    let tokens = [(1784, -0.1), (2735, -12.5), (2, f32::NEG_INFINITY)];
    let sampled = tokens.map(|(token, logprob)| SampledToken {
        token,
        logprob,
        top: vec![(1784, -0.1), (3453, -1e-5)],
    });
    let world = sampling(sampled.to_vec());
    let by_text = world.complete(json!({"prompt": [7], "logprobs": 2})).await;
    let first = json!({"The": -0.1, "La": -1e-5});
    assert_eq!(
        by_text.json()["choices"][0]["logprobs"],
        json!({
            "tokens": ["The", " cap", "</s>"],
            "token_logprobs": [-0.1, -12.5, -9999.0],
            "top_logprobs": [
                first,
                {"The": -0.1, "La": -1e-5, " cap": -12.5},
                {"The": -0.1, "La": -1e-5, "</s>": -9999.0},
            ],
            "text_offset": [0, 3, 7],
        })
    );
    assert_eq!(world.heads.seen()[0].1.sampling.logprobs, Some(2));

    let fields = json!({"prompt": [7], "logprobs": 0, "return_tokens_as_token_ids": true});
    let by_id = world.complete(fields).await.json();
    let logprobs = &by_id["choices"][0]["logprobs"];
    assert_eq!(
        logprobs["tokens"],
        json!(["token_id:1784", "token_id:2735", "token_id:2"])
    );
    assert_eq!(
        logprobs["top_logprobs"][0],
        json!({"token_id:1784": -0.1, "token_id:3453": -1e-5})
    );
    assert_eq!(world.heads.seen()[1].1.sampling.logprobs, Some(0));
}

#[tokio::test]
async fn log_probabilities_keep_every_bit() {
    // Every exponent that a log-probability can have, with mantissas drawn by a fixed recurrence.
    let mut state = 1u32;
    let values: Vec<f32> = (0..400)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            -f32::from_bits((state >> 1) % 1_170_000_000)
        })
        .collect();
    let tokens = values.iter().map(|&logprob| SampledToken {
        token: 1784,
        logprob,
        top: vec![],
    });
    let world = sampling(tokens.collect());
    let reply = world
        .complete(json!({"prompt": [7], "logprobs": 1, "max_tokens": 400}))
        .await;
    let shown = reply.json()["choices"][0]["logprobs"]["token_logprobs"].clone();
    let read: Vec<f32> = serde_json::from_value(shown).unwrap();
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&read), bits(&values));
    let text = std::str::from_utf8(&reply.body).unwrap();
    assert!(
        !text.contains("00000000"),
        "a value was widened before it was written"
    );
}

#[tokio::test]
async fn a_stream_shows_the_same_text() {
    let world = saying(&[1784, 2735, 2]);
    let fields = json!({
        "prompt": [7],
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let reply = world.complete(fields).await;
    let chunk = |text, finish: Option<&str>| {
        let choice = json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish});
        body(json!([choice]), json!(null))
    };
    let expected = [
        chunk("The", None),
        chunk(" cap", None),
        chunk("", Some("stop")),
        body(json!([]), usage_with(1, 1, 3)),
    ];
    assert_eq!(reply.chunks("cmpl-"), expected);

    let plain = world.complete(json!({"prompt": [7], "stream": true})).await;
    assert!(
        plain
            .chunks("cmpl-")
            .iter()
            .all(|chunk| chunk.get("usage").is_none())
    );
    assert_eq!(plain.headers["x-accel-buffering"], "no");
}

#[tokio::test]
async fn a_stream_of_several_prompts_tells_them_apart() {
    let world = world();
    let fields = json!({"prompt": ["a", "b", "c"], "stream": true, "logprobs": 1});
    let reply = world.complete(fields).await;
    let mut texts = vec![String::new(); 3];
    let mut tokens = vec![0; 3];
    let mut finished = vec![0; 3];
    for chunk in reply.chunks("cmpl-") {
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts[index].push_str(choice["text"].as_str().unwrap());
        tokens[index] += choice["logprobs"]["tokens"].as_array().map_or(0, Vec::len);
        finished[index] += usize::from(choice["finish_reason"] == "stop");
    }
    assert_eq!(texts, [ANSWER_TEXT; 3]);
    assert_eq!((tokens, finished), (vec![14; 3], vec![1; 3]));
}

#[tokio::test]
async fn a_stop_string_ends_the_text_across_token_borders() {
    let world = world();
    for (stop, text, tokens) in [
        (json!("m is Ha"), "The capital of Vietna", 11),
        (json!(["zzz", "capital"]), "The ", 3),
        (json!("Hanoi.?"), ANSWER_TEXT, 14),
        (json!([]), ANSWER_TEXT, 14),
        (json!(null), ANSWER_TEXT, 14),
    ] {
        let fields = json!({"prompt": [7], "stop": stop});
        let whole = world.complete(fields.clone()).await.json();
        assert_eq!(whole["choices"][0]["text"], text, "{stop}");
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        assert_eq!(whole["usage"]["completion_tokens"], tokens, "{stop}");

        let mut streaming = fields;
        streaming["stream"] = json!(true);
        let chunks = world.complete(streaming).await.chunks("cmpl-");
        let pieces = chunks
            .iter()
            .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap());
        assert_eq!(pieces.collect::<String>(), text);
    }
    world.all_closed().await;
}

#[tokio::test]
async fn a_stop_string_cancels_what_the_head_still_makes() {
    let world = Setup {
        acts: vec![Act::HangAfter(3)],
        ..Setup::default()
    }
    .build();
    let reply = world
        .complete(json!({"prompt": [7], "stop": "capital"}))
        .await
        .json();
    assert_eq!(reply["choices"][0]["text"], "The ");
    world.all_closed().await;
}

#[tokio::test]
async fn characters_of_several_tokens_stay_whole() {
    let text = "é ☃ 😀 字";
    let ids = TOKENIZER.encode(text).unwrap();
    assert!(
        ids.len() > text.chars().count(),
        "some character has several tokens"
    );
    let world = saying(&ids);
    let fields = json!({"prompt": [7], "max_tokens": ids.len(), "stream": true, "logprobs": 0});
    let chunks = world.complete(fields).await.chunks("cmpl-");
    let pieces = chunks
        .iter()
        .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap());
    assert_eq!(pieces.collect::<String>(), text);
    let names = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["tokens"][0].as_str());
    assert!(
        names.clone().any(|name| name.starts_with("bytes:\\x")),
        "{:?}",
        names.collect::<Vec<_>>()
    );
    // Cut within a character, the text ends with the sign for one that is not known.
    let part = ids[..ids.len() - 1].to_vec();
    let cut = saying(&part)
        .complete(json!({"prompt": [7], "max_tokens": part.len()}))
        .await
        .json();
    assert_eq!(cut["choices"][0]["text"], "é ☃ 😀 \u{fffd}");
}

#[tokio::test]
async fn the_end_token_can_be_ignored() {
    let world = saying(&[1784, 2, 2735]);
    let fields = json!({"prompt": [7], "ignore_eos": true, "max_tokens": 3});
    let reply = world.complete(fields).await.json();
    assert_eq!(reply["choices"][0]["text"], "The cap");
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    let (_, sent) = &world.heads.seen()[0];
    assert!(sent.ignore_eos && sent.stop_tokens.is_empty());
}

#[tokio::test]
async fn a_request_without_a_seed_gets_one_of_its_own() {
    let world = world();
    for _ in 0..2 {
        world.complete(json!({"prompt": [[7], [8]]})).await;
    }
    let seeds: Vec<_> = world
        .heads
        .seen()
        .iter()
        .map(|(_, sent)| sent.sampling.seed)
        .collect();
    assert_ne!(seeds[0], seeds[2]);
    assert_eq!(
        (seeds[0], seeds[2]),
        (seeds[1], seeds[3]),
        "one request has one seed"
    );
}

#[test]
fn the_records_are_what_the_texts_say() {
    assert_eq!(
        TOKENIZER.encode("Tell me the capital of Vietnam.").unwrap(),
        QUESTION
    );
    let text = TOKENIZER.decode_bytes(&ANSWER).unwrap();
    assert_eq!(text, ANSWER_TEXT.as_bytes());
    assert_eq!(sampled(14).logprob, -2.0);
}
