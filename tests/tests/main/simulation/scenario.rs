//! What a seed decides before anything runs: the model, the machines, the limits.

use tramontane_coordinator::config::LeaseConfig;
use tramontane_coordinator::control::footprint::{LayerFootprint, ModelFootprint, ScratchModel};
use tramontane_coordinator::control::planner::Wishes;
use tramontane_coordinator::control::state::ModelEntry;
use tramontane_coordinator::gateway::GatewayOptions;
use tramontane_model::step::StepBounds;
use tramontane_sim::Rng;

pub(super) const LAYERS: u32 = 4;
pub(super) const VOCAB: u32 = 50;
/// Below what the smallest cache holds, so that no placement cuts an answer short.
pub(super) const MAX_POSITIONS: u32 = 56;
pub(super) const HEARTBEAT_MS: u64 = 250;
pub(super) const LEASE_MS: u64 = 2000;
/// A tick of raft and of the controller.
pub(super) const TICK_MS: u64 = 50;

/// One seed's cluster.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) coordinators: u64,
    /// Bytes of each worker's device; the last one joins late.
    pub(super) memory: Vec<u64>,
    pub(super) replicas: Option<u32>,
    pub(super) wishes: Wishes,
    /// Whether spare memory is filled with copies.
    pub(super) standbys: bool,
    pub(super) steps: StepBounds,
    /// Whether operators ask to plan anew now and then.
    pub(super) replans: bool,
    pub(super) requests: usize,
    pub(super) fault_ms: u64,
}

impl Scenario {
    pub(super) fn new(rng: &mut Rng) -> Self {
        let workers = 3 + rng.below(3);
        let memory = (0..workers).map(|_| 4_500 + rng.below(7_500)).collect();
        let mut scenario = Self {
            coordinators: match rng.below(10) {
                0 => 1,
                1 => 5,
                _ => 3,
            },
            memory,
            replicas: [None, Some(1), Some(2)][rng.below(3) as usize],
            wishes: Wishes {
                stages: [None, Some(2), Some(3)][rng.below(3) as usize],
                expert_groups: [None, Some(2)][rng.below(2) as usize],
                kv_block_tokens: 4,
                kv_tokens_min: 64,
                kv_tokens_max: 64 + 4 * rng.below(16) as u32,
                kv_format: None,
            },
            steps: StepBounds {
                max_rows: 16,
                max_prefill_rows: 4 + rng.below(8) as u32,
                max_sequences: 6,
                max_waiting: 8,
                max_waiting_tokens: 400,
                prefix_cache: !rng.chance(10),
                target_ms: 40,
                expanded_group: 0,
            },
            standbys: rng.chance(70),
            replans: rng.chance(30),
            requests: 16 + rng.below(32) as usize,
            fault_ms: 6_000 + rng.below(20_000),
        };
        scenario.steps.expanded_group = match scenario.steps.max_prefill_rows % 4 {
            1 => 3,
            3 => 4,
            _ => 0,
        };
        scenario
    }
}

pub(super) fn gateway() -> GatewayOptions {
    GatewayOptions {
        max_live_requests: 16,
        queued_tokens: 4,
        block_tokens: 4,
        ..GatewayOptions::default()
    }
}

pub(super) fn leases() -> LeaseConfig {
    LeaseConfig {
        heartbeat_ms: HEARTBEAT_MS as u32,
        lease_ms: LEASE_MS as u32,
    }
}

pub(super) fn model() -> ModelEntry {
    let layer = |index| LayerFootprint {
        owner_bytes: 900,
        expert_bytes: if index == 0 { 0 } else { 100 },
        kv_token_bytes: 2,
    };
    ModelEntry {
        name: "small".to_owned(),
        fingerprint: [7; 32],
        footprint: ModelFootprint {
            layers: (0..LAYERS).map(layer).collect(),
            n_experts: 8,
            experts_per_token: 2,
            embedding_bytes: 400,
            head_bytes: 400,
            tied_bytes: 0,
            scratch: ScratchModel {
                head_bytes: 0,
                owner_bytes: 500,
                holder_bytes: 100,
            },
        },
    }
}
