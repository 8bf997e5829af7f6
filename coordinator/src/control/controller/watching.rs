//! What the devices of a placement come to: all ready, or one failed.

use tramontane_model::ids::{DeviceRef, Fence};
use tramontane_model::members::DeviceState;
use tramontane_model::placement::Replica;

use super::members::Members;
use super::placing::{Around, cut};
use super::proposals::Purpose;
use super::turn::Turn;
use crate::control::command::Command;
use crate::control::state::ReplicaEntry;

/// A device that does not even begin with what it was told to hold counts as failed after so long, in milliseconds.
const STUCK_MS: u64 = 30_000;

/// Proposes what the devices of a placement came to: it serves, or one failed.
pub(super) fn watch(turn: &mut Turn<'_>, around: &mut Around<'_>, placement: &Replica) {
    let fence = placement.fence();
    let mut all_ready = true;
    for device in placement.devices() {
        let report = around.members.report(&device.worker);
        let report = report.and_then(|report| report.devices.iter().find(|one| one.index == device.device));
        let reason = match report.map(|report| &report.state) {
            Some(DeviceState::Ready { fence: found }) if *found == fence => continue,
            Some(DeviceState::Loading { fence: found, .. }) if *found == fence => None,
            Some(DeviceState::Failed { fence: found, reason }) if *found == fence => Some(cut(reason)),
            Some(
                DeviceState::Idle
                | DeviceState::Loading { .. }
                | DeviceState::Ready { .. }
                | DeviceState::Failed { .. },
            ) => is_stuck(turn, around.members, device, fence)
                .then(|| format!("it was assigned {fence} {STUCK_MS} ms ago and has not begun to load it")),
            None => None,
        };
        all_ready = false;
        if let Some(reason) = reason {
            let command = Command::DeviceFailed {
                fence,
                device: device.clone(),
                reason,
            };
            around
                .proposals
                .propose(turn, Purpose::Replica(fence.replica), command);
            return;
        }
    }
    let loads = |entry: &ReplicaEntry| entry.serving().is_none();
    if all_ready && turn.state.current(fence).is_some_and(loads) {
        let command = Command::ReplicaServing { fence };
        around
            .proposals
            .propose(turn, Purpose::Replica(fence.replica), command);
    }
}

fn is_stuck(turn: &Turn<'_>, members: &Members, device: &DeviceRef, fence: Fence) -> bool {
    let member = members.admitted.get(&device.worker);
    let assigned = member.and_then(|member| member.assigned.get(&fence.replica));
    assigned
        .is_some_and(|&(generation, at)| generation == fence.generation && turn.now.ms_since(at) >= STUCK_MS)
}
