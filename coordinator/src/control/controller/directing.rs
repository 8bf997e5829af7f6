//! What each worker is told: hold this, free that.

use std::collections::BTreeMap;

use tramontane_model::ids::{DeviceRef, Fence, Generation, ReplicaId, WorkerId};
use tramontane_model::placement::Replica;
use tramontane_proto::Directive;

use super::members::{Member, Members};
use super::standbys::copies_of;
use super::turn::Turn;
use crate::control::state::{ClusterState, Phase};

/// Tells every worker with a session what it has not been told yet.
pub(super) fn direct(turn: &mut Turn<'_>, members: &mut Members) {
    for (worker, member) in &mut members.admitted {
        for (&id, entry) in &turn.state.replicas {
            let told = member.assigned.get(&id).map(|&(generation, _)| generation);
            let Some(placement) = entry.live() else {
                continue;
            };
            let fence = placement.fence();
            if entry.uses(worker)
                && told != Some(fence.generation)
                && let Some(peers) = peers(turn.state, placement)
            {
                let replica = placement.clone();
                member.assign(turn, fence, Directive::Assign { replica, peers });
            }
        }
        // After the assignments: what a device is to hold next may keep some of what it holds.
        member.stand_by(turn, copies_of(turn.state, worker));
        let told: Vec<(ReplicaId, Generation)> = member
            .assigned
            .iter()
            .map(|(&id, &(generation, _))| (id, generation))
            .collect();
        for (replica, generation) in told {
            if !is_kept(turn.state, replica, worker) {
                member.assigned.remove(&replica);
                member.release(turn, Fence { replica, generation });
            }
        }
        release_reported(turn, worker, member);
    }
}

/// Whether a worker is to go on with what it was told of a replica. One that broke is kept until the next placement,
/// unless another replica has taken its devices.
fn is_kept(state: &ClusterState, replica: ReplicaId, worker: &WorkerId) -> bool {
    let Some(entry) = state.replicas.get(&replica) else {
        return false;
    };
    match &entry.phase {
        Phase::Loading { .. } | Phase::Serving { .. } => entry.uses(worker),
        Phase::Broken { placement, .. } => {
            let taken = state.taken_from(replica);
            let devices = placement.devices().into_iter();
            let mut own = devices.filter(|device| device.worker == *worker).peekable();
            own.peek().is_some() && own.all(|device| !taken.contains_key(device))
        }
        Phase::Unplaceable { .. } => false,
    }
}

/// Addresses of all workers of a placement; `None` if one is no member.
fn peers(state: &ClusterState, placement: &Replica) -> Option<BTreeMap<WorkerId, String>> {
    let address = |device: &DeviceRef| {
        let entry = state.workers.get(&device.worker)?;
        Some((device.worker.clone(), entry.info.address.clone()))
    };
    placement.devices().into_iter().map(address).collect()
}

/// Frees what devices say they work for and should not.
fn release_reported(turn: &mut Turn<'_>, worker: &WorkerId, member: &mut Member) {
    let Some(report) = &member.report else { return };
    let fences: Vec<Fence> = report
        .devices
        .iter()
        .filter_map(|device| {
            let fence = device.state.fence()?;
            let at = DeviceRef {
                worker: worker.clone(),
                device: device.index,
            };
            (!is_wanted(turn.state, fence, &at)).then_some(fence)
        })
        .collect();
    for fence in fences {
        member.release(turn, fence);
        // A worker with a later generation than there is has ignored what it was told: tell it again.
        let told = member.assigned.get(&fence.replica);
        if told.is_some_and(|&(generation, _)| generation < fence.generation) {
            member.assigned.remove(&fence.replica);
        }
    }
}

/// Whether a device may go on holding a placement. One that broke is held until the next: much of it may stay.
fn is_wanted(state: &ClusterState, fence: Fence, device: &DeviceRef) -> bool {
    state.current(fence).is_some_and(|entry| match &entry.phase {
        Phase::Loading { placement } | Phase::Serving { placement } | Phase::Broken { placement, .. } => {
            placement.devices().contains(device)
        }
        Phase::Unplaceable { .. } => false,
    })
}
