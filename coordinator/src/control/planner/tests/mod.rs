//! The planner against its promises.

mod formats;
mod kept;
mod large;
mod outlook;
mod proven;
mod shapes;
mod standbys;

use tramontane_model::ids::{DeviceIndex, DeviceRef, Generation, ReplicaId, WorkerId};
use tramontane_model::placement::{KvFormat, Replica};
use tramontane_model::step::StepBounds;

use super::{Candidate, Missing, Plan, Request, Wishes, plan};
use crate::control::footprint::{DeviceLimits, LayerFootprint, ModelFootprint, ScratchModel, verify};

const WISHES: Wishes = Wishes {
    stages: None,
    expert_groups: None,
    kv_block_tokens: 16,
    kv_tokens_min: 64,
    kv_tokens_max: 1024,
    kv_format: None,
};

fn device(worker: &str, index: u32) -> DeviceRef {
    DeviceRef {
        worker: WorkerId::new(worker).unwrap(),
        device: DeviceIndex(index),
    }
}

fn candidate(worker: &str, index: u32, memory_bytes: u64) -> Candidate {
    Candidate {
        device: device(worker, index),
        memory_bytes,
        max_binding_bytes: 1 << 40,
        kind: "test".to_owned(),
        is_cpu: true,
    }
}

/// One device of each of so many workers.
fn workers(memory: &[u64]) -> Vec<Candidate> {
    let named = (1..).zip(memory);
    named
        .map(|(number, &bytes)| candidate(&format!("w{number}"), 0, bytes))
        .collect()
}

/// A small model: the first layer dense, 16 experts in the others.
fn footprint(layers: usize) -> ModelFootprint {
    let layer = |index: usize| LayerFootprint {
        owner_bytes: 1000,
        expert_bytes: if index == 0 { 0 } else { 100 },
        kv_token_bytes: 1,
    };
    ModelFootprint {
        layers: (0..layers).map(layer).collect(),
        n_experts: 16,
        experts_per_token: 2,
        embedding_bytes: 500,
        head_bytes: 500,
        tied_bytes: 0,
        scratch: ScratchModel {
            head_bytes: 0,
            owner_bytes: 50,
            holder_bytes: 20,
        },
    }
}

fn run(
    footprint: &ModelFootprint,
    candidates: &[Candidate],
    wishes: Wishes,
    previous: Option<&Replica>,
) -> Result<Plan, Missing> {
    let request = Request {
        id: ReplicaId(1),
        generation: Generation(previous.map_or(0, |one| one.generation.0) + 1),
        footprint,
        candidates,
        wishes,
        steps: StepBounds::default(),
        previous,
        standbys: &[],
    };
    let found = plan(&request);
    if let Ok(Plan { replica, .. }) = &found {
        check(footprint, candidates, replica);
        assert_eq!(plan(&request), found, "equal requests, other plans");
    }
    found
}

fn check(footprint: &ModelFootprint, candidates: &[Candidate], replica: &Replica) {
    replica
        .validate(
            footprint.n_layers(),
            footprint.n_experts,
            footprint.first_moe_layer(),
        )
        .unwrap();
    let limits = |device: &DeviceRef| {
        let known = candidates.iter().find(|one| one.device == *device)?;
        Some(DeviceLimits {
            memory_bytes: known.memory_bytes,
            max_binding_bytes: known.max_binding_bytes,
        })
    };
    verify(footprint, replica, limits).unwrap();
}

fn layers(replica: &Replica) -> Vec<u32> {
    replica.stages.iter().map(|stage| stage.layers.len()).collect()
}

fn experts(replica: &Replica, stage: usize) -> Vec<u32> {
    let groups = replica.stages[stage].groups.iter();
    groups.map(|group| group.experts.len()).collect()
}
