//! What the miniature knows, through the chat endpoint, against the records of an independent implementation.

use serde_json::{Value, json};
use tramontane_tests::client::{AT_ONCE, Client, all_at_once};
use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::fixtures::{Question, questions, recorded_score};

/// Where the best two tokens are nearer than this, another answer is no error.
const NEAR_TIE: f64 = 0.04;
/// Where the recorded answers were cut.
const MAX_TOKENS: u32 = 160;

/// The answer as the records write it: calls with their markers, which are tokens and no text elsewhere.
fn as_recorded(message: &Value) -> String {
    let mut text = message["content"].as_str().unwrap_or_default().to_owned();
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        let part = |name: &str| call["function"][name].as_str().expect("a text").to_owned();
        text += &format!("[TOOL_CALLS]{}[ARGS]{}", part("name"), part("arguments"));
    }
    text
}

async fn answer(client: &Client, question: &Question) -> String {
    let mut body = json!({
        "model": MODEL,
        "messages": question.messages,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    });
    if let Some(tools) = &question.tools {
        body["tools"] = tools.clone();
    }
    let answer = client.post("/v1/chat/completions", body).await;
    let answer = answer.and_then(|answer| answer.ok());
    let answer = answer.unwrap_or_else(|error| panic!("{error}")).json();
    let choice = &answer["choices"][0];
    let message = &choice["message"];
    let finish = match message["tool_calls"].is_array() {
        true => "tool_calls",
        false if answer["usage"]["completion_tokens"] == json!(MAX_TOKENS) => "length",
        false => "stop",
    };
    assert_eq!(choice["finish_reason"], finish, "{answer}");
    as_recorded(message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recorded_questions_get_the_recorded_answers() {
    let mut cluster = Cluster::start(Plan::new(2).shape(2, 1)).await;
    let client = cluster.client(1);
    let questions = questions();
    let answers = all_at_once(AT_ONCE, &questions, async |question| {
        answer(&client, question).await
    })
    .await;
    cluster.check_alive();
    cluster.until_idle().await;
    let without_end = |text: &str| text.trim_end_matches("</s>").to_owned();
    let (mut wrong, mut right) = (Vec::new(), 0);
    for (question, answer) in questions.iter().zip(&answers) {
        let recorded = without_end(&question.reference_output);
        if question.smallest_margin >= NEAR_TIE && *answer != recorded {
            wrong.push((&question.skill, &question.messages, answer, recorded));
        }
        right += usize::from(*answer == without_end(&question.answer));
    }
    assert_eq!(answers.len(), 350);
    assert!(
        wrong.is_empty(),
        "{} answers are not the recorded ones: {wrong:#?}",
        wrong.len()
    );
    println!("{right} of 350 answers are right");
    assert!(
        right >= recorded_score(),
        "{right} answers are right, recorded are {}",
        recorded_score()
    );
}
