//! `tramontane checkpoint synth`: a checkpoint of real dimensions with random weights.
//!
//! It answers nonsense. It is for what depends on sizes alone: whether a machine can hold and bind the parts of a model,
//! how fast they load, how fast they are computed. Equal arguments give equal files.

mod codes;
mod params;
mod random;
mod vocabulary;
mod write;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use tramontane_model::layout::Layout;
use tramontane_model::spec::{ModelSpec, Quantization};
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

/// Models whose dimensions are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// Mistral Large 3, 675 billion parameters.
    #[value(name = "mistral-large-3")]
    MistralLarge3,
    /// Mistral Small 4, 119 billion.
    #[value(name = "small-4")]
    Small4,
    /// Ministral 3 of 8 billion.
    #[value(name = "ministral-8b")]
    Ministral8b,
}

/// Weight formats as they are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Everything in BF16.
    Bf16,
    /// FP8 with one scale per block.
    Fp8,
    /// FP8 with one scale per tensor.
    Fp8Tensor,
    /// NVFP4: feed-forwards and experts in four bits, the rest in BF16.
    Nvfp4,
}

impl Format {
    /// What a spec calls it.
    pub(crate) fn quantization(self) -> Quantization {
        match self {
            Self::Bf16 => Quantization::None,
            Self::Fp8 => Quantization::Fp8Block,
            Self::Fp8Tensor => Quantization::Fp8Tensor,
            Self::Nvfp4 => Quantization::Nvfp4,
        }
    }
}

pub(super) fn run(args: &SynthArgs) -> Result<()> {
    let dir = &args.dir;
    let params = params::of(args.shape, args.layers, args.experts, args.format)?;
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
