//! `tramontane plan`: where a model would go on machines that are only described, and what would survive what.
//!
//! The planner is the cluster's own. Nothing is started and no weights are read; a model is its params.json.

mod inventory;
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use tramontane_coordinator::config::PlacementConfig;
use tramontane_coordinator::control::needs::footprint;
use tramontane_coordinator::control::planner::Wishes;
use tramontane_coordinator::control::planner::outlook::Cluster;
use tramontane_kernels::bench::CacheFormat;
use tramontane_kernels::synthetic::Format;
use tramontane_model::checkpoint::{Checkpoint, CheckpointError};
use tramontane_model::layout::Layout;
use tramontane_model::placement::KvFormat;
use tramontane_model::spec::ModelSpec;
use tramontane_model::step::StepBounds;
use tramontane_model::tensors::ModelBytes;

use inventory::Inventory;
use report::Report;

#[derive(Args)]
pub(crate) struct PlanArgs {
    /// A checkpoint's folder, or a params.json without weights.
    #[arg(long, value_name = "DIR_OR_PARAMS")]
    model: PathBuf,
    /// The machines, in TOML; deploy/inventory/ has examples.
    #[arg(long, value_name = "FILE")]
    inventory: PathBuf,
    /// How the weights will be stored, where there are none yet; absent: as params.json says.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Replicas that are wanted; absent: as many as fit.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    replicas: Option<u32>,
    /// Pipeline stages of each; absent: as few as fit.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    stages: Option<u32>,
    /// Expert groups of each stage; absent: as few as fit.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    expert_groups: Option<u32>,
    /// Fewest tokens that the cache of a replica must hold.
    #[arg(long, value_name = "TOKENS", default_value_t = PlacementConfig::default().kv_tokens_min,
        value_parser = clap::value_parser!(u32).range(1..=1 << 31))]
    cache_min: u32,
    /// Most tokens that it is given.
    #[arg(long, value_name = "TOKENS", default_value_t = PlacementConfig::default().kv_tokens_max,
        value_parser = clap::value_parser!(u32).range(1..=1 << 31))]
    cache_max: u32,
    /// How it stores its values; absent: as f16, as the devices of an inventory are GPUs.
    #[arg(long, value_enum)]
    cache_format: Option<CacheFormat>,
    /// Leave spare memory empty.
    #[arg(long)]
    no_standbys: bool,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &PlanArgs) -> Result<()> {
    if args.cache_min > args.cache_max {
        bail!(
            "--cache-min is {}, it must be at most --cache-max, {}",
            args.cache_min,
            args.cache_max
        );
    }
    let Inventory { devices } = Inventory::read(&args.inventory)?;
    let (spec, bytes) = sizes(&args.model, args.format)?;
    let placement = PlacementConfig::default();
    let wishes = Wishes {
        stages: args.stages,
        expert_groups: args.expert_groups,
        kv_tokens_min: args.cache_min,
        kv_tokens_max: args.cache_max,
        kv_format: args.cache_format.map(KvFormat::from),
        ..Wishes::from(placement)
    };
    let steps = StepBounds::default();
    let footprint = footprint(&spec, &bytes, steps, wishes.kv_block_tokens);
    footprint
        .check()
        .context("the model is not one that can be planned")?;
    let outlook = Cluster {
        footprint: &footprint,
        candidates: &devices,
        wishes,
        steps,
        replicas: args.replicas,
        standbys: !args.no_standbys,
    }
    .outlook();
    let Some(report) = Report::new(&spec, &bytes, &footprint, &devices, &outlook) else {
        let reason = outlook.missing.map_or_else(String::new, |missing| missing.reason);
        bail!("it does not fit: {reason}");
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        report.print();
    }
    Ok(())
}

/// The model and the bytes of its parts: those of its tensors where there are any.
fn sizes(path: &Path, format: Option<Format>) -> Result<(ModelSpec, ModelBytes)> {
    let named = || format!("--model {}", path.display());
    let file = match path.is_dir() {
        true => match Checkpoint::open(path) {
            Ok(_) if format.is_some() => {
                bail!(
                    "--format is for a params.json without weights: {} has them",
                    path.display()
                )
            }
            Ok(checkpoint) => {
                let spec = checkpoint.spec().with_context(named)?;
                let bytes = checkpoint.validate(&spec).with_context(named)?.bytes;
                return Ok((spec, bytes));
            }
            Err(CheckpointError::NoWeights { .. }) => path.join(Layout::of(path).params_file()),
            Err(error) => return Err(error).with_context(named),
        },
        false => path.to_owned(),
    };
    let mut spec = ModelSpec::read(&file).with_context(named)?;
    if let Some(format) = format {
        spec.quantization = format.quantization();
    }
    let bytes = ModelBytes::usual(&spec);
    Ok((spec, bytes))
}
