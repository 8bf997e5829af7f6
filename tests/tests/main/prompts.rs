//! Log-probabilities of whole prompts against the records of an independent implementation, and whether an answer beside
//! them is the one without.

use serde::Deserialize;
use serde_json::{Value, json};
use tramontane_tests::client::{AT_ONCE, Client, all_at_once};
use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::fixtures::{Golden, golden};

#[derive(Deserialize)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
}

async fn ask(client: &Client, fields: Value) -> Value {
    let mut body = json!({"model": MODEL, "temperature": 0, "return_tokens_as_token_ids": true});
    let object = body.as_object_mut().expect("an object");
    object.extend(fields.as_object().expect("an object").clone());
    let answer = client.post("/v1/completions", body).await;
    let answer = answer.and_then(|answer| answer.ok());
    answer.unwrap_or_else(|error| panic!("{error}")).json()
}

/// The prompt alone, scored: what `lm-evaluation-harness` asks for.
async fn scored(client: &Client, record: &Golden) -> Logprobs {
    let fields = json!({"prompt": record.prompt_ids, "max_tokens": 0, "echo": true, "logprobs": 1});
    let answer = ask(client, fields).await;
    assert_eq!(answer["usage"]["completion_tokens"], 0, "{answer}");
    serde_json::from_value(answer["choices"][0]["logprobs"].clone()).expect("log-probabilities")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_are_scored_as_recorded() {
    let records = golden();
    let mut cluster = Cluster::start(Plan::new(2).shape(2, 1)).await;
    let client = cluster.client(1);
    let scores = all_at_once(AT_ONCE, &records, async |record| scored(&client, record).await).await;
    let (mut tokens, mut off) = (0, Vec::new());
    for (index, (record, found)) in records.iter().zip(&scores).enumerate() {
        let names: Vec<String> = record
            .prompt_ids
            .iter()
            .map(|id| format!("token_id:{id}"))
            .collect();
        assert_eq!(found.tokens, names, "record {index}");
        assert_eq!(found.token_logprobs[0], None, "record {index}");
        for (at, recorded) in record.prompt_logprobs.iter().enumerate().skip(1) {
            // The row before it tells.
            if record.prompt_router_gap[at - 1].is_some_and(|gap| gap < 1e-3) {
                continue;
            }
            tokens += 1;
            let pair = found.token_logprobs[at].zip(*recorded);
            if pair.is_none_or(|(found, recorded)| (found - recorded).abs() > 0.02) {
                off.push(format!("record {index}, token {at}: {pair:?}"));
            }
        }
    }
    println!("{} of {tokens} tokens differ by more than 0.02", off.len());
    assert!(tokens > 3000, "only {tokens} tokens were compared");
    assert!(off.len() * 100 <= tokens, "{off:#?}");

    // The scores of a prompt and the answer to it do not change one another, nor does what the cache holds by now.
    let prompt = &records[0].prompt_ids;
    let plain = json!({"prompt": prompt, "max_tokens": 8, "logprobs": 1});
    let plain = ask(&client, plain).await;
    let both = json!({"prompt": prompt, "max_tokens": 8, "logprobs": 1, "prompt_logprobs": 2});
    let both = ask(&client, both).await;
    assert_eq!(both["choices"][0]["logprobs"], plain["choices"][0]["logprobs"]);
    assert_eq!(both["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let listed = both["choices"][0]["prompt_logprobs"].as_array().expect("a list");
    let of = |(entry, id): (&Value, &u32)| entry[id.to_string()]["logprob"].as_f64();
    let listed: Vec<Option<f64>> = listed.iter().zip(prompt).map(of).collect();
    assert_eq!(listed, scores[0].token_logprobs);
    cluster.check_alive();
    cluster.until_idle().await;
}
