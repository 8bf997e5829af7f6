//! PL-2 with the copies that devices keep: they fit beside what the device computes with, and are of what other workers
//! compute with.

use tramontane_coordinator::control::command::Command;
use tramontane_coordinator::control::footprint::ModelFootprint;
use tramontane_coordinator::control::state::{ClusterState, Phase, ReplicaEntry};
use tramontane_model::standby::Share;

use super::pl2::bytes;
use super::{Checked, ensure};

/// From one state to the next.
pub(in super::super) fn check(
    model: &ModelFootprint,
    before: &ClusterState,
    after: &ClusterState,
) -> Checked {
    let live = || after.replicas.values().filter_map(ReplicaEntry::live);
    for standby in &after.standbys {
        let device = &standby.device;
        let has = after.device(device).map_or(0, |info| info.memory_bytes);
        let computes = live().find(|replica| replica.devices().contains(device));
        let needs = computes.map_or(0, |replica| bytes(model, replica, device))
            + standby
                .shares
                .iter()
                .map(|share| weights(model, share))
                .sum::<u64>();
        ensure("PL-2", needs <= has, || {
            format!("{device:?} computes with and keeps {needs} bytes, it has {has}")
        })?;
        if before.standbys == after.standbys {
            continue;
        }
        for share in &standby.shares {
            let known = before
                .standbys
                .iter()
                .any(|one| one.device == *device && one.shares.contains(share));
            let of_others = live()
                .flat_map(|replica| replica.places())
                .any(|place| place.share == *share && place.device.worker != device.worker);
            ensure("PL-2", known || of_others, || {
                format!("{device:?} keeps {share}, which no other worker computes with")
            })?;
        }
    }
    Ok(())
}

/// Bytes of weights of a share.
fn weights(model: &ModelFootprint, share: &Share) -> u64 {
    let experts = share.experts().map_or(0, |experts| u64::from(experts.len()));
    let layers = share.layers().iter().map(|layer| &model.layers[layer as usize]);
    let owner = |bytes| if share.owned() { bytes } else { 0 };
    let mut all: u64 = layers
        .map(|layer| owner(layer.owner_bytes) + experts * layer.expert_bytes)
        .sum();
    if share.layers().start() == 0 {
        all += owner(model.embedding_bytes);
    }
    if share.layers().end() as usize == model.layers.len() {
        all += owner(model.head_bytes);
    }
    all
}

/// Whether a replica that lost a worker is placed so that nobody has to read weights.
pub(in super::super) fn is_promotion(before: &ClusterState, command: &Command, after: &ClusterState) -> bool {
    let Command::Place { replica, .. } = command else {
        return false;
    };
    let old = before.replicas.get(&replica.id).map(|entry| &entry.phase);
    let Some(Phase::Broken { placement: old, .. }) = old else {
        return false;
    };
    let placed = after.replicas.get(&replica.id).and_then(ReplicaEntry::live) == Some(replica);
    let lost = old
        .devices()
        .into_iter()
        .any(|device| before.device(device).is_none());
    placed
        && lost
        && replica.places().all(|place| {
            let had = old.shares_of(place.device).any(|share| share == place.share);
            had || before.copies(place.device).contains(&place.share)
        })
}
