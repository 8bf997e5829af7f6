//! `tramontane`: the command line of a cluster.

mod admin;
mod amounts;
mod bench;
mod checkpoint;
mod client;
mod cluster;
mod demo;
mod drain;
mod embedded;
mod events;
mod layout;
mod logging;
mod node;
mod plan;
mod ports;
mod process;
mod serve;
mod sse;
mod status;
mod table;
mod telemetry;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use tramontane_proto::net::{Identity, TlsFiles};

/// Serve Mistral Large 3 across an organisation's own machines.
#[derive(Parser)]
#[command(name = "tramontane", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a coordinator until interrupted.
    Coordinator(process::NodeArgs),
    /// Run a worker until interrupted.
    Worker(process::NodeArgs),
    /// Serve a model from this machine alone, in one process.
    Serve(serve::ServeArgs),
    /// Start a cluster of real processes on this machine, ask it a few questions, and stop it.
    Demo(demo::DemoArgs),
    /// Measure tokens per second and time to first token.
    Bench(bench::BenchArgs),
    /// Show members, leader, placement and devices of a cluster.
    Status(status::StatusArgs),
    /// Sum and verify a checkpoint's files.
    Checkpoint(checkpoint::CheckpointArgs),
    /// Show where a model would go on machines that are described in a file, without weights.
    Plan(plan::PlanArgs),
    /// Plan the model anew over all workers that have joined.
    Replan(ClientArgs),
    /// Move everything off a worker, so that it can be stopped.
    Drain(drain::DrainArgs),
    /// Add, remove and list coordinators.
    Cluster(cluster::ClusterArgs),
}

/// Where a cluster is, and who asks.
#[derive(Args, Clone)]
struct ClientArgs {
    /// HTTP address of any coordinator.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    #[command(flatten)]
    tls: TlsArgs,
}

/// Certificates for a cluster beyond this machine; all three or none.
#[derive(Args, Clone)]
struct TlsArgs {
    /// Certificate authority of the cluster (PEM).
    #[arg(long, requires_all = ["certificate", "key"])]
    ca: Option<PathBuf>,
    /// Certificate of whoever asks (PEM).
    #[arg(long, requires_all = ["ca", "key"])]
    certificate: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, requires_all = ["ca", "certificate"])]
    key: Option<PathBuf>,
}

impl TlsArgs {
    fn identity(&self) -> Result<Identity> {
        let files = match (&self.ca, &self.certificate, &self.key) {
            (Some(ca), Some(certificate), Some(key)) => Some(TlsFiles {
                ca: ca.clone(),
                certificate: certificate.clone(),
                key: key.clone(),
            }),
            (_, _, _) => None,
        };
        Ok(Identity::from_config(files.as_ref())?)
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Coordinator(args) => process::coordinator(&args),
        Command::Worker(args) => process::worker(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Checkpoint(args) => checkpoint::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Replan(args) => status::replan(&args),
        Command::Drain(args) => drain::run(&args),
        Command::Cluster(args) => cluster::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tramontane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
