//! What a model needs of devices, and what a placement gives each of them.
//!
//! Plain numbers: no tensors, no files. The planner chooses by these numbers and [`verify`] checks what it chose from
//! the placement alone, so a fault of the planner does not reach a device.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tramontane_model::ids::DeviceRef;
use tramontane_model::placement::{KvFormat, Replica, Stage};

use super::limits::{MAX_EXPERT_BYTES, MAX_EXPERTS, MAX_KV_TOKEN_BYTES, MAX_LAYERS, MAX_PART_BYTES};

/// What one layer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFootprint {
    /// Bytes of weights that the stage's owner holds: attention, norms, router, shared expert, dense feed-forward.
    pub owner_bytes: u64,
    /// Bytes of one routed expert; 0 in a dense layer.
    pub expert_bytes: u64,
    /// Bytes of keys and values of one token as f32; see [`Self::kv_bytes`].
    pub kv_token_bytes: u64,
}

impl LayerFootprint {
    /// Bytes of keys and values of one token, stored so.
    pub fn kv_bytes(&self, format: KvFormat) -> u64 {
        let bytes = self.kv_token_bytes.saturating_mul(format.value_bytes());
        bytes.div_ceil(KvFormat::F32.value_bytes())
    }
}

/// Bytes a device needs beside weights and cache: activations, staging, hidden states in flight, tables.
///
/// Fixed amounts, worked out for the largest step by whoever knows the kernels; a worker allocates no more than these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScratchModel {
    /// For owning a stage, its own expert group included.
    pub owner_bytes: u64,
    /// For owning the last stage, beside that: to sample.
    pub head_bytes: u64,
    /// For each stage of which the device holds experts without owning it.
    pub holder_bytes: u64,
}

impl ScratchModel {
    /// Bytes for owning a stage, the last one or another.
    pub fn of_owner(&self, last: bool) -> u64 {
        let head_bytes = if last { self.head_bytes } else { 0 };
        self.owner_bytes.saturating_add(head_bytes)
    }
}

/// What a model needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFootprint {
    /// Its layers in order; from the first one with routed experts on, all have them.
    pub layers: Vec<LayerFootprint>,
    /// Routed experts of a MoE layer; 0 if none has any.
    pub n_experts: u32,
    /// Routed experts that one token visits in a layer.
    pub experts_per_token: u32,
    /// Bytes of the embedding, held by the owner of the first stage.
    pub embedding_bytes: u64,
    /// Bytes of the final norm and the head, held by the owner of the last stage.
    pub head_bytes: u64,
    /// Bytes that embedding and head have in common: an owner of both ends holds them once. 0 unless they are tied.
    pub tied_bytes: u64,
    /// Bytes beside weights and cache.
    pub scratch: ScratchModel,
}

/// What makes a footprint unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FootprintError {
    /// Too few or too many layers.
    #[error("it has {found} layers, there must be 1 to {MAX_LAYERS}")]
    Layers {
        /// How many it has.
        found: usize,
    },
    /// An impossible number of experts, or of experts per token.
    #[error(
        "it has {n_experts} routed experts of which a token visits {per_token}; there must be at most {MAX_EXPERTS}, and a token visits at least one and no more than there are, if there are any"
    )]
    Experts {
        /// Routed experts of a layer.
        n_experts: u32,
        /// Those a token visits.
        per_token: u32,
    },
    /// Experts where there must be none, or none where there must be.
    #[error(
        "layer {layer} has experts of {expert_bytes} bytes; dense layers must come first and every layer after the first with experts must have them"
    )]
    ExpertLayer {
        /// Which layer.
        layer: usize,
        /// Bytes of one of its experts.
        expert_bytes: u64,
    },
    /// A number of bytes beyond its limit.
    #[error("{part} takes {found} bytes, at most {limit} are allowed")]
    Bytes {
        /// What takes them.
        part: &'static str,
        /// How many.
        found: u64,
        /// The most there may be.
        limit: u64,
    },
}

impl ModelFootprint {
    /// How many layers; [`Self::check`] bounds them.
    pub fn n_layers(&self) -> u32 {
        u32::try_from(self.layers.len()).unwrap_or(u32::MAX)
    }

    /// The first layer with routed experts; the number of layers if there is none.
    pub fn first_moe_layer(&self) -> u32 {
        let dense = self.layers.iter().take_while(|layer| layer.expert_bytes == 0);
        u32::try_from(dense.count()).unwrap_or(u32::MAX)
    }

    /// Bytes of all weights, each once.
    pub fn weight_bytes(&self) -> u128 {
        let of_layer = |layer: &LayerFootprint| {
            u128::from(layer.owner_bytes) + u128::from(layer.expert_bytes) * u128::from(self.n_experts)
        };
        let layers: u128 = self.layers.iter().map(of_layer).sum();
        layers + u128::from(self.end_bytes(true, true))
    }

    /// Bytes of embedding and head that the owner of a stage holds, by whether it is the first and whether it is the last.
    pub fn end_bytes(&self, first: bool, last: bool) -> u64 {
        match (first, last) {
            (false, false) => 0,
            (true, false) => self.embedding_bytes,
            (false, true) => self.head_bytes,
            (true, true) => self
                .embedding_bytes
                .saturating_add(self.head_bytes)
                .saturating_sub(self.tied_bytes),
        }
    }

    /// Checks every bound, so that no sum of weights overflows and every placement can be planned.
    pub fn check(&self) -> Result<(), FootprintError> {
        let found = self.layers.len();
        if found == 0 || found > MAX_LAYERS {
            return Err(FootprintError::Layers { found });
        }
        let (n_experts, per_token) = (self.n_experts, self.experts_per_token);
        if n_experts > MAX_EXPERTS || per_token > n_experts || (n_experts > 0 && per_token == 0) {
            return Err(FootprintError::Experts { n_experts, per_token });
        }
        let bounded = |part, found, limit| {
            if found > limit {
                Err(FootprintError::Bytes { part, found, limit })
            } else {
                Ok(())
            }
        };
        bounded("the embedding", self.embedding_bytes, MAX_PART_BYTES)?;
        bounded("the head", self.head_bytes, MAX_PART_BYTES)?;
        let smaller = self.embedding_bytes.min(self.head_bytes);
        bounded("what embedding and head have in common", self.tied_bytes, smaller)?;
        bounded("an owner's scratch", self.scratch.owner_bytes, MAX_PART_BYTES)?;
        bounded("a sampler's scratch", self.scratch.head_bytes, MAX_PART_BYTES)?;
        bounded("a holder's scratch", self.scratch.holder_bytes, MAX_PART_BYTES)?;
        let mut moe = false;
        for (index, layer) in self.layers.iter().enumerate() {
            let expert_bytes = layer.expert_bytes;
            moe |= expert_bytes > 0;
            if moe && (expert_bytes == 0 || n_experts == 0) {
                return Err(FootprintError::ExpertLayer {
                    layer: index,
                    expert_bytes,
                });
            }
            bounded("a layer", layer.owner_bytes, MAX_PART_BYTES)?;
            bounded("a routed expert", expert_bytes, MAX_EXPERT_BYTES)?;
            bounded(
                "a token's keys and values in a layer",
                layer.kv_token_bytes,
                MAX_KV_TOKEN_BYTES,
            )?;
        }
        Ok(())
    }

    fn stage_layers(&self, stage: &Stage) -> &[LayerFootprint] {
        let end = (stage.layers.end() as usize).min(self.layers.len());
        let start = (stage.layers.start() as usize).min(end);
        &self.layers[start..end]
    }
}

/// What a placement asks of one device, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceUsage {
    /// Weights.
    pub weight_bytes: u64,
    /// Keys and values.
    pub kv_bytes: u64,
    /// Everything else.
    pub scratch_bytes: u64,
    /// The largest buffer that must be bound whole: one layer's keys and values.
    pub binding_bytes: u64,
}

impl DeviceUsage {
    /// All bytes.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes
            .saturating_add(self.kv_bytes)
            .saturating_add(self.scratch_bytes)
    }

    fn add_weights(&mut self, bytes: u64) {
        self.weight_bytes = self.weight_bytes.saturating_add(bytes);
    }
}

/// What a placement asks of each device that takes part. Saturates instead of overflowing.
pub fn usage(footprint: &ModelFootprint, replica: &Replica) -> BTreeMap<DeviceRef, DeviceUsage> {
    #[cfg(feature = "deliberate-bugs")]
    let footprint = &without_scratch(footprint);
    let mut devices: BTreeMap<DeviceRef, DeviceUsage> = BTreeMap::new();
    let tokens = u64::from(replica.kv.blocks).saturating_mul(u64::from(replica.kv.block_tokens));
    let last = replica.stages.len().saturating_sub(1);
    for (index, stage) in replica.stages.iter().enumerate() {
        let layers = footprint.stage_layers(stage);
        let owner = devices.entry(stage.owner.clone()).or_default();
        for layer in layers {
            let kv_bytes = layer.kv_bytes(replica.kv.format).saturating_mul(tokens);
            owner.add_weights(layer.owner_bytes);
            owner.kv_bytes = owner.kv_bytes.saturating_add(kv_bytes);
            owner.binding_bytes = owner.binding_bytes.max(kv_bytes);
        }
        owner.add_weights(footprint.end_bytes(index == 0, index == last));
        let scratch = footprint.scratch.of_owner(index == last);
        owner.scratch_bytes = owner.scratch_bytes.saturating_add(scratch);

        let one_expert = layers
            .iter()
            .fold(0u64, |sum, layer| sum.saturating_add(layer.expert_bytes));
        let mut helpers = std::collections::BTreeSet::new();
        for group in &stage.groups {
            let holder = &group.holder;
            let device = devices.entry(holder.clone()).or_default();
            device.add_weights(one_expert.saturating_mul(u64::from(group.experts.len())));
            if *holder != stage.owner && helpers.insert(holder) {
                let scratch = footprint.scratch.holder_bytes;
                device.scratch_bytes = device.scratch_bytes.saturating_add(scratch);
            }
        }
    }
    devices
}

/// The footprint, or one without scratch if that fault is planted.
#[cfg(feature = "deliberate-bugs")]
fn without_scratch(footprint: &ModelFootprint) -> ModelFootprint {
    let mut footprint = footprint.clone();
    if tramontane_sim::bugs::on(tramontane_sim::bugs::Bug::OverfilledDevice) {
        footprint.scratch = ScratchModel::default();
    }
    footprint
}

/// What a device has, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Memory for this placement.
    pub memory_bytes: u64,
    /// Largest range that one binding may cover.
    pub max_binding_bytes: u64,
}

/// What about a placement breaks PL-2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapacityError {
    /// A device that is no member's.
    #[error("device {device} is not known or may not be given anything new")]
    UnknownDevice {
        /// The device.
        device: DeviceRef,
    },
    /// More bytes than the device has.
    #[error(
        "device {device} would hold {needed_bytes} bytes, it has {memory_bytes}: {missing_bytes} are missing"
    )]
    Memory {
        /// The device.
        device: DeviceRef,
        /// Bytes it would hold.
        needed_bytes: u64,
        /// Bytes it has.
        memory_bytes: u64,
        /// The difference.
        missing_bytes: u64,
    },
    /// A layer's cache that no binding can cover.
    #[error(
        "device {device} would hold {needed_bytes} bytes of keys and values for a layer, it can bind {max_binding_bytes}"
    )]
    Binding {
        /// The device.
        device: DeviceRef,
        /// Bytes of one layer's cache.
        needed_bytes: u64,
        /// Bytes that one binding covers.
        max_binding_bytes: u64,
    },
}

/// Checks PL-2: every device has room for what the placement gives it, and can bind it.
pub fn verify(
    footprint: &ModelFootprint,
    replica: &Replica,
    limits: impl Fn(&DeviceRef) -> Option<DeviceLimits>,
) -> Result<(), CapacityError> {
    for (device, used) in usage(footprint, replica) {
        let Some(has) = limits(&device) else {
            return Err(CapacityError::UnknownDevice { device });
        };
        let needed_bytes = used.total_bytes();
        if needed_bytes > has.memory_bytes {
            return Err(CapacityError::Memory {
                device,
                needed_bytes,
                memory_bytes: has.memory_bytes,
                missing_bytes: needed_bytes - has.memory_bytes,
            });
        }
        if used.binding_bytes > has.max_binding_bytes {
            return Err(CapacityError::Binding {
                device,
                needed_bytes: used.binding_bytes,
                max_binding_bytes: has.max_binding_bytes,
            });
        }
    }
    Ok(())
}
