//! `tramontane checkpoint synth`: a checkpoint of real dimensions with random weights.
//!
//! It answers nonsense. It is for what depends on sizes alone: whether a machine can hold and bind the parts of a model,
//! how fast they load, how fast they are computed. Equal arguments give equal files.

mod codes;
mod vocabulary;
mod write;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use tramontane_kernels::synthetic::{Format, Shape, changed};
use tramontane_model::layout::Layout;
use tramontane_model::spec::ModelSpec;
use tramontane_model::tekken::TEKKEN_FILE;
use tramontane_model::tensors::language_tensors;

use crate::amounts::bytes;

#[derive(Args)]
pub(super) struct SynthArgs {
    /// The folder to write; it must not be there, or be empty.
    dir: PathBuf,
    /// Whose dimensions it has.
    #[arg(long, value_enum)]
    shape: Shape,
    /// Layers; absent: as many as the model has. Dense layers come first, as in the model, and leave one with experts.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    layers: Option<u32>,
    /// Routed experts of a layer; absent: as many as the model has.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    experts: Option<u32>,
    /// How the weights are stored that the format quantises.
    #[arg(long, value_enum)]
    format: Format,
    /// Another seed, other weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

pub(super) fn run(args: &SynthArgs) -> Result<()> {
    let dir = &args.dir;
    let params = changed(args.shape.params(), args.layers, args.experts, Some(args.format))?;
    let text = serde_json::to_vec_pretty(&params)?;
    let spec = ModelSpec::from_json(&text, &dir.join(Layout::Consolidated.params_file()))
        .context("a model of these dimensions cannot be served")?;
    prepare(dir)?;
    let written = write::weights(dir, &tensors(&spec), args.seed)?;
    let vocabulary = vocabulary::of(spec.vocab_size)?;
    put(&dir.join(TEKKEN_FILE), &vocabulary)?;
    // Last, so that what is not whole is no checkpoint.
    put(&dir.join(Layout::Consolidated.params_file()), &text)?;
    println!(
        "{}: {} layers, {} experts, {} in {} files",
        dir.display(),
        spec.n_layers,
        spec.n_experts(),
        bytes(written.bytes),
        written.files
    );
    Ok(())
}

/// What is written of each tensor of the model, in the order of the forward pass.
fn tensors(spec: &ModelSpec) -> Vec<codes::Tensor> {
    language_tensors(spec)
        .flat_map(|tensor| codes::stored(&tensor))
        .collect()
}

/// Makes the folder, or sees that it is empty.
fn prepare(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    let mut entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    if entries.next().is_some() {
        bail!(
            "{} is not empty: name a folder that is not there yet",
            dir.display()
        );
    }
    Ok(())
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("{} cannot be written", path.display()))
}
