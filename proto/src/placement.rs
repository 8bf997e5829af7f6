//! Placement on the wire, from and to [`Replica`].
//!
//! Shapes are checked here; whether stages and groups tile the model (PL-1) is for whoever knows the model.

use tramontane_model::config::Faults;
use tramontane_model::ids::{DeviceIndex, DeviceRef, Fence};
use tramontane_model::placement::{ExpertGroup, ExpertRange, KvFormat, KvShape, LayerRange, Replica, Stage};
use tramontane_model::standby::Share;
use tramontane_model::step::StepBounds;

use crate::fields::{at_most, fence, invalid, required, worker};
use crate::{WireError, v1 as pb};

/// Most stages of a replica.
const MAX_STAGES: usize = 1024;
/// Most expert groups of a stage.
const MAX_GROUPS: usize = 1024;

impl TryFrom<pb::DeviceRef> for DeviceRef {
    type Error = WireError;
    fn try_from(wire: pb::DeviceRef) -> Result<Self, WireError> {
        Ok(Self {
            worker: worker("device.worker", &wire.worker)?,
            device: DeviceIndex(wire.device),
        })
    }
}

impl From<&DeviceRef> for pb::DeviceRef {
    fn from(device: &DeviceRef) -> Self {
        Self {
            worker: device.worker.as_str().to_owned(),
            device: device.device.0,
        }
    }
}

impl TryFrom<pb::PlacedGroup> for ExpertGroup {
    type Error = WireError;
    fn try_from(wire: pb::PlacedGroup) -> Result<Self, WireError> {
        let experts = experts("group.experts", required("group.experts", wire.experts)?)?;
        let holder = required("group.holder", wire.holder)?.try_into()?;
        Ok(Self { experts, holder })
    }
}

impl From<&ExpertGroup> for pb::PlacedGroup {
    fn from(group: &ExpertGroup) -> Self {
        Self {
            experts: Some(pb::IndexRange {
                start: group.experts.start(),
                end: group.experts.end(),
            }),
            holder: Some((&group.holder).into()),
        }
    }
}

fn layers(field: &'static str, range: Option<pb::IndexRange>) -> Result<LayerRange, WireError> {
    let pb::IndexRange { start, end } = required(field, range)?;
    LayerRange::new(start, end).ok_or_else(|| invalid(field, format_args!("{start}..{end} is empty")))
}

fn experts(field: &'static str, range: pb::IndexRange) -> Result<ExpertRange, WireError> {
    let pb::IndexRange { start, end } = range;
    ExpertRange::new(start, end).ok_or_else(|| invalid(field, format_args!("{start}..{end} is empty")))
}

impl TryFrom<pb::Share> for Share {
    type Error = WireError;
    fn try_from(wire: pb::Share) -> Result<Self, WireError> {
        let layers = layers("share.layers", wire.layers)?;
        let experts = wire.experts.map(|range| experts("share.experts", range));
        Self::new(layers, wire.owned, experts.transpose()?).map_err(|error| invalid("share", error))
    }
}

impl From<Share> for pb::Share {
    fn from(share: Share) -> Self {
        let layers = share.layers();
        Self {
            layers: Some(pb::IndexRange {
                start: layers.start(),
                end: layers.end(),
            }),
            owned: share.owned(),
            experts: share.experts().map(|experts| pb::IndexRange {
                start: experts.start(),
                end: experts.end(),
            }),
        }
    }
}

impl TryFrom<pb::PlacedStage> for Stage {
    type Error = WireError;
    fn try_from(wire: pb::PlacedStage) -> Result<Self, WireError> {
        let layers = layers("stage.layers", wire.layers)?;
        at_most("stage.groups", "groups", wire.groups.len(), MAX_GROUPS)?;
        Ok(Self {
            layers,
            owner: required("stage.owner", wire.owner)?.try_into()?,
            groups: wire
                .groups
                .into_iter()
                .map(ExpertGroup::try_from)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Stage> for pb::PlacedStage {
    fn from(stage: &Stage) -> Self {
        Self {
            layers: Some(pb::IndexRange {
                start: stage.layers.start(),
                end: stage.layers.end(),
            }),
            owner: Some((&stage.owner).into()),
            groups: stage.groups.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::StepBounds> for StepBounds {
    type Error = WireError;
    fn try_from(wire: pb::StepBounds) -> Result<Self, WireError> {
        let steps = Self {
            max_rows: wire.max_rows,
            max_prefill_rows: wire.max_prefill_rows,
            max_sequences: wire.max_sequences,
            max_waiting: wire.max_waiting,
            max_waiting_tokens: wire.max_waiting_tokens,
            prefix_cache: wire.prefix_cache,
            target_ms: wire.target_ms,
            expanded_group: wire.expanded_group,
        };
        let mut faults = Faults::default();
        steps.check("steps", &mut faults);
        if faults.none() {
            Ok(steps)
        } else {
            Err(invalid("replica.steps", faults))
        }
    }
}

impl From<StepBounds> for pb::StepBounds {
    fn from(steps: StepBounds) -> Self {
        Self {
            max_rows: steps.max_rows,
            max_prefill_rows: steps.max_prefill_rows,
            max_sequences: steps.max_sequences,
            max_waiting: steps.max_waiting,
            max_waiting_tokens: steps.max_waiting_tokens,
            prefix_cache: steps.prefix_cache,
            target_ms: steps.target_ms,
            expanded_group: steps.expanded_group,
        }
    }
}

impl TryFrom<pb::KvShape> for KvShape {
    type Error = WireError;
    fn try_from(wire: pb::KvShape) -> Result<Self, WireError> {
        let format = match wire.format() {
            pb::KvFormat::Unspecified => {
                let problem = format!("{} is no known format", wire.format);
                return Err(invalid("replica.kv.format", problem));
            }
            pb::KvFormat::F32 => KvFormat::F32,
            pb::KvFormat::F16 => KvFormat::F16,
        };
        Ok(Self {
            block_tokens: wire.block_tokens,
            blocks: wire.blocks,
            format,
        })
    }
}

impl From<KvShape> for pb::KvShape {
    fn from(kv: KvShape) -> Self {
        let format = match kv.format {
            KvFormat::F32 => pb::KvFormat::F32,
            KvFormat::F16 => pb::KvFormat::F16,
        };
        Self {
            block_tokens: kv.block_tokens,
            blocks: kv.blocks,
            format: format.into(),
        }
    }
}

impl TryFrom<pb::Replica> for Replica {
    type Error = WireError;
    fn try_from(wire: pb::Replica) -> Result<Self, WireError> {
        let Fence { replica, generation } = fence(wire.fence)?;
        let kv = required("replica.kv", wire.kv)?.try_into()?;
        at_most("replica.stages", "stages", wire.stages.len(), MAX_STAGES)?;
        Ok(Self {
            id: replica,
            generation,
            stages: wire
                .stages
                .into_iter()
                .map(Stage::try_from)
                .collect::<Result<_, _>>()?,
            kv,
            steps: required("replica.steps", wire.steps)?.try_into()?,
        })
    }
}

impl From<&Replica> for pb::Replica {
    fn from(replica: &Replica) -> Self {
        Self {
            fence: Some(replica.fence().into()),
            stages: replica.stages.iter().map(Into::into).collect(),
            kv: Some(replica.kv.into()),
            steps: Some(replica.steps.into()),
        }
    }
}
