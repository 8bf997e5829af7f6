//! PL-1: stages tile the layers, expert groups tile the experts of a stage.

use tramontane_coordinator::control::footprint::ModelFootprint;
use tramontane_model::placement::Replica;

use super::{Checked, ensure};

pub(in super::super) fn check(model: &ModelFootprint, replica: &Replica) -> Checked {
    let layers: Vec<u32> = replica
        .stages
        .iter()
        .flat_map(|stage| stage.layers.iter())
        .collect();
    let all: Vec<u32> = (0..model.layers.len() as u32).collect();
    ensure("PL-1", layers == all, || {
        format!("{} has layers {layers:?}", replica.fence())
    })?;
    for stage in &replica.stages {
        let is_moe = stage
            .layers
            .iter()
            .any(|layer| model.layers[layer as usize].expert_bytes > 0);
        let experts: Vec<u32> = stage
            .groups
            .iter()
            .flat_map(|group| group.experts.iter())
            .collect();
        let all: Vec<u32> = (0..if is_moe { model.n_experts } else { 0 }).collect();
        ensure("PL-1", experts == all, || {
            format!("{} has a stage with experts {experts:?}", replica.fence())
        })?;
    }
    Ok(())
}
