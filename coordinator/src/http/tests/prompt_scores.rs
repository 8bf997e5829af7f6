//! Log-probabilities of the prompt: in a list of their own, and where the text begins with the prompt.

use super::*;
use crate::gateway::scripted::sampled;

/// A log-probability as it reads in JSON.
fn shown(logprob: f32) -> Value {
    json!(logprob.to_string().parse::<f64>().unwrap())
}

/// `prompt_logprobs` of a prompt as the heads here score it.
fn listed(prompt: &[u32], top: usize) -> Value {
    let text = |id| {
        let bytes = TOKENIZER.token_bytes(id).unwrap();
        String::from_utf8_lossy(bytes).into_owned()
    };
    let scored = prompt[1..].iter().map(|&id| {
        let scored = sampled(id);
        let rank = if top > 0 { json!(1) } else { json!(null) };
        let mut entry = json!({
            id.to_string(): {"logprob": shown(scored.logprob), "rank": rank, "decoded_token": text(id)},
        });
        if top > 1 {
            let (other, logprob) = scored.top[1];
            entry[other.to_string()] =
                json!({"logprob": shown(logprob), "rank": 2, "decoded_token": text(other)});
        }
        entry
    });
    std::iter::once(json!(null)).chain(scored).collect()
}

#[tokio::test]
async fn the_prompt_is_scored_in_a_list() {
    for top in [0, 1, 2] {
        let world = world();
        let fields = json!({"prompt": QUESTION, "prompt_logprobs": top, "max_tokens": 3});
        let choice = &world.complete(fields).await.json()["choices"][0];
        assert_eq!(choice["text"], "The capital");
        assert_eq!(choice["logprobs"], json!(null));
        assert_eq!(choice["prompt_logprobs"], listed(&QUESTION, top));
        let (_, sent) = &world.heads.seen()[0];
        assert_eq!(sent.sampling.prompt_logprobs, Some(top as u32));
        assert_eq!(sent.sampling.logprobs, None);
    }
}

#[tokio::test]
async fn a_text_that_begins_with_the_prompt_shows_its_log_probabilities() {
    let world = world();
    let fields =
        json!({"prompt": QUESTION, "echo": true, "logprobs": 1, "max_tokens": 1, "prompt_logprobs": 2});
    let choice = &world.complete(fields).await.json()["choices"][0];
    let logprobs = &choice["logprobs"];
    let own = |id: u32| shown(sampled(id).logprob);
    let mut expected = vec![json!(null)];
    expected.extend(QUESTION[1..].iter().chain(&ANSWER[..1]).map(|&id| own(id)));
    assert_eq!(logprobs["token_logprobs"], json!(expected));
    let tops = logprobs["top_logprobs"].as_array().unwrap();
    assert_eq!(tops[0], json!(null));
    // One alternative where one was asked for, whatever the list has.
    assert!(
        tops[1..QUESTION.len()]
            .iter()
            .all(|top| top.as_object().unwrap().len() == 1)
    );
    assert_eq!(choice["prompt_logprobs"], listed(&QUESTION, 2));

    // As a stream: the prompt comes first, whole.
    let fields = json!({"prompt": QUESTION, "echo": true, "logprobs": 1, "max_tokens": 1, "stream": true});
    let reply = world.complete(fields).await;
    let first = &reply.chunks("cmpl-")[0]["choices"][0];
    assert_eq!(first["logprobs"]["token_logprobs"], json!(expected[..12]));
}

#[tokio::test]
async fn a_prompt_alone_is_shown_and_scored() {
    let world = world();
    let fields = json!({"prompt": QUESTION, "echo": true, "logprobs": 0, "max_tokens": 0});
    let reply = world.complete(fields.clone()).await.json();
    let choice = &reply["choices"][0];
    assert_eq!(choice["text"], "Tell me the capital of Vietnam.");
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        choice["logprobs"]["tokens"].as_array().unwrap().len(),
        QUESTION.len()
    );
    assert_eq!(reply["usage"]["prompt_tokens"], QUESTION.len());
    assert_eq!(reply["usage"]["completion_tokens"], 0);

    let mut streamed = fields;
    streamed["stream"] = json!(true);
    let chunks = world.complete(streamed).await.chunks("cmpl-");
    let choices: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]).collect();
    assert_eq!(choices.len(), 2, "{choices:?}");
    assert_eq!(choices[1]["finish_reason"], "length");

    let fields = json!({"prompt": QUESTION, "max_tokens": 0, "prompt_logprobs": 1});
    let reply = world.complete(fields).await.json();
    assert_eq!(reply["choices"][0]["text"], "");
    assert_eq!(reply["choices"][0]["prompt_logprobs"], listed(&QUESTION, 1));
    world.all_closed().await;
}

#[tokio::test]
async fn the_prompt_of_a_conversation_is_scored_once() {
    let world = world();
    let fields = json!({
        "messages": [{"role": "user", "content": "Tell me the capital of Vietnam."}],
        "prompt_logprobs": 1,
        "n": 2,
    });
    let reply = world.chat(fields).await.json();
    let seen = world.heads.seen();
    assert_eq!(reply["prompt_logprobs"], listed(&seen[0].1.prompt, 1));
    assert_eq!(reply["choices"].as_array().unwrap().len(), 2);
    let mut asked: Vec<_> = seen
        .iter()
        .map(|(_, sent)| sent.sampling.prompt_logprobs)
        .collect();
    asked.sort_unstable();
    assert_eq!(asked, [None, Some(1)]);
}

#[tokio::test]
async fn what_cannot_be_shown_is_refused() {
    let world = world();
    let long: Vec<u32> = vec![1084; 4000];
    let refused = [
        (
            json!({"prompt": QUESTION, "max_tokens": 0}),
            "max_tokens",
            "unless echo or prompt_logprobs",
        ),
        (
            json!({"prompt": QUESTION, "max_completion_tokens": 0, "echo": true}),
            "max_completion_tokens",
            "from 1 to 4096",
        ),
        (
            json!({"prompt": QUESTION, "prompt_logprobs": 1, "stream": true}),
            "prompt_logprobs",
            "stream",
        ),
        (
            json!({"prompt": vec![long; 8], "prompt_logprobs": 20}),
            "prompt_logprobs",
            "asks for 672000",
        ),
    ];
    for (fields, param, problem) in refused {
        let reply = world.complete(fields).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
        let error = &reply.json()["error"];
        assert_eq!(error["param"], param);
        assert!(error["message"].as_str().unwrap().contains(problem), "{error}");
    }
    assert!(world.heads.seen().is_empty());
}

#[tokio::test]
async fn a_replica_that_scores_nothing_is_an_error() {
    let silent = |submission: &tramontane_proto::GenerateSubmission| {
        crate::gateway::scripted::update(
            submission,
            tramontane_proto::Progress::Ended(tramontane_proto::Ended::Deadline),
        )
    };
    let probe = world();
    probe.complete(json!({"prompt": QUESTION})).await;
    let update = silent(&probe.heads.seen()[0].1);
    let world = Setup {
        acts: vec![Act::Raw(vec![update])],
        ..Setup::default()
    }
    .build();
    let fields = json!({"prompt": QUESTION, "echo": true, "logprobs": 1, "max_tokens": 0});
    let reply = world.complete(fields).await;
    assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT, "{:?}", reply.body);
}
