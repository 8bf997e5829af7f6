//! Standbys in place of devices that are gone: the placement that follows without a byte being read.
//!
//! Everything else stays where it is. Where the device that stands by owns a stage next to the one that is gone, the two
//! become one.

use std::collections::BTreeSet;

use tramontane_model::ids::{DeviceRef, Generation};
use tramontane_model::placement::{ExpertGroup, ExpertRange, LayerRange, Replica, Stage};
use tramontane_model::standby::{Place, Share, Standby};

use crate::control::footprint::{DeviceLimits, ModelFootprint, verify};

/// Who stands by for what.
pub(super) trait Copies {
    /// Whether a device keeps a copy of a share.
    fn has(&self, device: &DeviceRef, share: &Share) -> bool;
    /// Devices that keep copies, in order.
    fn devices(&self) -> impl Iterator<Item = &DeviceRef>;
}

impl Copies for [Standby] {
    fn has(&self, device: &DeviceRef, share: &Share) -> bool {
        let mut own = self.iter().filter(|standby| standby.device == *device);
        own.any(|standby| standby.shares.contains(share))
    }

    fn devices(&self) -> impl Iterator<Item = &DeviceRef> {
        self.iter().map(|standby| &standby.device)
    }
}

/// The next generation of a replica some of whose devices have no limits any more, if for each of their places another
/// device stands by. `None` too if none of them is gone.
pub(super) fn promote<C: Copies + ?Sized>(
    footprint: &ModelFootprint,
    previous: &Replica,
    generation: Generation,
    copies: &C,
    limits: impl Fn(&DeviceRef) -> Option<DeviceLimits>,
) -> Option<Replica> {
    let gone: Vec<Place<'_>> = previous
        .places()
        .filter(|place| limits(place.device).is_none())
        .collect();
    if gone.is_empty() {
        return None;
    }
    let mut replica = Replica {
        generation,
        ..previous.clone()
    };
    for place in gone {
        let stands_by = |device: &&DeviceRef| limits(device).is_some() && copies.has(device, &place.share);
        let able = copies.devices().filter(stands_by);
        let next = able
            .min_by_key(|device| burden(&replica, &place, device))?
            .clone();
        let stage = &mut replica.stages[place.stage];
        if let Some(group) = stage.groups.get_mut(place.group) {
            group.holder = next.clone();
        }
        if place.group == 0 {
            stage.owner = next;
        }
    }
    replica.stages = joined(footprint, replica.stages)?;
    let shape = (
        footprint.n_layers(),
        footprint.n_experts,
        footprint.first_moe_layer(),
    );
    replica.validate(shape.0, shape.1, shape.2).ok()?;
    verify(footprint, &replica, limits).ok()?;
    Some(replica)
}

/// What a device does in a replica already; one that does nothing comes first, and an owner is taken for a stage only
/// next to its own.
fn burden(replica: &Replica, place: &Place<'_>, device: &DeviceRef) -> u32 {
    let owns = |index: Option<usize>| {
        let stage = index.and_then(|index| replica.stages.get(index));
        stage.is_some_and(|stage| stage.owner == *device)
    };
    if !replica.devices().contains(device) {
        return 0;
    }
    if !replica.stages.iter().any(|stage| stage.owner == *device) {
        return 1;
    }
    match place.group == 0 && !owns(place.stage.checked_sub(1)) && !owns(Some(place.stage + 1)) {
        false => 2,
        true => 3,
    }
}

/// Joins consecutive stages of one owner; `None` if it owns others too, or if their experts are split.
fn joined(footprint: &ModelFootprint, stages: Vec<Stage>) -> Option<Vec<Stage>> {
    let mut whole: Vec<Stage> = Vec::with_capacity(stages.len());
    for stage in stages {
        let Some(last) = whole.last_mut().filter(|last| last.owner == stage.owner) else {
            whole.push(stage);
            continue;
        };
        if last.groups.len() > 1 || stage.groups.len() > 1 {
            return None;
        }
        last.layers = LayerRange::new(last.layers.start(), stage.layers.end())?;
        if last.groups.len() + stage.groups.len() > 0 {
            last.groups = vec![ExpertGroup {
                experts: ExpertRange::new(0, footprint.n_experts)?,
                holder: stage.owner,
            }];
        }
    }
    let owners: BTreeSet<&DeviceRef> = whole.iter().map(|stage| &stage.owner).collect();
    (owners.len() == whole.len()).then_some(whole)
}
