//! Sends requests, so many at once, and notes when tokens come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::amounts::percentile;
use crate::client::Client;
use crate::events::Chunk;

/// Ids of prompts: after the special tokens, and in every vocabulary of the family.
const FIRST_ID: u64 = 1000;
const IDS: u64 = 7000;

/// What is asked again and again.
#[derive(Clone)]
pub(super) struct Load {
    pub(super) client: Client,
    pub(super) model: String,
    pub(super) prompt_tokens: u32,
    pub(super) max_tokens: u32,
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) first_token: Duration,
    pub(super) tokens: u64,
}

/// What a measurement found.
#[derive(Debug)]
pub(super) struct Level {
    pub(super) took: Duration,
    pub(super) samples: Vec<Result<Sample, String>>,
}

impl Level {
    pub(super) fn errors(&self) -> usize {
        self.samples.iter().filter(|sample| sample.is_err()).count()
    }

    pub(super) fn first_error(&self) -> Option<&str> {
        self.samples
            .iter()
            .find_map(|sample| sample.as_ref().err())
            .map(String::as_str)
    }

    pub(super) fn tokens(&self) -> u64 {
        self.samples.iter().flatten().map(|sample| sample.tokens).sum()
    }

    pub(super) fn tokens_per_second(&self) -> f64 {
        self.tokens() as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// Milliseconds to the first token that `share` of the answers do not exceed; nothing if all failed.
    pub(super) fn first_token_ms(&self, share: f64) -> Option<f64> {
        let samples = self.samples.iter().flatten();
        let mut times: Vec<f64> = samples
            .map(|sample| sample.first_token.as_secs_f64() * 1000.0)
            .collect();
        times.sort_by(f64::total_cmp);
        percentile(&times, share)
    }
}

impl Load {
    /// Sends `requests` with at most `concurrency` in flight. `next_prompt` numbers the prompts.
    pub(super) async fn run(&self, concurrency: u32, requests: u32, next_prompt: &mut u32) -> Level {
        let first = *next_prompt;
        let last = first.saturating_add(requests);
        *next_prompt = last;
        let next = Arc::new(AtomicU32::new(first));
        let mut clients = JoinSet::new();
        let started = Instant::now();
        for _ in 0..concurrency.min(requests) {
            let (load, next) = (self.clone(), Arc::clone(&next));
            clients.spawn(async move {
                let mut samples = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= last {
                        return samples;
                    }
                    samples.push(load.ask(number).await.map_err(|error| format!("{error:#}")));
                }
            });
        }
        let samples = clients.join_all().await.into_iter().flatten().collect();
        let took = started.elapsed();
        Level { took, samples }
    }

    async fn ask(&self, number: u32) -> Result<Sample> {
        let body = json!({
            "model": self.model,
            "prompt": prompt(number, self.prompt_tokens),
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            // So that every token shows, also one that adds no text.
            "logprobs": 0,
            "return_tokens_as_token_ids": true,
        });
        let asked = Instant::now();
        let mut events = self.client.stream("/v1/completions", body.to_string()).await?;
        let mut first = None;
        let mut tokens = 0;
        while let Some(data) = events.next().await? {
            tokens += Chunk::read(&data)?.tokens();
            if tokens > 0 {
                first.get_or_insert_with(|| asked.elapsed());
            }
        }
        match first {
            Some(first_token) if tokens == u64::from(self.max_tokens) => Ok(Sample { first_token, tokens }),
            Some(_) | None => bail!("{tokens} tokens came, {} were asked for", self.max_tokens),
        }
    }
}

/// Token ids of the prompt of this number.
fn prompt(number: u32, tokens: u32) -> Vec<u64> {
    // A multiplicative generator (Knuth's MMIX constants) started at the number.
    let mut state = u64::from(number) + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        FIRST_ID + (state >> 33) % IDS
    };
    (0..tokens).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_fixed_distinct_and_within_the_vocabulary() {
        assert_eq!(prompt(3, 8), prompt(3, 8));
        let starts: std::collections::BTreeSet<_> = (0..1000).map(|number| prompt(number, 4)).collect();
        assert_eq!(starts.len(), 1000);
        assert!(
            prompt(1, 1000)
                .iter()
                .all(|id| (FIRST_ID..FIRST_ID + IDS).contains(id))
        );
    }

    #[test]
    fn failures_do_not_count_as_tokens() {
        let sample = |ms, tokens| {
            Ok(Sample {
                first_token: Duration::from_millis(ms),
                tokens,
            })
        };
        let level = Level {
            took: Duration::from_secs(2),
            samples: vec![sample(30, 10), Err("no".to_owned()), sample(10, 20)],
        };
        assert_eq!((level.errors(), level.tokens()), (1, 30));
        assert_eq!(level.first_error(), Some("no"));
        assert!((level.tokens_per_second() - 15.0).abs() < 1e-9);
        assert_eq!(level.first_token_ms(0.5), Some(10.0));
        assert_eq!(level.first_token_ms(0.99), Some(30.0));
    }

    #[test]
    fn nothing_of_nothing() {
        let level = Level {
            took: Duration::ZERO,
            samples: vec![Err("no".to_owned())],
        };
        assert_eq!(level.first_token_ms(0.5), None);
        assert!(level.tokens_per_second() < f64::EPSILON);
    }
}
