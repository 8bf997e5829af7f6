//! PL-4: no device is in two replicas, and one that serves is placed anew only after a loss of its own or when asked.

use std::collections::BTreeSet;

use tramontane_coordinator::control::command::Command;
use tramontane_coordinator::control::state::{ClusterState, ReplicaEntry};
use tramontane_model::placement::Replica;

use super::{Checked, ensure};

/// From one state to the next; `asked` says that somebody wants a new plan, at whatever time it comes.
pub(in super::super) fn check(
    before: &ClusterState,
    command: &Command,
    after: &ClusterState,
    asked: bool,
) -> Checked {
    let mut used = BTreeSet::new();
    let live = after.replicas.values().filter_map(ReplicaEntry::live);
    for device in live.flat_map(Replica::devices) {
        ensure("PL-4", used.insert(device), || {
            format!("{device:?} is in two replicas")
        })?;
    }
    for (id, entry) in &before.replicas {
        let Some(placement) = entry.live() else { continue };
        if after.replicas.get(id).and_then(ReplicaEntry::live) == Some(placement) {
            continue;
        }
        ensure("PL-4", asked || is_of(command, placement), || {
            format!("{} was given up because of {command:?}", placement.fence())
        })?;
    }
    Ok(())
}

/// Whether a command tells of a loss of the placement's own.
fn is_of(command: &Command, placement: &Replica) -> bool {
    let worker = if let Command::WorkerLost { worker, .. } = command {
        Some(worker)
    } else if let Command::WorkerJoined { info } = command {
        Some(&info.worker)
    } else {
        None
    };
    let lost = worker.is_some_and(|worker| placement.devices().iter().any(|device| device.worker == *worker));
    let failed = if let Command::DeviceFailed { fence, device, .. } = command {
        *fence == placement.fence() && placement.devices().contains(device)
    } else {
        false
    };
    lost || failed
}
