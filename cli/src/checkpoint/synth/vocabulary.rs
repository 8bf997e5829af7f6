//! A vocabulary of the right size: the single bytes, then made-up words.

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// The small model's vocabulary, whose special tokens and pattern are Tekken's.
const MINI: &[u8] = include_bytes!("../../../assets/mini-large-3/tekken.json");
/// Letters that made-up words are of.
const LETTERS: u32 = 26;

/// A tekken.json of so many ids.
pub(super) fn of(vocab_size: u32) -> Result<Vec<u8>> {
    let mut tekken: Value = serde_json::from_slice(MINI)?;
    let special = tekken["config"]["default_num_special_tokens"]
        .as_u64()
        .unwrap_or(0);
    let tokens = u64::from(vocab_size).saturating_sub(special);
    let known = tekken["vocab"].as_array().cloned().unwrap_or_default();
    let bytes = known.into_iter().take(256);
    let made_up = (256..tokens).map(|rank| {
        let word = word(u32::try_from(rank).unwrap_or(u32::MAX));
        json!({ "rank": rank, "token_bytes": STANDARD.encode(&word), "token_str": word })
    });
    let vocab: Vec<Value> = bytes.chain(made_up).collect();
    tekken["config"]["default_vocab_size"] = json!(vocab_size);
    tekken["config"]["num_vocab_tokens"] = json!(vocab.len());
    tekken["vocab"] = Value::Array(vocab);
    Ok(serde_json::to_vec(&tekken)?)
}

/// A word for each number: " " and at least two letters.
fn word(number: u32) -> String {
    let mut letters = vec![];
    let mut left = number;
    while left > 0 || letters.len() < 2 {
        letters.push(char::from(b'a' + u8::try_from(left % LETTERS).unwrap_or(0)));
        left /= LETTERS;
    }
    std::iter::once(' ').chain(letters.into_iter().rev()).collect()
}
