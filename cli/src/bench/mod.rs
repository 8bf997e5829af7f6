//! `tramontane bench`: how fast a cluster answers, as its clients see it.
//!
//! Prompts are token ids that follow from their number alone, no two alike, so that runs compare and nothing comes out
//! of a prefix cache. Every answer has the same length: the end token is ignored.

mod measure;
mod report;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::time::Instant;

use crate::ClientArgs;
use crate::client::{Client, runtime};
use measure::Load;

/// Requests of a level are this many times its concurrency where nothing is said, but no fewer than the least.
const REQUESTS_PER_CLIENT: u32 = 4;
const LEAST_REQUESTS: u32 = 8;
/// Longest measurement of one level.
const LEVEL_DEADLINE: Duration = Duration::from_secs(1800);
/// How often readiness is looked at.
const READY_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Requests in flight at once; a measurement for each.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,8,32",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    concurrency: Vec<u32>,
    /// Requests of each measurement; without it, four for each in flight, and at least eight.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: Option<u32>,
    /// Tokens of each prompt.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// Tokens of each answer.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_tokens: u32,
    /// Longest wait for the cluster to serve.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    ready_within_s: u64,
    /// Print a JSON object for each measurement, one a line.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let client = Client::new(&args.client.url, args.client.tls.identity()?)?;
    runtime()?.block_on(bench(args, client))
}

async fn bench(args: &BenchArgs, client: Client) -> Result<()> {
    until_ready(&client, Duration::from_secs(args.ready_within_s)).await?;
    let load = Load {
        model: client.model().await?,
        client,
        prompt_tokens: args.prompt_tokens,
        max_tokens: args.max_tokens,
    };
    // The first requests open connections and buffers; they are not measured, but must succeed.
    let mut next_prompt = 0;
    let widest = args.concurrency.iter().copied().max().unwrap_or(1);
    let warmed = tokio::time::timeout(LEVEL_DEADLINE, load.run(widest, widest, &mut next_prompt)).await;
    let warmed = warmed.context("the warm-up did not end")?;
    if let Some(error) = warmed.first_error() {
        bail!("the warm-up failed: {error}");
    }
    if !args.json {
        report::print_head(&load);
    }
    let mut failed = 0;
    for &concurrency in &args.concurrency {
        let requests = args
            .requests
            .unwrap_or((REQUESTS_PER_CLIENT * concurrency).max(LEAST_REQUESTS));
        let level = load.run(concurrency, requests, &mut next_prompt);
        let level = tokio::time::timeout(LEVEL_DEADLINE, level)
            .await
            .with_context(|| format!("concurrency {concurrency}: not done within {LEVEL_DEADLINE:?}"))?;
        failed += level.errors();
        report::print(&load, concurrency, &level, args.json)?;
        if let Some(error) = level.first_error() {
            eprintln!(
                "concurrency {concurrency}: {} of {requests} requests failed, as: {error}",
                level.errors()
            );
        }
    }
    if failed > 0 {
        bail!("{failed} requests failed");
    }
    Ok(())
}

async fn until_ready(client: &Client, within: Duration) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        match client.readiness().await {
            Ok(()) => return Ok(()),
            Err(why) if Instant::now() >= deadline => {
                bail!("the cluster does not serve: {}", why.reason())
            }
            Err(_) => tokio::time::sleep(READY_INTERVAL).await,
        }
    }
}
