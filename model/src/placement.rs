//! Placement map: which device holds which layers and experts.
//!
//! Pure data: no clock, I/O or randomness; replicas must reach equal bytes.
//!
//! **Invariant PL-1:** the stages of a replica tile `0..n_layers` exactly once; the expert groups of a stage tile
//! its routed experts exactly once.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{DeviceRef, Fence, Generation, ReplicaId};
use crate::step::StepBounds;

/// A non-empty range of layers, `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LayerRange {
    start: u32,
    end: u32,
}

/// A non-empty range of routed experts, `start..end`, of every MoE layer of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExpertRange {
    start: u32,
    end: u32,
}

macro_rules! range {
    ($name:ident) => {
        impl $name {
            /// A range, if it is not empty.
            pub fn new(start: u32, end: u32) -> Option<Self> {
                (start < end).then_some(Self { start, end })
            }
            /// First member.
            pub fn start(self) -> u32 {
                self.start
            }
            /// One past the last member.
            pub fn end(self) -> u32 {
                self.end
            }
            /// How many members; never 0.
            #[expect(clippy::len_without_is_empty, reason = "the range is never empty")]
            pub fn len(self) -> u32 {
                self.end - self.start
            }
            /// Whether the index lies in the range.
            pub fn contains(self, index: u32) -> bool {
                (self.start..self.end).contains(&index)
            }
            /// The members in order.
            pub fn iter(self) -> std::ops::Range<u32> {
                self.start..self.end
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}..{}", self.start, self.end)
            }
        }
    };
}
range!(LayerRange);
range!(ExpertRange);

/// Some of a stage's routed experts and who computes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertGroup {
    /// Which experts, of every MoE layer of the stage.
    pub experts: ExpertRange,
    /// The device that holds and computes them.
    pub holder: DeviceRef,
}

/// A pipeline stage: consecutive layers with one owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Its layers. The first stage also holds the embedding, the last one the final norm and the head.
    pub layers: LayerRange,
    /// Holds attention, norms, router, shared expert, dense feed-forward and KV cache.
    pub owner: DeviceRef,
    /// Tile the routed experts in order; group 0 is computed by the owner. Empty only if no layer is MoE.
    pub groups: Vec<ExpertGroup>,
}

/// How a KV cache stores its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvFormat {
    /// As they are computed.
    F32,
    /// Rounded to IEEE half, to the nearest and of two the even one; what is larger than its largest number becomes that.
    F16,
}

impl KvFormat {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::F32, Self::F16];

    /// What a device caches in unless something else is configured: GPUs have f16 in hardware.
    pub const fn usual(is_cpu: bool) -> Self {
        if is_cpu { Self::F32 } else { Self::F16 }
    }

    /// Bytes of a value.
    pub const fn value_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// Its name, as in configurations and in the status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The paged KV cache, the same on every stage of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvShape {
    /// Tokens per block.
    pub block_tokens: u32,
    /// Blocks per layer.
    pub blocks: u32,
    /// How values are stored.
    pub format: KvFormat,
}

/// A serving copy of the model, as it is placed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its id.
    pub id: ReplicaId,
    /// Which placement of it this is.
    pub generation: Generation,
    /// Its stages in order.
    pub stages: Vec<Stage>,
    /// Its KV cache.
    pub kv: KvShape,
    /// Bounds of its steps.
    pub steps: StepBounds,
}

/// What about a placement breaks PL-1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// No stage at all.
    #[error("{fence}: has no stages")]
    NoStages {
        /// The replica.
        fence: Fence,
    },
    /// Stages leave a gap, overlap, or end at the wrong layer.
    #[error("{fence}: stage {stage} starts or ends at layer {found}, it must be {expected}")]
    Layers {
        /// The replica.
        fence: Fence,
        /// Which stage.
        stage: usize,
        /// The layer found.
        found: u32,
        /// The layer that PL-1 asks for.
        expected: u32,
    },
    /// Expert groups leave a gap, overlap, or end at the wrong expert.
    #[error("{fence}: stage {stage}: expert groups reach expert {found}, it must be {expected}")]
    Experts {
        /// The replica.
        fence: Fence,
        /// Which stage.
        stage: usize,
        /// The expert found.
        found: u32,
        /// The expert that PL-1 asks for.
        expected: u32,
    },
    /// Group 0 is not computed by the owner.
    #[error("{fence}: stage {stage} group 0 is computed by {found}, it must be the stage's owner {owner}")]
    Holder {
        /// The replica.
        fence: Fence,
        /// Which stage.
        stage: usize,
        /// The device found.
        found: DeviceRef,
        /// The stage's owner.
        owner: DeviceRef,
    },
    /// Two stages with one owner.
    #[error("{fence}: device {device} owns more than one stage")]
    OwnerTwice {
        /// The replica.
        fence: Fence,
        /// The device.
        device: DeviceRef,
    },
    /// A cache without blocks.
    #[error("{fence}: the kv cache has {blocks} blocks of {block_tokens} tokens, both must be above 0")]
    Kv {
        /// The replica.
        fence: Fence,
        /// Blocks.
        blocks: u32,
        /// Tokens per block.
        block_tokens: u32,
    },
}

impl Replica {
    /// The replica and its generation.
    pub fn fence(&self) -> Fence {
        Fence {
            replica: self.id,
            generation: self.generation,
        }
    }

    /// The device that hosts the scheduler: the owner of the first stage.
    pub fn head(&self) -> Option<&DeviceRef> {
        self.stages.first().map(|stage| &stage.owner)
    }

    /// Every device that takes part, in order. Standbys do not.
    pub fn devices(&self) -> BTreeSet<&DeviceRef> {
        let owners = self.stages.iter().map(|stage| &stage.owner);
        let holders = self
            .stages
            .iter()
            .flat_map(|stage| &stage.groups)
            .map(|group| &group.holder);
        owners.chain(holders).collect()
    }

    /// Checks PL-1 for a model of `n_layers` with `n_experts` routed experts in each MoE layer (0: none) and
    /// `first_moe_layer` the first layer that has them.
    pub fn validate(
        &self,
        n_layers: u32,
        n_experts: u32,
        first_moe_layer: u32,
    ) -> Result<(), PlacementError> {
        let fence = self.fence();
        if self.stages.is_empty() {
            return Err(PlacementError::NoStages { fence });
        }
        if self.kv.blocks == 0 || self.kv.block_tokens == 0 {
            let KvShape {
                block_tokens, blocks, ..
            } = self.kv;
            return Err(PlacementError::Kv {
                fence,
                blocks,
                block_tokens,
            });
        }
        let mut next_layer = 0;
        let mut owners = BTreeSet::new();
        for (index, stage) in self.stages.iter().enumerate() {
            if stage.layers.start != next_layer || stage.layers.start >= stage.layers.end {
                let found = stage.layers.start;
                return Err(PlacementError::Layers {
                    fence,
                    stage: index,
                    found,
                    expected: next_layer,
                });
            }
            next_layer = stage.layers.end;
            if !owners.insert(&stage.owner) {
                return Err(PlacementError::OwnerTwice {
                    fence,
                    device: stage.owner.clone(),
                });
            }
            let experts = if stage.layers.end > first_moe_layer {
                n_experts
            } else {
                0
            };
            stage.validate_groups(fence, index, experts)?;
        }
        if next_layer != n_layers {
            let stage = self.stages.len() - 1;
            return Err(PlacementError::Layers {
                fence,
                stage,
                found: next_layer,
                expected: n_layers,
            });
        }
        Ok(())
    }
}

impl Stage {
    fn validate_groups(&self, fence: Fence, stage: usize, n_experts: u32) -> Result<(), PlacementError> {
        let mut next = 0;
        for (group, held) in self.groups.iter().enumerate() {
            if held.experts.start != next || held.experts.start >= held.experts.end {
                return Err(PlacementError::Experts {
                    fence,
                    stage,
                    found: held.experts.start,
                    expected: next,
                });
            }
            next = held.experts.end;
            if group == 0 && held.holder != self.owner {
                return Err(PlacementError::Holder {
                    fence,
                    stage,
                    found: held.holder.clone(),
                    owner: self.owner.clone(),
                });
            }
        }
        if next != n_experts {
            return Err(PlacementError::Experts {
                fence,
                stage,
                found: next,
                expected: n_experts,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DeviceIndex, WorkerId};

    fn device(name: &str) -> DeviceRef {
        DeviceRef {
            worker: WorkerId::new(name).expect("a valid name"),
            device: DeviceIndex(0),
        }
    }

    fn group(start: u32, end: u32, holder: &str) -> ExpertGroup {
        let experts = ExpertRange::new(start, end).expect("not empty");
        let holder = device(holder);
        ExpertGroup { experts, holder }
    }

    fn replica() -> Replica {
        let stage = |start, end, owner, helper| Stage {
            layers: LayerRange::new(start, end).expect("not empty"),
            owner: device(owner),
            groups: vec![group(0, 8, owner), group(8, 16, helper)],
        };
        Replica {
            id: ReplicaId(1),
            generation: Generation(2),
            stages: vec![stage(0, 3, "w1", "w2"), stage(3, 6, "w3", "w4")],
            kv: KvShape {
                block_tokens: 16,
                blocks: 64,
                format: KvFormat::F32,
            },
            steps: StepBounds::default(),
        }
    }

    #[test]
    fn a_tiling_is_taken() {
        assert_eq!(replica().validate(6, 16, 1), Ok(()));
        assert_eq!(replica().devices().len(), 4);
        assert_eq!(replica().head(), Some(&device("w1")));
    }

    #[test]
    fn every_break_of_the_tiling_is_refused() {
        type Change = (&'static str, fn(&mut Replica));
        let changes: [Change; 9] = [
            ("no stages", |r| r.stages.clear()),
            ("gap", |r| r.stages[1].layers = LayerRange { start: 4, end: 6 }),
            ("overlap", |r| {
                r.stages[1].layers = LayerRange { start: 2, end: 6 }
            }),
            ("short", |r| r.stages[1].layers = LayerRange { start: 3, end: 5 }),
            ("long", |r| r.stages[1].layers = LayerRange { start: 3, end: 7 }),
            ("expert gap", |r| {
                r.stages[0].groups[1].experts = ExpertRange { start: 9, end: 16 }
            }),
            ("experts short", |r| drop(r.stages[0].groups.pop())),
            ("owner without group 0", |r| {
                r.stages[0].groups[0].holder = device("w2")
            }),
            ("owner twice", |r| {
                r.stages[1].owner = device("w1");
                r.stages[1].groups[0].holder = device("w1");
            }),
        ];
        for (what, change) in changes {
            let mut changed = replica();
            change(&mut changed);
            assert!(changed.validate(6, 16, 1).is_err(), "{what} was taken");
        }
    }

    #[test]
    fn a_stage_of_dense_layers_has_no_groups() {
        let mut dense = replica();
        dense.stages[0].groups.clear();
        assert_eq!(dense.validate(6, 16, 3), Ok(()));
        assert!(dense.validate(6, 16, 2).is_err());
    }
}
