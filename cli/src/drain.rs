//! `tramontane drain`: move everything off a worker, and wait until it is done.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use tokio::time::{Instant, sleep};
use tramontane_proto::v1::{Drain, Undrain};

use crate::ClientArgs;
use crate::admin::{Change, Operator};
use crate::client::runtime;
use crate::view::Status;

/// How often progress is looked at.
const INTERVAL: Duration = Duration::from_millis(250);

#[derive(Args)]
pub(crate) struct DrainArgs {
    /// Name of the worker.
    worker: String,
    /// Let it be given work again.
    #[arg(long, conflicts_with_all = ["force", "wait"])]
    undo: bool,
    /// Drain it even where the model can be served nowhere else: then nothing serves.
    #[arg(long)]
    force: bool,
    /// Wait until nothing lies on it and what was moved serves elsewhere.
    #[arg(long)]
    wait: bool,
    /// Longest wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "wait")]
    timeout: u64,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: &DrainArgs) -> Result<()> {
    let operator = Operator::new(&args.client)?;
    runtime()?.block_on(drain(args, &operator))
}

async fn drain(args: &DrainArgs, operator: &Operator) -> Result<()> {
    let worker = args.worker.clone();
    if args.undo {
        operator.change(Change::Undrain(Undrain { worker })).await?;
        println!("{} may be given work again", args.worker);
        return Ok(());
    }
    let force = args.force;
    operator.change(Change::Drain(Drain { worker, force })).await?;
    println!("{} drains", args.worker);
    if !args.wait {
        return Ok(());
    }
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let mut told = String::new();
    loop {
        // A leader that changes is no reason to give up.
        let left = match operator.status().await {
            Ok(status) => left(&status, &args.worker),
            Err(error) => Some(format!("the status cannot be had: {error:#}")),
        };
        let Some(left) = left else {
            println!("{} is drained", args.worker);
            return Ok(());
        };
        if left != told {
            println!("{left}");
            told.clone_from(&left);
        }
        if Instant::now() >= deadline {
            bail!("{} is not drained within {} s: {left}", args.worker, args.timeout);
        }
        sleep(INTERVAL).await;
    }
}

/// What is still to happen until a worker is drained; nothing if it is.
fn left(status: &Status, worker: &str) -> Option<String> {
    let node = status.nodes.iter().find(|node| node.id == worker);
    match node.map_or("gone", |node| node.state.as_str()) {
        "drained" | "left" | "lost" | "gone" => {}
        state => return Some(format!("{worker} is {state}")),
    }
    let loading = status
        .replicas
        .iter()
        .find(|replica| replica.phase == "loading")?;
    let so_far = loading.loading.as_ref();
    let so_far = so_far.map_or_else(String::new, |so_far| format!(", {so_far}"));
    Some(format!(
        "replica {} generation {} is loading{so_far}",
        loading.id, loading.generation
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(state: &str, phase: &str, loading: &Value) -> Status {
        let status = json!({
            "model": "m", "leader": 1, "term": 1, "replicas_serving": 0,
            "nodes": [{"id": "w1", "role": "worker", "pid": 1, "address": "a:1", "state": state}],
            "replicas": [{"id": 2, "generation": 5, "phase": phase, "stages": [],
                "kv": {"block_tokens": 1, "blocks": 1}, "loading": loading}],
        });
        serde_json::from_value(status).expect("a status")
    }

    #[test]
    fn it_is_drained_once_nothing_lies_on_it_and_what_was_moved_serves() {
        let half = json!({"loaded_bytes": 1 << 20, "total_bytes": 2 << 20, "bytes_per_second": 1 << 19,
            "seconds_left": 2});
        for (state, phase, expected) in [
            ("joined", "serving", Some("w1 is joined")),
            ("draining", "serving", Some("w1 is draining")),
            (
                "drained",
                "loading",
                Some("replica 2 generation 5 is loading, 1.0 MiB of 2.0 MiB at 512.0 KiB/s, 2 s left"),
            ),
            ("drained", "serving", None),
            ("left", "serving", None),
        ] {
            assert_eq!(left(&status(state, phase, &half), "w1").as_deref(), expected);
        }
    }
}
