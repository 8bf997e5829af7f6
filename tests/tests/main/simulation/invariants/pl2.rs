//! PL-2: no device is given more bytes than it reported.

use tramontane_coordinator::control::footprint::ModelFootprint;
use tramontane_coordinator::control::state::ClusterState;
use tramontane_model::ids::DeviceRef;
use tramontane_model::placement::{KvFormat, Replica};

use super::{Checked, ensure};

pub(in super::super) fn check(model: &ModelFootprint, state: &ClusterState, replica: &Replica) -> Checked {
    for device in replica.devices() {
        let has = state.device(device).map_or(0, |info| info.memory_bytes);
        let needs = bytes(model, replica, device);
        ensure("PL-2", needs <= has, || {
            format!("{} gives {device:?} {needs} bytes, it has {has}", replica.fence())
        })?;
    }
    Ok(())
}

/// Bytes that a placement asks of a device: weights, cache and scratch.
pub(super) fn bytes(model: &ModelFootprint, replica: &Replica, device: &DeviceRef) -> u64 {
    let tokens = u64::from(replica.kv.blocks) * u64::from(replica.kv.block_tokens);
    let mut bytes = 0;
    for (index, stage) in replica.stages.iter().enumerate() {
        let layers = || stage.layers.iter().map(|layer| &model.layers[layer as usize]);
        if stage.owner == *device {
            let token = |bytes: u64| match replica.kv.format {
                KvFormat::F32 => bytes,
                KvFormat::F16 => bytes / 2,
            };
            let own = layers().map(|layer| layer.owner_bytes + token(layer.kv_token_bytes) * tokens);
            bytes += own.sum::<u64>() + model.scratch.owner_bytes;
            bytes += if index == 0 { model.embedding_bytes } else { 0 };
            bytes += if index + 1 == replica.stages.len() {
                model.head_bytes
            } else {
                0
            };
        }
        let held = stage.groups.iter().filter(|group| group.holder == *device);
        let experts: u64 = held.map(|group| u64::from(group.experts.len())).sum();
        bytes += experts * layers().map(|layer| layer.expert_bytes).sum::<u64>();
        if experts > 0 && stage.owner != *device {
            bytes += model.scratch.holder_bytes;
        }
    }
    bytes
}
