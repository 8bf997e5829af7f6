//! Measurements, as lines for people or for machines.

use anyhow::Result;
use serde::Serialize;

use super::measure::{Level, Load};

#[derive(Serialize)]
struct Line<'a> {
    model: &'a str,
    prompt_tokens: u32,
    max_tokens: u32,
    concurrency: u32,
    requests: usize,
    errors: usize,
    tokens: u64,
    seconds: f64,
    tokens_per_second: f64,
    first_token_ms_p50: Option<f64>,
    first_token_ms_p99: Option<f64>,
}

/// What the table's columns are.
pub(super) fn print_head(load: &Load) {
    println!(
        "{}: prompts of {} tokens, answers of {}",
        load.model, load.prompt_tokens, load.max_tokens
    );
    println!("  CONCURRENCY  REQUESTS  ERRORS  TOKENS/S  FIRST TOKEN p50     p99");
}

/// Shows one measurement as soon as it is there.
pub(super) fn print(load: &Load, concurrency: u32, level: &Level, json: bool) -> Result<()> {
    let line = Line {
        model: &load.model,
        prompt_tokens: load.prompt_tokens,
        max_tokens: load.max_tokens,
        concurrency,
        requests: level.samples.len(),
        errors: level.errors(),
        tokens: level.tokens(),
        seconds: level.took.as_secs_f64(),
        tokens_per_second: level.tokens_per_second(),
        first_token_ms_p50: level.first_token_ms(0.5),
        first_token_ms_p99: level.first_token_ms(0.99),
    };
    if json {
        println!("{}", serde_json::to_string(&line)?);
        return Ok(());
    }
    let ms = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0} ms"));
    println!(
        "  {:>11}  {:>8}  {:>6}  {:>8.1}  {:>15}  {:>6}",
        line.concurrency,
        line.requests,
        line.errors,
        line.tokens_per_second,
        ms(line.first_token_ms_p50),
        ms(line.first_token_ms_p99)
    );
    Ok(())
}
