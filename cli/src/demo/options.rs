//! What a demo is asked for on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::amounts::parse_bytes;

/// Memory of a device where nothing is said: modest, as many workers share a machine.
const WORKER_MEMORY_BYTES: u64 = 512 << 20;
/// Most of each: they are processes on one machine.
const MAX_WORKERS: i64 = 64;
const MAX_DEVICES: i64 = 16;

#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Coordinators: 1, 3 or 5.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = parse_coordinators)]
    pub(super) coordinators: u32,
    /// Workers.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=MAX_WORKERS))]
    pub(super) workers: u32,
    /// Most replicas of the model; without it, as many as fit.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) replicas: Option<u32>,
    /// Pipeline stages that are wished for; the planner does what fits.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) stages: u32,
    /// Expert groups of each stage that are wished for; the planner does what fits.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) expert_groups: u32,
    /// Devices of each worker.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_DEVICES))]
    pub(super) devices_per_worker: u32,
    /// Memory of each device of one worker, as 1=512MiB for worker-1; may be given for several workers.
    #[arg(long, value_name = "I=BYTES")]
    pub(super) worker_memory: Vec<WorkerMemory>,
    /// Directory of the checkpoint; without it, the miniature model within this program.
    #[arg(long, value_name = "DIR")]
    pub(super) model: Option<PathBuf>,
    /// Where the first coordinator serves HTTP; without it, on a free port of loopback.
    #[arg(long, value_name = "ADDR", value_parser = parse_loopback)]
    pub(super) http: Option<SocketAddr>,
    /// Stay up until interrupted. Nothing is asked then but the prompts that are given. A node that ends is started again
    /// after 2 s, as systemd would, with its id and data directory.
    #[arg(long)]
    pub(super) serve: bool,
    /// With --serve: leave a node that ended dead.
    #[arg(long, requires = "serve")]
    pub(super) no_restart: bool,
    /// Where configuration files, logs and the cluster's state are kept; without it, in a temporary directory.
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Longest wait for the cluster to be ready.
    #[arg(long, value_name = "SECONDS", default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    ready_within_s: u64,
    /// What to ask; without it, a few questions that the miniature model knows answers to.
    #[arg(value_name = "PROMPT")]
    pub(super) prompts: Vec<String>,
}

impl DemoArgs {
    pub(super) fn ready_within(&self) -> Duration {
        Duration::from_secs(self.ready_within_s)
    }

    /// The memory of every device of every worker.
    pub(super) fn devices(&self) -> Result<Vec<Vec<Option<u64>>>> {
        let mut memory = vec![None; self.workers as usize];
        for given in &self.worker_memory {
            let WorkerMemory { worker, bytes } = *given;
            let Some(place) = memory.get_mut(worker - 1) else {
                bail!(
                    "--worker-memory {worker}={bytes}: there is no worker-{worker}, workers are numbered from 1 to {}",
                    self.workers
                );
            };
            if place.replace(bytes).is_some() {
                bail!("--worker-memory names worker {worker} twice");
            }
        }
        let devices = |memory: Option<u64>| {
            let bytes = memory.unwrap_or(WORKER_MEMORY_BYTES);
            vec![Some(bytes); self.devices_per_worker as usize]
        };
        Ok(memory.into_iter().map(devices).collect())
    }
}

/// `1=512MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WorkerMemory {
    /// At least 1.
    worker: usize,
    bytes: u64,
}

impl FromStr for WorkerMemory {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let Some((worker, bytes)) = text.split_once('=') else {
            return Err("it must be a worker's number and its memory, as 1=512MiB".to_owned());
        };
        let number = worker.parse().ok().filter(|&number: &usize| number > 0);
        let worker = number.ok_or_else(|| format!("{worker:?} is no worker: they are numbered from 1"))?;
        let bytes = parse_bytes(bytes)?;
        Ok(Self { worker, bytes })
    }
}

fn parse_coordinators(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count @ (1 | 3 | 5)) => Ok(count),
        Ok(_) | Err(_) => Err("a cluster has 1, 3 or 5 coordinators".to_owned()),
    }
}

fn parse_loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "it must be an address and a port, as 127.0.0.1:8080".to_owned())?;
    if !address.ip().is_loopback() {
        return Err(
            "a demo has no certificates, so it serves on loopback only, as 127.0.0.1:8080".to_owned(),
        );
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        demo: DemoArgs,
    }

    fn parse(words: &[&str]) -> Result<DemoArgs, String> {
        let words = std::iter::once("demo").chain(words.iter().copied());
        let parsed = Line::try_parse_from(words);
        parsed.map(|line| line.demo).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let args = parse(&[]).expect("valid");
        assert_eq!((args.coordinators, args.workers, args.replicas), (3, 4, None));
        assert_eq!(
            (args.stages, args.expert_groups, args.devices_per_worker),
            (2, 2, 1)
        );
        assert!(!args.serve && args.prompts.is_empty());
        assert_eq!(
            args.devices().expect("valid"),
            vec![vec![Some(WORKER_MEMORY_BYTES)]; 4]
        );
    }

    #[test]
    fn memory_is_given_by_number() {
        let args = parse(&[
            "--workers",
            "3",
            "--devices-per-worker",
            "2",
            "--worker-memory",
            "1=64MiB",
            "--worker-memory",
            "3=1000",
            "a prompt",
            "another",
        ]);
        let args = args.expect("valid");
        assert_eq!(args.prompts, ["a prompt", "another"]);
        let devices = args.devices().expect("valid");
        assert_eq!(devices[0], [Some(64 << 20); 2]);
        assert_eq!(devices[1], [Some(WORKER_MEMORY_BYTES); 2]);
        assert_eq!(devices[2], [Some(1000); 2]);
    }

    #[test]
    fn bad_values_say_what_would_be_right() {
        for (words, part) in [
            (&["--worker-memory", "512MiB"][..], "1=512MiB"),
            (&["--worker-memory", "0=1GiB"], "numbered from 1"),
            (&["--worker-memory", "x=1GiB"], "numbered from 1"),
            (&["--worker-memory", "1=lots"], "536870912 or 512MiB"),
            (&["--worker-memory", "1=0"], "between 1 and"),
            (&["--coordinators", "2"], "1, 3 or 5"),
            (&["--coordinators", "x"], "1, 3 or 5"),
            (&["--workers", "0"], "1..=64"),
            (&["--replicas", "0"], "1..=64"),
            (&["--http", "0.0.0.0:8080"], "loopback"),
            (&["--http", "8080"], "127.0.0.1:8080"),
            (&["--no-restart"], "--serve"),
        ] {
            let error = parse(words).err().expect("refused");
            assert!(error.contains(part), "{words:?}: {error}");
        }
    }

    #[test]
    fn workers_that_are_not_there_get_no_memory() {
        let args = parse(&["--worker-memory", "5=1GiB"]).expect("parses");
        let error = args.devices().expect_err("refused").to_string();
        assert!(error.contains("worker-5") && error.contains("1 to 4"), "{error}");
        let twice = parse(&["--worker-memory", "1=1GiB", "--worker-memory", "1=2GiB"]).expect("parses");
        assert!(twice.devices().is_err());
    }
}
