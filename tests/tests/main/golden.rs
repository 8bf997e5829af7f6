//! The recorded prompts through `/v1/completions`: how they are asked, and what is compared.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tramontane_tests::client::{AT_ONCE, Client, all_at_once};
use tramontane_tests::config::MODEL;
use tramontane_tests::fixtures::Golden;

/// A completion, log-probabilities as the text that came: nothing is lost in comparing it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Output {
    text: String,
    finish_reason: String,
    logprobs: String,
}

/// What `logprobs` of a completion holds.
#[derive(Deserialize)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f64>,
    top_logprobs: Vec<BTreeMap<String, f64>>,
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    text: String,
    finish_reason: String,
    logprobs: Box<RawValue>,
}

/// Asks for the continuation of one prompt, as long as the recorded one.
pub(crate) async fn complete(client: &Client, record: &Golden) -> Output {
    let body = json!({
        "model": MODEL,
        "prompt": record.prompt_ids,
        "max_tokens": record.greedy.len().max(1),
        "temperature": 0,
        "logprobs": 5,
        "return_tokens_as_token_ids": true,
    });
    let answer = client.post("/v1/completions", body).await;
    let answer = answer.and_then(|answer| answer.ok());
    let answer = answer.unwrap_or_else(|error| panic!("{error}"));
    let completion: Completion = serde_json::from_str(&answer.body).expect("a completion");
    let choice = completion.choices.into_iter().next().expect("a choice");
    Output {
        text: choice.text,
        finish_reason: choice.finish_reason,
        logprobs: choice.logprobs.get().to_owned(),
    }
}

/// Asks for all continuations, many at once.
pub(crate) async fn complete_all(client: &Client, records: &[Golden]) -> Vec<Output> {
    all_at_once(AT_ONCE, records, async |record| complete(client, record).await).await
}

/// Outputs are equal to the bit.
pub(crate) fn assert_equal(found: &[Output], expected: &[Output], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "record {index}: {what}");
    }
}

/// Greedy tokens equal; log-probabilities of the recorded best five within 0.02 for 99 % of the steps, but for steps
/// at which the router was so near to another expert that rounding may rightly choose it. At least so many steps are
/// compared.
pub(crate) fn check_against_records(records: &[Golden], outputs: &[Output], least: usize) {
    let (mut steps, mut off) = (0, Vec::new());
    for (index, (record, output)) in records.iter().zip(outputs).enumerate() {
        let found: Logprobs = serde_json::from_str(&output.logprobs).expect("log-probabilities");
        if !record.greedy.is_empty() {
            let greedy: Vec<String> = record.greedy.iter().map(|id| name(*id)).collect();
            assert_eq!(found.tokens, greedy, "record {index}");
        }
        for (step, recorded) in record.top5.iter().enumerate() {
            let gap = record.router_gap.get(step).copied().flatten();
            if gap.is_some_and(|gap| gap < 1e-3) {
                continue;
            }
            steps += 1;
            let top = &found.top_logprobs[step];
            assert_eq!(top.get(&found.tokens[step]), Some(&found.token_logprobs[step]));
            let far = recorded.iter().find(|(id, logprob)| {
                let found = top.get(&name(*id));
                found.is_none_or(|found| (found - logprob).abs() > 0.02)
            });
            off.extend(far.map(|far| format!("record {index}, step {step}: {far:?} is not in {top:?}")));
        }
    }
    assert!(steps >= least, "only {steps} steps were compared");
    println!("{} of {steps} steps differ by more than 0.02", off.len());
    assert!(off.len() * 100 <= steps, "{off:#?}");
}

/// Whether all greedy tokens are as recorded.
pub(crate) fn is_as_recorded(record: &Golden, output: &Output) -> bool {
    let found: Logprobs = serde_json::from_str(&output.logprobs).expect("log-probabilities");
    record.greedy.is_empty()
        || found
            .tokens
            .into_iter()
            .eq(record.greedy.iter().copied().map(name))
}

fn name(id: u32) -> String {
    format!("token_id:{id}")
}
