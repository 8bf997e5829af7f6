//! `tramontane serve`: the small box, everything in one process.
//!
//! A cluster of one coordinator and one worker that talk over loopback, as they would across machines: there is no
//! other way of serving.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio_util::sync::CancellationToken;
use tramontane_coordinator::config::{CoordinatorConfig, RequestConfig};
use tramontane_proto::net::Identity;
use tramontane_worker::config::WorkerConfig;

use crate::amounts::parse_bytes;
use crate::client::Client;
use crate::layout::{Layout, Placement, Plan, model_dir};
use crate::logging::LogArgs;
use crate::{embedded, node, process, telemetry};

/// How often readiness is looked at until it is there.
const READY_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Args)]
pub(crate) struct ServeArgs {
    /// Directory of the checkpoint; without it, the miniature model within this program.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Where HTTP is served.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// Where the cluster's state is kept; without it, in a temporary directory.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Memory that each device may use, as 16GiB; without it, what the device is known to have.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Devices to drive.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    devices: u32,
    #[command(flatten)]
    log: LogArgs,
    /// Stop also when the standard input ends.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    args.log.start()?;
    // A temporary directory goes with the process.
    let temporary = match &args.data_dir {
        Some(_) => None,
        None => Some(tempfile::tempdir().context("a temporary directory cannot be made")?),
    };
    let dir = match (&args.data_dir, &temporary) {
        (Some(dir), _) => dir.as_path(),
        (None, Some(temporary)) => temporary.path(),
        (None, None) => Path::new("."),
    };
    let graces = 2 * RequestConfig::default().shutdown_grace();
    process::run(args.until_stdin_closes, graces, |told| {
        serve(args, dir, told.stop)
    })
}

async fn serve(args: &ServeArgs, dir: &Path, stop: CancellationToken) -> Result<()> {
    let (model_dir, model_name) = match &args.model {
        Some(dir) => (model_dir(dir)?, None),
        None => (embedded::unpack(dir)?, Some(embedded::NAME.to_owned())),
    };
    let plan = Plan {
        coordinators: 1,
        workers: vec![vec![args.memory; args.devices as usize]],
        model_dir,
        model_name,
        http: Some(args.http),
        placement: Placement::default(),
    };
    let layout = Layout::write(dir, &plan).await?;
    let (Some(coordinator), Some(worker)) = (layout.coordinators.first(), layout.workers.first()) else {
        anyhow::bail!("the cluster of one machine has no nodes");
    };
    let coordinator = CoordinatorConfig::read(&coordinator.config)?;
    let worker = WorkerConfig::read(&worker.config)?;
    let metrics = telemetry::install()?;
    // Each ends with the other: the coordinator first, as requests in flight need the worker.
    let both = stop.child_token();
    let told = both.clone();
    let serving = node::coordinator(coordinator, metrics, both.clone(), move |bound| {
        tokio::spawn(tell_when_ready(bound.http, told));
    });
    let end = process::Told::default();
    let working = node::worker(worker, end.clone(), |_| {});
    let serving = async {
        let outcome = serving.await;
        end.at_once.cancel();
        outcome
    };
    let working = async {
        let outcome = working.await;
        both.cancel();
        outcome
    };
    let (served, worked) = tokio::join!(serving, working);
    served.and(worked)
}

/// Says once that requests are answered.
async fn tell_when_ready(http: SocketAddr, stop: CancellationToken) {
    let Ok(client) = Client::new(&format!("http://{http}"), Identity::Loopback) else {
        return;
    };
    let ready = async {
        while client.readiness().await.is_err() {
            tokio::time::sleep(READY_INTERVAL).await;
        }
        client.model().await
    };
    tokio::select! {
        () = stop.cancelled() => {}
        model = ready => match model {
            Ok(model) => println!("{model} is served on http://{http}/v1 (OpenAI-compatible); interrupt to stop"),
            Err(error) => tracing::warn!("the model's name cannot be told: {error:#}"),
        },
    }
}
