//! The planner: which device is to hold which layers and experts.
//!
//! Pure and deterministic: equal requests give equal plans, ties go by the order of [`DeviceRef`]. No clock, no
//! randomness, and no measurement of speed: a device's memory stands in for its speed. Everything it hands out has
//! passed [`Replica::validate`] and [`crate::control::footprint::verify`].

mod demand;
mod devices;
mod missing;
mod movement;
pub mod outlook;
mod promote;
mod search;
mod shapes;
pub mod standbys;
#[cfg(test)]
mod tests;
mod tile;

use tramontane_model::ids::{DeviceRef, Generation, ReplicaId};
use tramontane_model::placement::{KvFormat, Replica};
use tramontane_model::standby::Standby;
use tramontane_model::step::StepBounds;

use super::footprint::ModelFootprint;
use crate::config::PlacementConfig;

/// A device that may be planned on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which device.
    pub device: DeviceRef,
    /// Bytes that it has.
    pub memory_bytes: u64,
    /// Largest range that one binding may cover, in bytes.
    pub max_binding_bytes: u64,
    /// Adapter, driver version and kernel-set version: equal kinds give equal bits (DET-1).
    pub kind: String,
    /// Whether it is a processor that emulates a GPU.
    pub is_cpu: bool,
}

/// What the planner is asked for. All but the fewest tokens is relaxed where it does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Pipeline stages; absent: as few as fit.
    pub stages: Option<u32>,
    /// Expert groups of each stage with routed experts; absent: as few as fit.
    pub expert_groups: Option<u32>,
    /// Tokens per KV block.
    pub kv_block_tokens: u32,
    /// Fewest tokens that the KV cache must hold.
    pub kv_tokens_min: u32,
    /// Most tokens that the KV cache is given.
    pub kv_tokens_max: u32,
    /// How it stores its values; absent: as f16 where every owner of a stage is a GPU, as f32 elsewhere.
    pub kv_format: Option<KvFormat>,
}

impl From<PlacementConfig> for Wishes {
    fn from(config: PlacementConfig) -> Self {
        Self {
            stages: config.stages,
            expert_groups: config.expert_groups,
            kv_block_tokens: config.kv_block_tokens,
            kv_tokens_min: config.kv_tokens_min,
            kv_tokens_max: config.kv_tokens_max,
            kv_format: config.kv_format.wish(),
        }
    }
}

/// All that a plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The replica that is placed.
    pub id: ReplicaId,
    /// The generation that the placement gets.
    pub generation: Generation,
    /// What the model needs; checked by [`ModelFootprint::check`].
    pub footprint: &'a ModelFootprint,
    /// Devices that may be used, in any order, none twice.
    pub candidates: &'a [Candidate],
    /// What is asked for.
    pub wishes: Wishes,
    /// Bounds of its steps; the footprint's scratch is that of them.
    pub steps: StepBounds,
    /// Where the replica was before: among equally good plans devices keep what they had.
    pub previous: Option<&'a Replica>,
    /// Copies that devices keep: they take the places of devices that are gone, and count as what devices had.
    pub standbys: &'a [Standby],
}

/// A placement that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The placement.
    pub replica: Replica,
    /// Whether it has the stages and expert groups that were wished.
    pub wishes_met: bool,
    /// Whether it has fewer of either than were wished, as with too few devices; more is what a model too large for
    /// the wishes gets.
    pub falls_short: bool,
}

/// No placement fits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Missing {
    /// What is missing and where, for people.
    pub reason: String,
    /// Bytes of device memory that are missing; 0 if memory is not what is missing.
    pub missing_bytes: u64,
}

/// Plans a replica.
///
/// Of the wished shapes, and then of those nearest to them, the first that fits is taken; for it the slowest stage is
/// made as fast as can be, then the cache as large as fits. Choice and order of devices are exact for up to eight
/// stages over eight devices without expert groups; beyond that some orders are tried and the best is taken.
///
/// Where devices of the previous placement are gone and others keep copies of all that they had, those take their places
/// and nothing else moves, unless only another placement has the wished shape: it serves without anything being read.
///
/// Without a wished format of the cache f16 comes first, and is left where a processor would own a stage.
pub fn plan(request: &Request<'_>) -> Result<Plan, Missing> {
    if let Some(format) = request.wishes.kv_format {
        return plan_with(request, format);
    }
    let (processors, gpus): (Vec<&Candidate>, Vec<&Candidate>) =
        request.candidates.iter().partition(|candidate| candidate.is_cpu);
    let is_gpu = |owner: &DeviceRef| processors.iter().all(|candidate| candidate.device != *owner);
    let on_gpus = |plan: &Plan| plan.replica.stages.iter().all(|stage| is_gpu(&stage.owner));
    let (f32, f16) = (KvFormat::usual(true), KvFormat::usual(false));
    if processors.is_empty() {
        return plan_with(request, f16);
    }
    if !gpus.is_empty()
        && let Ok(plan) = plan_with(request, f16)
        && on_gpus(&plan)
    {
        return Ok(plan);
    }
    let mut plan = plan_with(request, f32)?;
    if on_gpus(&plan) {
        // What fits as f32 fits as f16.
        plan.replica.kv.format = f16;
    }
    Ok(plan)
}

/// As [`plan`], with a cache of this format.
fn plan_with(request: &Request<'_>, format: KvFormat) -> Result<Plan, Missing> {
    let search = search::Search::new(*request, format);
    let promoted = search.promoted();
    if let Some(plan) = promoted.as_ref().filter(|plan| plan.wishes_met) {
        return Ok(plan.clone());
    }
    match (search.run(), promoted) {
        (Ok(found), Some(_)) if found.wishes_met => Ok(found),
        (_, Some(promoted)) => Ok(promoted),
        (found, None) => found,
    }
}
