//! Where fixtures are, and what the records among them say.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The root of the project.
pub fn repository() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("the tests lie in the project").to_owned()
}

/// The trained miniature's directory.
pub fn mini() -> PathBuf {
    repository().join("cli/assets/mini-large-3")
}

/// A folder or file of `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    repository().join("tests/fixtures").join(path)
}

fn lines<T: DeserializeOwned>(path: &str) -> Vec<T> {
    let path = fixture(path);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let record =
        |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(record).collect()
}

/// A prompt of `golden.jsonl` and what an independent implementation made of it.
#[derive(Clone, Debug, Deserialize)]
pub struct Golden {
    /// The prompt.
    pub prompt_ids: Vec<u32>,
    /// The log-probability of each token given those before it; the first has none.
    pub prompt_logprobs: Vec<Option<f64>>,
    /// For each token of the prompt, how near the router was to choosing another expert; empty where the model has none.
    #[serde(deserialize_with = "or_empty")]
    pub prompt_router_gap: Vec<Option<f64>>,
    /// Its greedy continuation; ends before a near tie, so it may be empty.
    pub greedy: Vec<u32>,
    /// The same for each step.
    #[serde(deserialize_with = "or_empty")]
    pub router_gap: Vec<Option<f64>>,
    /// For each step, the best five and their log-probabilities.
    pub top5: Vec<Vec<(u32, f64)>>,
}

fn or_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Option<f64>>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// All records of the miniature.
pub fn golden() -> Vec<Golden> {
    golden_of("mini-large-3")
}

/// All records of a fixture.
pub fn golden_of(fixture: &str) -> Vec<Golden> {
    lines(&format!("{fixture}/golden.jsonl"))
}

/// A question of `eval.jsonl`.
#[derive(Clone, Debug, Deserialize)]
pub struct Question {
    /// What it is about.
    pub skill: String,
    /// The conversation, as clients send it.
    pub messages: Value,
    /// Functions that may be called.
    pub tools: Option<Value>,
    /// The true answer.
    pub answer: String,
    /// What the independent implementation answered.
    pub reference_output: String,
    /// The smallest gap between the best two log-probabilities on the way.
    pub smallest_margin: f64,
}

/// All questions.
pub fn questions() -> Vec<Question> {
    lines("mini-large-3/eval.jsonl")
}

/// How many of the questions the independent implementation answered right.
pub fn recorded_score() -> usize {
    #[derive(Deserialize)]
    struct Score {
        right: usize,
    }
    let text = std::fs::read_to_string(fixture("mini-large-3/eval_score.json")).expect("the score");
    serde_json::from_str::<Score>(&text).expect("the score").right
}
