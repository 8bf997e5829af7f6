//! `tramontane checkpoint`: what is done to a checkpoint's files before they are served.

mod sums;
mod synth;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

#[derive(Args)]
pub(crate) struct CheckpointArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write manifest.json: the SHA-256 of every file and tensor. Workers check what they load against it.
    Manifest(ManifestArgs),
    /// Write a checkpoint of real dimensions with random weights.
    Synth(synth::SynthArgs),
    /// Read every file and compare it with manifest.json.
    Verify(VerifyArgs),
}

#[derive(Args)]
struct ManifestArgs {
    /// The checkpoint's folder.
    dir: PathBuf,
    /// Write it in the place of one that is there.
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct VerifyArgs {
    /// The checkpoint's folder.
    dir: PathBuf,
}

pub(crate) fn run(args: &CheckpointArgs) -> Result<()> {
    match &args.command {
        Command::Manifest(args) => sums::manifest(&args.dir, args.force),
        Command::Synth(args) => synth::run(args),
        Command::Verify(args) => sums::verify(&args.dir),
    }
}

/// Bytes, their rate and the time that is left; on a terminal only.
fn bar(total: u64) -> ProgressBar {
    let template = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style)
}
