//! What a model asks of devices: its spec and tensors in the planner's numbers.

use tramontane_model::footprint::{head_scratch_bytes, holder_scratch_bytes, owner_scratch_bytes};
use tramontane_model::placement::KvFormat;
use tramontane_model::spec::ModelSpec;
use tramontane_model::step::StepBounds;
use tramontane_model::tensors::{LayerBytes, ModelBytes};

use super::footprint::{LayerFootprint, ModelFootprint, ScratchModel};

/// What the model asks of devices, for steps within `steps`.
pub fn footprint(
    spec: &ModelSpec,
    bytes: &ModelBytes,
    steps: StepBounds,
    kv_block_tokens: u32,
) -> ModelFootprint {
    let kv_token_bytes = u64::from(spec.kv_values_per_token_layer()) * KvFormat::F32.value_bytes();
    let layer = |layer: &LayerBytes| LayerFootprint {
        owner_bytes: layer.owner,
        expert_bytes: layer.expert,
        kv_token_bytes,
    };
    let capacity = steps.capacity();
    let tied_bytes = if spec.tied_embeddings { bytes.embedding } else { 0 };
    ModelFootprint {
        layers: bytes.layers.iter().map(layer).collect(),
        n_experts: spec.n_experts(),
        experts_per_token: spec.moe.as_ref().map_or(0, |moe| moe.n_experts_per_token),
        embedding_bytes: bytes.embedding,
        head_bytes: bytes.head + tied_bytes,
        tied_bytes,
        scratch: ScratchModel {
            owner_bytes: owner_scratch_bytes(spec, capacity, kv_block_tokens),
            head_bytes: head_scratch_bytes(spec),
            holder_bytes: holder_scratch_bytes(spec, capacity),
        },
    }
}
