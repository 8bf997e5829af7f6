//! Several choices of one prompt, and prompts that are repeated before them.

use super::*;
use crate::gateway::scripted::sampled;

fn question() -> Value {
    json!([{"role": "user", "content": "Tell me the capital of Vietnam."}])
}

/// The seed and choice of every submission.
fn keys(world: &World) -> Vec<(u64, u32)> {
    let seen = world.heads.seen();
    seen.iter()
        .map(|(_, sent)| (sent.sampling.seed, sent.sampling.choice))
        .collect()
}

#[tokio::test]
async fn each_choice_has_its_own_generator_and_the_prompt_counts_once() {
    let world = world();
    let reply = world.chat(json!({"messages": question(), "n": 3})).await.json();
    let choices = reply["choices"].as_array().unwrap();
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["content"], ANSWER_TEXT);
        assert_eq!(choice["finish_reason"], "stop");
    }
    assert_eq!(
        reply["usage"],
        json!({"prompt_tokens": 15, "completion_tokens": 42, "total_tokens": 57, "prompt_tokens_details": {"cached_tokens": 2}})
    );
    let keys = keys(&world);
    let seed = keys[0].0;
    assert_eq!(keys, [(seed, 0), (seed, 1), (seed, 2)]);
    let seen = world.heads.seen();
    assert_ne!(seen[0].1.request, seen[1].1.request);
    assert_eq!(seen[0].1.prompt, seen[2].1.prompt);
}

#[tokio::test]
async fn choices_of_several_prompts_are_numbered_prompt_by_prompt() {
    let world = world();
    let fields = json!({"prompt": [[7], [8, 9]], "n": 2, "seed": 5, "max_tokens": 2});
    let reply = world.complete(fields).await.json();
    let indexes = reply["choices"].as_array().unwrap().iter();
    assert_eq!(
        indexes.map(|choice| choice["index"].clone()).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    assert_eq!(
        reply["usage"],
        json!({"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 3}})
    );
    assert_eq!(keys(&world), [(5, 0), (5, 1), (5, 0), (5, 1)]);
    let prompts = world.heads.seen().into_iter().map(|(_, sent)| sent.prompt);
    assert_eq!(
        prompts.collect::<Vec<_>>(),
        [vec![7], vec![7], vec![8, 9], vec![8, 9]]
    );
}

#[tokio::test]
async fn choices_are_told_apart_in_a_stream() {
    let world = world();
    let fields = json!({
        "messages": question(),
        "n": 2,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let chunks = world.chat(fields).await.chunks("chatcmpl-");
    let mut texts = [String::new(), String::new()];
    let mut ends = Vec::new();
    for chunk in &chunks[..chunks.len() - 1] {
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts[index].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        if choice["finish_reason"] == "stop" {
            ends.push(index);
        }
        assert_eq!(chunk["usage"], json!(null));
    }
    assert_eq!(texts, [ANSWER_TEXT; 2]);
    ends.sort_unstable();
    assert_eq!(ends, [0, 1]);
    assert_eq!(
        chunks[chunks.len() - 1]["usage"],
        json!({"prompt_tokens": 15, "completion_tokens": 28, "total_tokens": 43, "prompt_tokens_details": {"cached_tokens": 2}})
    );
}

#[tokio::test(start_paused = true)]
async fn one_choice_that_fails_or_a_client_that_leaves_frees_all() {
    let acts = vec![
        Act::HangAfter(1),
        Act::EndAfter(1, tramontane_proto::Ended::Deadline),
        Act::HangAfter(0),
    ];
    let failing = Setup {
        acts,
        ..Setup::default()
    }
    .build();
    let reply = failing.chat(json!({"messages": question(), "n": 3})).await;
    assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT);
    failing.all_closed().await;

    let hanging = Setup {
        acts: vec![Act::HangAfter(1); 3],
        ..Setup::default()
    }
    .build();
    let whole = hanging.chat(json!({"messages": question(), "n": 3}));
    assert!(tokio::time::timeout(Duration::from_secs(5), whole).await.is_err());
    assert_eq!(hanging.heads.seen().len(), 3);
    hanging.all_closed().await;
}

#[tokio::test]
async fn choices_find_room_together_or_not_at_all() {
    let options = GatewayOptions {
        max_live_requests: 3,
        ..GatewayOptions::default()
    };
    let world = Setup {
        options,
        ..Setup::default()
    }
    .build();
    let reply = world.chat(json!({"messages": question(), "n": 4})).await;
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(world.heads.seen().is_empty());
    let reply = world.chat(json!({"messages": question(), "n": 3})).await;
    assert_eq!(reply.status, StatusCode::OK);
}

#[tokio::test]
async fn a_prompt_can_be_repeated() {
    let world = saying(&[1784, 2735, 2]);
    for (prompt, shown) in [
        (json!("Tell me:"), "Tell me:"),
        (json!(QUESTION), "Tell me the capital of Vietnam."),
    ] {
        // A stop string ends what is generated, never the prompt.
        let fields = json!({"prompt": prompt, "echo": true, "stop": "me"});
        let reply = world.complete(fields.clone()).await.json();
        assert_eq!(reply["choices"][0]["text"], format!("{shown}The cap"));

        let mut streaming = fields;
        streaming["stream"] = json!(true);
        let chunks = world.complete(streaming).await.chunks("cmpl-");
        assert_eq!(chunks[0]["choices"][0]["text"], shown);
        let pieces = chunks
            .iter()
            .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap());
        assert_eq!(pieces.collect::<String>(), format!("{shown}The cap"));
    }
}

#[tokio::test]
async fn a_repeated_prompt_shows_its_log_probabilities_but_for_the_first_token() {
    let world = saying(&[1784, 2]);
    let fields = json!({"prompt": [2735, 1784], "echo": true, "logprobs": 0, "n": 2});
    let reply = world.complete(fields).await.json();
    let logprob: f64 = sampled(1784).logprob.to_string().parse().unwrap();
    for choice in reply["choices"].as_array().unwrap() {
        let logprobs = &choice["logprobs"];
        assert_eq!(logprobs["tokens"], json!([" cap", "The", "The", "</s>"]));
        assert_eq!(logprobs["text_offset"], json!([0, 4, 7, 10]));
        let values = logprobs["token_logprobs"].as_array().unwrap();
        assert_eq!(values[..3], [json!(null), json!(logprob), json!(logprob)]);
        assert_eq!(logprobs["top_logprobs"][0], json!(null));
        assert_eq!(logprobs["top_logprobs"][1], json!({"The": logprob}));
    }
}

#[tokio::test]
async fn an_answer_finishes_a_character_that_the_prompt_began() {
    let ids = TOKENIZER.encode("\u{1f600}").unwrap();
    assert!(ids.len() > 1);
    let world = saying(&[&ids[1..], &[2]].concat());
    let reply = world
        .complete(json!({"prompt": ids[..1], "echo": true}))
        .await
        .json();
    assert_eq!(reply["choices"][0]["text"], "\u{1f600}");
}

#[tokio::test]
async fn labels_change_nothing() {
    let world = world();
    let metadata: serde_json::Map<_, _> = (0..16)
        .map(|key| (format!("{key:064}"), json!("é".repeat(512))))
        .collect();
    let fields = json!({"messages": question(), "user": "u".repeat(512), "metadata": metadata});
    let reply = world.chat(fields).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], ANSWER_TEXT);
    assert_eq!(world.heads.seen()[0].1.prompt.len(), 15);
}
