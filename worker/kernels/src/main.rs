//! `tramontane-bench-kernels`: measures a device's kernels, without the rest of Tramontane.

use std::io::stdout;
use std::process::ExitCode;

use clap::Parser;
use tramontane_kernels::bench::{self, Options};

/// Measure every op of a model's layers on a Vulkan device, against what the device can do at most.
#[derive(Parser)]
#[command(name = "tramontane-bench-kernels", version, about)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    match bench::run(&Cli::parse().options, &mut stdout().lock()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tramontane-bench-kernels: {error}");
            ExitCode::FAILURE
        }
    }
}
