//! What one device holds of a placed replica.
//!
//! Pure: a function of the placement and the device's name.

use tramontane_model::footprint::{
    ExpertScratchBytes, HeadScratch, HolderScratch, OwnerScratch, StepCapacity, kv_layer_bytes,
};
use tramontane_model::ids::DeviceRef;
use tramontane_model::placement::{ExpertRange, KvShape, LayerRange, Replica, Stage};
use tramontane_model::spec::ModelSpec;
#[cfg(test)]
use tramontane_model::step::StepBounds;
use tramontane_model::tensors::ModelBytes;

/// A device's share of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSlices {
    /// The stage that the device owns, if it owns one.
    pub stage: Option<StageSlice>,
    /// The expert groups that it holds, those of its own stage included, in the order of stages and groups.
    pub experts: Vec<ExpertSlice>,
    /// The largest step that its buffers hold.
    pub capacity: StepCapacity,
}

/// A stage as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageSlice {
    /// Which stage of the replica.
    pub stage: u32,
    /// Its layers.
    pub layers: LayerRange,
    /// Whether it is the first: it holds the embedding.
    pub first: bool,
    /// Whether it is the last: it holds the final norm and the head, and samples.
    pub last: bool,
    /// Whether it holds the embedding: as the first, or as the last whose head it is.
    pub embedding: bool,
    /// Its key-value cache.
    pub kv: KvShape,
    /// Who computes which of its experts.
    pub groups: Vec<GroupRoute>,
}

/// Who computes an expert group of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRoute {
    /// Its experts.
    pub experts: ExpertRange,
    /// The device that computes them, if it is not the stage's owner.
    pub remote: Option<DeviceRef>,
}

/// An expert group that a device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExpertSlice {
    /// Which stage of the replica.
    pub stage: u32,
    /// Which group of the stage.
    pub group: u32,
    /// The stage's layers with routed experts.
    pub layers: LayerRange,
    /// The group's experts, of each of these layers.
    pub experts: ExpertRange,
    /// Whether the stage is the device's own.
    pub own_stage: bool,
}

/// A part of the weights that is loaded and dropped as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightSlice {
    /// The embedding.
    Embedding,
    /// What the owner of a layer holds of it.
    Layer(u32),
    /// Routed experts of a layer.
    Experts {
        /// The layer.
        layer: u32,
        /// Which of its experts.
        experts: ExpertRange,
    },
    /// The final norm and, unless it is the embedding, the output matrix.
    Head,
}

impl WeightSlice {
    /// Its bytes on a device.
    pub fn bytes(self, model: &ModelBytes) -> u64 {
        let of = |layer: u32| model.layers.get(layer as usize).copied().unwrap_or_default();
        match self {
            Self::Embedding => model.embedding,
            Self::Layer(layer) => of(layer).owner,
            Self::Experts { layer, experts } => of(layer).expert.saturating_mul(experts.len().into()),
            Self::Head => model.head,
        }
    }
}

impl DeviceSlices {
    /// The share of `device` in `replica`, or none if it takes no part. The replica is one that PL-1 holds for.
    pub fn of(replica: &Replica, device: &DeviceRef, spec: &ModelSpec) -> Option<Self> {
        let mut slices = Self {
            stage: None,
            experts: Vec::new(),
            capacity: replica.steps.capacity(),
        };
        let last = replica.stages.len().saturating_sub(1);
        for (index, stage) in (0_u32..).zip(&replica.stages) {
            let own_stage = stage.owner == *device;
            if own_stage && slices.stage.is_none() {
                slices.stage = Some(StageSlice {
                    stage: index,
                    layers: stage.layers,
                    first: index == 0,
                    last: index as usize == last,
                    embedding: index == 0 || (spec.tied_embeddings && index as usize == last),
                    kv: replica.kv,
                    groups: routes(stage, device),
                });
            }
            let moe_start = stage.layers.start().max(spec.moe_layers().start);
            let Some(layers) = LayerRange::new(moe_start, stage.layers.end()) else {
                continue;
            };
            for (group, held) in (0_u32..).zip(&stage.groups) {
                if held.holder == *device {
                    slices.experts.push(ExpertSlice {
                        stage: index,
                        group,
                        layers,
                        experts: held.experts,
                        own_stage,
                    });
                }
            }
        }
        (slices.stage.is_some() || !slices.experts.is_empty()).then_some(slices)
    }

    /// Every part of the weights that the device holds, in the order in which a step uses them.
    pub fn weights(&self) -> Vec<WeightSlice> {
        let mut weights = Vec::new();
        if let Some(stage) = &self.stage {
            if stage.embedding {
                weights.push(WeightSlice::Embedding);
            }
            weights.extend(stage.layers.iter().map(WeightSlice::Layer));
        }
        for slice in &self.experts {
            let experts = slice.experts;
            weights.extend(
                slice
                    .layers
                    .iter()
                    .map(|layer| WeightSlice::Experts { layer, experts }),
            );
        }
        if self.stage.as_ref().is_some_and(|stage| stage.last) {
            weights.push(WeightSlice::Head);
        }
        weights
    }

    /// Whether the device computes experts for other owners, or may have to.
    pub fn serves_others(&self) -> bool {
        self.experts.iter().any(|slice| !slice.own_stage)
    }

    /// Bytes of its weights.
    pub fn weight_bytes(&self, model: &ModelBytes) -> u64 {
        let bytes = self.weights().into_iter().map(|slice| slice.bytes(model));
        bytes.fold(0, u64::saturating_add)
    }

    /// Bytes of weights, cache and step buffers: what the device will hold once it is loaded.
    pub fn planned_bytes(&self, spec: &ModelSpec, model: &ModelBytes) -> u64 {
        let capacity = self.capacity;
        let mut parts = vec![self.weight_bytes(model)];
        if let Some(stage) = &self.stage {
            let layers = u64::from(stage.layers.len());
            parts.push(kv_layer_bytes(spec, stage.kv).saturating_mul(layers));
            parts.push(OwnerScratch::new(spec, capacity, stage.kv).total());
            if stage.last {
                parts.push(HeadScratch::new(spec).total());
            }
        }
        if !self.experts.is_empty() {
            parts.push(ExpertScratchBytes::new(spec, capacity).total());
        }
        if self.serves_others() {
            parts.push(HolderScratch::new(spec, capacity).total());
        }
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

fn routes(stage: &Stage, owner: &DeviceRef) -> Vec<GroupRoute> {
    stage
        .groups
        .iter()
        .map(|group| GroupRoute {
            experts: group.experts,
            remote: Some(&group.holder).filter(|holder| *holder != owner).cloned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tramontane_model::ids::{DeviceIndex, Generation, ReplicaId, WorkerId};
    use tramontane_model::placement::{ExpertGroup, KvFormat};

    use super::*;

    fn spec() -> ModelSpec {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/mini-large-3/params.json");
        ModelSpec::from_json(&std::fs::read(&file).expect("the fixture"), &file).expect("a valid spec")
    }

    fn device(name: &str) -> DeviceRef {
        DeviceRef {
            worker: WorkerId::new(name).expect("a valid name"),
            device: DeviceIndex(0),
        }
    }

    fn group(start: u32, end: u32, holder: &str) -> ExpertGroup {
        ExpertGroup {
            experts: ExpertRange::new(start, end).expect("a range"),
            holder: device(holder),
        }
    }

    fn stage(start: u32, end: u32, owner: &str, groups: Vec<ExpertGroup>) -> Stage {
        Stage {
            layers: LayerRange::new(start, end).expect("a range"),
            owner: device(owner),
            groups,
        }
    }

    /// Two stages; "b" owns the second and holds half of the first one's experts.
    fn replica() -> Replica {
        Replica {
            id: ReplicaId(1),
            generation: Generation(1),
            stages: vec![
                stage(0, 3, "a", vec![group(0, 8, "a"), group(8, 16, "b")]),
                stage(3, 6, "b", vec![group(0, 16, "b")]),
            ],
            kv: KvShape {
                block_tokens: 16,
                blocks: 8,
                format: KvFormat::F32,
            },
            steps: StepBounds::default(),
        }
    }

    fn of(name: &str) -> Option<DeviceSlices> {
        DeviceSlices::of(&replica(), &device(name), &spec())
    }

    #[test]
    fn each_device_gets_its_share() {
        assert_eq!(replica().validate(6, 16, 1), Ok(()));
        let a = of("a").expect("a takes part");
        let own = a.stage.as_ref().expect("a owns a stage");
        assert!(own.first && own.embedding && !own.last);
        assert_eq!(own.groups[0].remote, None);
        assert_eq!(own.groups[1].remote, Some(device("b")));
        // Layer 0 is dense: experts of layers 1 and 2.
        assert_eq!(a.experts.len(), 1);
        assert_eq!(a.experts[0].layers, LayerRange::new(1, 3).expect("a range"));
        assert!(!a.serves_others());

        let b = of("b").expect("b takes part");
        assert!(b.serves_others());
        assert_eq!(
            b.experts
                .iter()
                .map(|slice| (slice.stage, slice.group))
                .collect::<Vec<_>>(),
            [(0, 1), (1, 0)]
        );

        assert_eq!(of("nobody"), None);
    }

    #[test]
    fn the_weights_of_all_devices_are_the_model() {
        let spec = spec();
        let bytes = ModelBytes::usual(&spec);
        let total: u64 = ["a", "b"]
            .iter()
            .filter_map(|name| of(name))
            .map(|slices| slices.weight_bytes(&bytes))
            .sum();
        assert_eq!(total, bytes.total(spec.n_experts()));
    }

    #[test]
    fn both_ends_of_a_tied_model_hold_the_embedding_and_one_device_holds_it_once() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/mini-large-3/params.json");
        let params = std::fs::read_to_string(&file).expect("the fixture");
        let tied = params.replace("\"tied_embeddings\": false", "\"tied_embeddings\": true");
        let spec = ModelSpec::from_json(tied.as_bytes(), &file).expect("a valid spec");
        assert!(spec.tied_embeddings);
        let bytes = ModelBytes::usual(&spec);
        let count = |slices: &DeviceSlices| {
            let weights = slices.weights().into_iter();
            weights.filter(|slice| *slice == WeightSlice::Embedding).count()
        };
        let mut whole = replica();
        for name in ["a", "b"] {
            let slices = DeviceSlices::of(&whole, &device(name), &spec).expect("it takes part");
            assert_eq!(count(&slices), 1, "{name}");
        }
        whole.stages = vec![stage(0, 6, "a", vec![group(0, 16, "a")])];
        let slices = DeviceSlices::of(&whole, &device("a"), &spec).expect("a takes part");
        assert_eq!(count(&slices), 1);
        assert_eq!(slices.weight_bytes(&bytes), bytes.total(spec.n_experts()));
        assert_eq!(bytes.head, 256 * 2, "the norm alone");
    }
}
