//! `tramontane status`: who is there, who leads, what lies where.

use std::fmt;

use anyhow::{Context, Result};
use clap::Args;

use crate::ClientArgs;
use crate::amounts::bytes;
use crate::client::{Client, runtime};
use crate::table;
use crate::view::{Loading, Node, Replica, Status};

#[derive(Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Print the status as JSON, as the cluster gives it.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &StatusArgs) -> Result<()> {
    let client = Client::new(&args.client.url, args.client.tls.identity()?)?;
    let text = runtime()?.block_on(client.get("/cluster/status"))?;
    if args.json {
        println!("{text}");
        return Ok(());
    }
    print_status(&serde_json::from_str(&text).context("the status is not what this program expects")?);
    Ok(())
}

pub(crate) fn replan(args: &ClientArgs) -> Result<()> {
    let client = Client::new(&args.url, args.tls.identity()?)?;
    let answer = runtime()?.block_on(client.post("/cluster/replan", "{}".to_owned()))?;
    println!("{answer}");
    Ok(())
}

/// Prints who is there and what lies where.
pub(crate) fn print_status(status: &Status) {
    let leader = status
        .leader
        .map_or_else(|| "no leader".to_owned(), |id| format!("leader coordinator-{id}"));
    println!("model {}, {leader}, term {}", status.model, status.term);
    println!();
    let mut rows = vec![
        [
            "NODE",
            "ROLE",
            "PID",
            "ADDRESS",
            "HTTP",
            "STATE",
            "DEVICE",
            "HELD / PLANNED / MEMORY",
        ]
        .map(String::from),
    ];
    for node in &status.nodes {
        let state = if node.standby {
            format!("{}, standby", node.state)
        } else {
            node.state.clone()
        };
        let pid = node.pid.to_string();
        let mut first = [
            node.id.clone(),
            node.role.clone(),
            pid,
            node.address.clone(),
            node.http_address.clone().unwrap_or_default(),
            state,
            String::new(),
            String::new(),
        ];
        if node.devices.is_empty() {
            rows.push(first);
            continue;
        }
        for device in &node.devices {
            first[6] = format!("{}: {} ({})", device.index, device.adapter, device.state);
            let of = [device.held_bytes, device.planned_bytes, device.memory_bytes];
            first[7] = of.map(bytes).join(" / ");
            rows.push(std::mem::take(&mut first));
        }
    }
    table::print(&rows);
    println!();
    print_standbys(&status.nodes);
    for replica in &status.replicas {
        print_placement(replica);
    }
    println!("{}", replicas(status));
    if let Some(missing) = &status.missing {
        println!("not serving: {missing}");
    }
}

/// How many replicas serve, and how many there should be.
fn replicas(status: &Status) -> String {
    let serving = status.replicas_serving;
    let wanted = match status.replicas_wanted {
        Some(wanted) => format!("of {wanted} wanted"),
        None => format!("of {}, as many as fit", status.replicas.len()),
    };
    match &status.replicas_short {
        Some(why) => format!("replicas serving: {serving} {wanted}: {why}"),
        None => format!("replicas serving: {serving} {wanted}"),
    }
}

/// Prints which devices keep copies of what.
fn print_standbys(nodes: &[Node]) {
    let devices = nodes
        .iter()
        .flat_map(|node| node.devices.iter().map(move |device| (node, device)));
    let mut rows = vec![["STANDBY", "LOADED", "COPIES"].map(String::from)];
    for (node, device) in devices.filter(|(_, device)| !device.standby.is_empty()) {
        let loaded = format!(
            "{} / {}",
            bytes(device.standby_bytes),
            bytes(device.standby_total_bytes)
        );
        rows.push([
            format!("{}/{}", node.id, device.index),
            loaded,
            device.standby.join("; "),
        ]);
    }
    if rows.len() > 1 {
        table::print(&rows);
        println!();
    }
}

/// Prints where a replica's layers and experts lie.
fn print_placement(replica: &Replica) {
    for line in summary(replica) {
        println!("{line}");
    }
    let mut rows = vec![["STAGE", "LAYERS", "OWNER", "EXPERTS"].map(String::from)];
    for (index, stage) in replica.stages.iter().enumerate() {
        let group = |group: &crate::view::Group| {
            format!("{}..{} on {}", group.experts.0, group.experts.1, group.holder)
        };
        let groups: Vec<_> = stage.groups.iter().map(group).collect();
        let layers = format!("{}..{}", stage.layers.0, stage.layers.1);
        rows.push([index.to_string(), layers, stage.owner.clone(), groups.join("; ")]);
    }
    table::print(&rows);
}

/// How far a load is, for people.
impl fmt::Display for Loading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", bytes(self.loaded_bytes), bytes(self.total_bytes))?;
        match self.seconds_left {
            Some(left) if self.bytes_per_second > 0 => {
                write!(f, " at {}/s, {left} s left", bytes(self.bytes_per_second))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// What a replica does, in lines.
fn summary(replica: &Replica) -> Vec<String> {
    let Replica {
        id,
        generation,
        phase,
        kv,
        ..
    } = replica;
    let tokens = u64::from(kv.blocks) * u64::from(kv.block_tokens);
    let format = kv.format.iter().map(|format| format!(" in {format}"));
    let format: String = format.collect();
    let mut lines = vec![format!(
        "replica {id}, generation {generation}: {phase}, KV cache of {tokens} tokens{format}"
    )];
    lines.extend(replica.reason.iter().map(|reason| format!("  {reason}")));
    lines.extend(replica.loading.iter().map(|loading| format!("  {loading}")));
    if let Some(load) = &replica.load {
        lines.push(format!(
            "  {} sequences running, {} waiting, {} of {} KV blocks used",
            load.running, load.waiting, load.kv_blocks_used, load.kv_blocks_total
        ));
    }
    match &replica.worst_loss {
        Some(loss) if loss.read_bytes > 0 => lines.push(format!(
            "  after the loss of {} it reads {} of weights anew; of any other worker no more",
            loss.worker,
            bytes(loss.read_bytes)
        )),
        Some(_) => lines.push("  after the loss of any one worker it reads no weights anew".to_owned()),
        None => {}
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_replica_that_loads_shows_rate_and_time_left() {
        let mut replica = json!({"id": 2, "generation": 5, "phase": "loading", "stages": [],
            "kv": {"block_tokens": 16, "blocks": 4, "format": "f16"}, "loading": {"loaded_bytes": 3_u64 << 30,
            "total_bytes": 8_u64 << 30, "bytes_per_second": 1 << 30, "seconds_left": 5}});
        let lines = |replica| summary(&serde_json::from_value::<Replica>(replica).expect("a replica"));
        let first = "replica 2, generation 5: loading, KV cache of 64 tokens in f16";
        assert_eq!(
            lines(replica.clone()),
            [first, "  3.0 GiB of 8.0 GiB at 1.0 GiB/s, 5 s left"]
        );
        // One device has read nothing yet.
        replica["loading"]["seconds_left"] = json!(null);
        assert_eq!(lines(replica), [first, "  3.0 GiB of 8.0 GiB"]);
    }
}
