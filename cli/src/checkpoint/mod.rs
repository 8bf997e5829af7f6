//! `tramontane checkpoint`: what is done to a checkpoint's files before they are served.

mod sums;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args)]
pub(crate) struct CheckpointArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write manifest.json: the SHA-256 of every file and tensor. Workers check what they load against it.
    Manifest(ManifestArgs),
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
        Command::Verify(args) => sums::verify(&args.dir),
    }
}
