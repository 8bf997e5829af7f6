//! One question to a cluster, its answer shown as it comes.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::time::Instant;

use crate::client::Client;
use crate::events::Chunk;

/// Longest answer, in tokens.
const MAX_TOKENS: u32 = 512;

/// Asks, and prints question, answer and speed.
pub(super) async fn ask(client: &Client, model: &str, question: &str) -> Result<()> {
    println!();
    println!("> {question}");
    let body = json!({
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let asked = Instant::now();
    let mut events = client.stream("/v1/chat/completions", body.to_string()).await?;
    let mut tokens = 0;
    let mut first = None;
    while let Some(data) = events.next().await? {
        let chunk = Chunk::read(&data)?;
        if !chunk.text().is_empty() {
            first.get_or_insert_with(|| asked.elapsed());
            print!("{}", chunk.text());
            std::io::stdout().flush().context("the answer cannot be shown")?;
        }
        tokens = chunk.usage.map_or(tokens, |usage| usage.completion_tokens);
    }
    println!();
    let took = asked.elapsed();
    let first = first.unwrap_or(took);
    println!(
        "  {tokens} tokens, {:.1} tokens/s, the first after {:.0} ms",
        per_second(tokens, first, took),
        first.as_secs_f64() * 1000.0
    );
    Ok(())
}

/// Speed once the first token is there, which the prompt takes its time for; of one token, over all of the time.
fn per_second(tokens: u64, first: Duration, all: Duration) -> f64 {
    let (counted, time) = match tokens {
        0 | 1 => (tokens, all),
        _ => (tokens - 1, all.saturating_sub(first)),
    };
    counted as f64 / time.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_that_of_decoding() {
        let seconds = Duration::from_secs;
        assert!((per_second(11, seconds(4), seconds(6)) - 5.0).abs() < 1e-9);
        assert!((per_second(1, seconds(2), seconds(2)) - 0.5).abs() < 1e-9);
        assert!(per_second(0, seconds(2), seconds(2)).abs() < 1e-9);
    }
}
