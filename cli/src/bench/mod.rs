//! `tramontane bench kernels`: how fast a device computes, which is `tramontane_kernels::bench`.
//! `tramontane bench serve`: how a cluster answers a load, as its clients see it.
//!
//! The load follows from a seed: when requests arrive, how long they are, and what they ask. Every request has a
//! connection of its own.

mod arrivals;
mod drive;
mod load;
mod random;
mod report;
mod send;
mod stats;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;
use tramontane_kernels::bench::{self as kernels, Options as KernelOptions};

use crate::ClientArgs;
use crate::amounts::parse_duration;
use crate::client::{Client, Model, runtime};
use arrivals::{Arrivals, Rate, Spacing};
use drive::{Bounds, Drive};
use load::{Load, Synthetic};
use report::{Report, Shape, Target};
use stats::{Limits, Recorder};

/// Requests where neither their number nor a duration is given.
const REQUESTS: u64 = 100;
/// Most requests of a measurement.
const MAX_REQUESTS: u64 = 1_000_000;
/// Requests in flight where nothing is said: without a rate, and with one.
const CLOSED_CONCURRENCY: u32 = 32;
const MAX_CONCURRENCY: u32 = 4096;
/// Most warm-up requests where nothing is said.
const WARM_UPS: u32 = 4;
/// Longest time that warm-up requests may take.
const WARM_UP_DEADLINE: Duration = Duration::from_secs(1800);
/// How often readiness is looked at.
const READY_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Send a load to a cluster and measure times to first token, times between tokens, throughput and goodput.
    Serve(Box<ServeArgs>),
    /// Measure every op of a model's layers on this machine's device, against what the device can do at most.
    Kernels(Box<KernelOptions>),
}

#[derive(Args)]
struct ServeArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Requests that arrive in a second, or inf: the next one is sent when one ends.
    #[arg(long, value_name = "R", default_value = "inf")]
    rate: Rate,
    /// How arrivals are spread.
    #[arg(long, value_enum, default_value_t = Spacing::Poisson)]
    arrivals: Spacing,
    /// Most requests in flight; one that arrives beyond that waits, and its times count from its arrival. By default 32
    /// without a rate and 4096 with one.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    concurrency: Option<u32>,
    /// Requests to send; by default 100 unless there is a duration.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    requests: Option<u64>,
    /// Send requests for so long, as 30s or 5m; those in flight then are waited for.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Requests to send, one a line: bodies of chat or plain completions, or prompts as JSON strings. Sent in order, and
    /// again from the first.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt_tokens", "spread", "shared_prefix", "prefix_groups"])]
    input: Option<PathBuf>,
    /// Tokens of each prompt, beside what it shares.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// Tokens of each answer, whose end tokens are ignored; of a file's requests that set no limit, the most.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    output_tokens: u32,
    /// How far both lengths may be from these: 0.5 for half to one and a half times as many, evenly drawn.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    spread: f64,
    /// Tokens that prompts begin with and share with the others of their group.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    shared_prefix: u32,
    /// How many groups there are; each prompt is of one drawn evenly.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "shared_prefix",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prefix_groups: u32,
    /// What the load follows from: equal seeds and options give equal arrivals, lengths and prompts.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Requests before the measurement, all at once; they share no prompt with it. By default 4, or the concurrency where
    /// that is less.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=4096))]
    warm_up: Option<u32>,
    /// Limits that an answer must keep to count as good, as ttft:500ms,tbt:50ms,tpot:40ms,e2e:10s: time to first token,
    /// longest time between tokens, mean time per token after the first, whole answer.
    #[arg(long, value_name = "LIMITS")]
    goodput: Option<Limits>,
    /// Write a JSON object to a file, or to the standard output in place of the table.
    #[arg(long, value_name = "FILE|-")]
    json: Option<Target>,
    /// Longest wait for the cluster to serve.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    ready_within_s: u64,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        Ok(_) | Err(_) => Err(format!("{text:?} is no share: write a number from 0 to 1")),
    }
}

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let args = match &args.command {
        BenchCommand::Serve(args) => args,
        BenchCommand::Kernels(options) => {
            kernels::run(options, &mut std::io::stdout().lock())?;
            return Ok(());
        }
    };
    let client = Client::new(&args.client.url, args.client.tls.identity()?)?;
    runtime()?.block_on(serve(args, &client))
}

async fn serve(args: &ServeArgs, client: &Client) -> Result<()> {
    until_ready(client, Duration::from_secs(args.ready_within_s)).await?;
    let model = client.served().await?;
    let (load, shape) = load(args, &model)?;
    let bounds = bounds(args);
    let most = u32::try_from(bounds.concurrency).unwrap_or(MAX_CONCURRENCY);
    let warm_up = args.warm_up.unwrap_or(WARM_UPS.min(most));
    let warmed = tokio::time::timeout(WARM_UP_DEADLINE, drive::warm_up(client, &load, warm_up)).await;
    match warmed {
        Ok(Ok(())) => {}
        Ok(Err(error)) => bail!("the warm-up failed: {error}"),
        Err(_) => bail!("the warm-up did not end within {WARM_UP_DEADLINE:?}"),
    }
    let arrivals = Arrivals::new(args.rate, args.arrivals, args.seed);
    let spacing = arrivals.is_some().then_some(args.arrivals);
    let progress = progress(&bounds);
    let mut recorder = Recorder::new(args.goodput);
    let drive = Drive {
        client,
        load: &load,
        arrivals,
        bounds,
        progress: &progress,
    };
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let (took, interrupted) = drive.run(&mut recorder, interrupt).await;
    progress.finish_and_clear();
    let report = Report {
        model: model.id,
        rate: args.rate,
        arrivals: spacing,
        concurrency: bounds.concurrency,
        load: shape,
        seed: args.seed,
        interrupted,
        results: recorder.results(took),
    };
    report.show(args.json.as_ref())?;
    let requests = report.results.requests;
    match (interrupted, requests.failed) {
        (true, _) => bail!("interrupted: {} requests were in flight", requests.unfinished),
        (false, 0) => Ok(()),
        (false, failed) => bail!("{failed} of {} requests failed", requests.sent),
    }
}

fn bounds(args: &ServeArgs) -> Bounds {
    let concurrency = args.concurrency.unwrap_or(match args.rate {
        Rate::Unbounded => CLOSED_CONCURRENCY,
        Rate::PerSecond(_) => MAX_CONCURRENCY,
    });
    let requests = args.requests.unwrap_or(match args.duration {
        Some(_) => MAX_REQUESTS,
        None => REQUESTS,
    });
    Bounds {
        concurrency: concurrency as usize,
        requests,
        duration: args.duration,
    }
}

fn load(args: &ServeArgs, model: &Model) -> Result<(Load, Shape)> {
    if let Some(path) = &args.input {
        let load = load::read(path, &model.id, args.output_tokens)?;
        return Ok((load, Shape::File(path.clone())));
    }
    let synthetic = Synthetic {
        model: model.id.clone(),
        seed: args.seed,
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        spread: args.spread,
        shared_prefix: args.shared_prefix,
        prefix_groups: args.prefix_groups,
    };
    let longest = f64::from(args.shared_prefix)
        + f64::from(args.prompt_tokens) * (1.0 + args.spread)
        + f64::from(args.output_tokens) * (1.0 + args.spread);
    if longest > f64::from(model.max_model_len) {
        bail!(
            "requests may come to {longest:.0} tokens, {} takes {}: make --prompt-tokens, --output-tokens, --spread or \
             --shared-prefix less",
            model.id,
            model.max_model_len
        );
    }
    let shape = Shape::Synthetic {
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        spread: args.spread,
        shared_prefix: args.shared_prefix,
        prefix_groups: args.prefix_groups,
    };
    Ok((Load::Synthetic(synthetic), shape))
}

/// A bar on the standard error stream, of requests or of seconds; nothing where that is no terminal.
fn progress(bounds: &Bounds) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let length = bounds
        .duration
        .map_or(bounds.requests, |duration| duration.as_secs());
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    // The template is a constant: without it the bar is plain.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len}  {msg}") {
        bar.set_style(style);
    }
    bar
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
