//! Which devices keep what they hold.
//!
//! Only devices that can stand for one another are exchanged, so a plan gets no slower and no smaller by it.

use std::collections::{BTreeMap, BTreeSet};

use tramontane_model::ids::DeviceRef;
use tramontane_model::placement::{LayerRange, Replica, Stage};
use tramontane_model::standby::Standby;

use super::Candidate;
use crate::control::footprint::ModelFootprint;

/// Rounds of exchanges; each brings devices nearer to what they hold, and few are needed.
const MAX_ROUNDS: usize = 4;

/// Experts of some layers.
type Part = (LayerRange, (u32, u32));

/// What devices hold: their places in a placement, and copies.
#[derive(Debug)]
pub(super) struct Held<'a> {
    footprint: &'a ModelFootprint,
    owned: BTreeMap<&'a DeviceRef, Vec<LayerRange>>,
    experts: BTreeMap<&'a DeviceRef, Vec<Part>>,
}

impl<'a> Held<'a> {
    /// What `previous` gave to devices, and what they keep copies of.
    pub(super) fn new(
        footprint: &'a ModelFootprint,
        previous: Option<&'a Replica>,
        standbys: &'a [Standby],
    ) -> Self {
        let mut owned: BTreeMap<_, Vec<LayerRange>> = BTreeMap::new();
        let mut experts: BTreeMap<_, Vec<Part>> = BTreeMap::new();
        let places = previous.into_iter().flat_map(Replica::places);
        let placed = places.map(|place| (place.device, place.share));
        let copies = standbys
            .iter()
            .flat_map(|standby| standby.shares.iter().map(|&share| (&standby.device, share)));
        for (device, share) in placed.chain(copies) {
            if share.owned() {
                owned.entry(device).or_default().push(share.layers());
            }
            if let Some(range) = share.experts() {
                let part = (share.layers(), (range.start(), range.end()));
                experts.entry(device).or_default().push(part);
            }
        }
        Self {
            footprint,
            owned,
            experts,
        }
    }

    fn devices(&self) -> BTreeSet<&'a DeviceRef> {
        self.owned.keys().chain(self.experts.keys()).copied().collect()
    }

    fn layer_bytes(&self, left: LayerRange, right: LayerRange, of: impl Fn(usize) -> u64) -> u128 {
        let (start, end) = (left.start().max(right.start()), left.end().min(right.end()));
        let layers = (start as usize)..(end as usize).min(self.footprint.layers.len());
        layers.map(|layer| u128::from(of(layer))).sum()
    }

    /// Bytes that a device need not load if it takes this place of a stage.
    fn kept(&self, device: &DeviceRef, stage: &Stage, group: usize) -> u128 {
        let mut bytes = 0;
        let owned = self.owned.get(device).filter(|_| group == 0);
        for &owned in owned.map_or(&[][..], Vec::as_slice) {
            let owner_bytes = |layer: usize| self.footprint.layers[layer].owner_bytes;
            bytes += self.layer_bytes(owned, stage.layers, owner_bytes);
        }
        let Some(wanted) = stage.groups.get(group) else {
            return bytes;
        };
        for &(layers, (start, end)) in self.experts.get(device).map_or(&[][..], Vec::as_slice) {
            let start = start.max(wanted.experts.start());
            let shared = end.min(wanted.experts.end()).saturating_sub(start);
            let expert_bytes = |layer: usize| self.footprint.layers[layer].expert_bytes;
            bytes += self.layer_bytes(layers, stage.layers, expert_bytes) * u128::from(shared);
        }
        bytes
    }

    /// Bytes that need not be loaded if this placement follows.
    pub(super) fn kept_by(&self, replica: &Replica) -> u128 {
        let places = places(replica);
        let of_place = |&(stage, group): &Place| {
            let device = device(replica, (stage, group));
            self.kept(device, &replica.stages[stage], group)
        };
        places.iter().map(of_place).sum()
    }

    /// Exchanges devices that can stand for one another until none keeps more by it.
    pub(super) fn settle(&self, replica: &mut Replica, candidates: &[&Candidate]) {
        let known: BTreeMap<&DeviceRef, &Candidate> =
            candidates.iter().map(|one| (&one.device, *one)).collect();
        let equal = |left: &DeviceRef, right: &DeviceRef| {
            known
                .get(left)
                .zip(known.get(right))
                .is_some_and(|(left, right)| {
                    left.memory_bytes == right.memory_bytes
                        && left.max_binding_bytes == right.max_binding_bytes
                })
        };
        let places = places(replica);
        let held = self.devices();
        for _ in 0..MAX_ROUNDS {
            let mut changed = false;
            for &place in &places {
                changed |= self.improve(replica, &places, place, &held, &equal);
            }
            if !changed {
                break;
            }
        }
    }

    /// Gives one place the device that saves the most, if any saves more than the one it has.
    fn improve(
        &self,
        replica: &mut Replica,
        places: &[Place],
        place: Place,
        held: &BTreeSet<&DeviceRef>,
        equal: &impl Fn(&DeviceRef, &DeviceRef) -> bool,
    ) -> bool {
        let at: BTreeMap<DeviceRef, Place> = places
            .iter()
            .map(|&place| (device(replica, place).clone(), place))
            .collect();
        let now = device(replica, place).clone();
        let kept =
            |device: &DeviceRef, (stage, group): Place| self.kept(device, &replica.stages[stage], group);
        let mut best: Option<(u128, DeviceRef)> = None;
        for &other in held.iter().filter(|&&other| *other != now && equal(other, &now)) {
            let elsewhere = at.get(other).copied();
            let before = kept(&now, place) + elsewhere.map_or(0, |place| kept(other, place));
            let after = kept(other, place) + elsewhere.map_or(0, |place| kept(&now, place));
            let gain = after.saturating_sub(before);
            if gain > best.as_ref().map_or(0, |(gain, _)| *gain) {
                best = Some((gain, other.clone()));
            }
        }
        let Some((_, other)) = best else { return false };
        if let Some(&elsewhere) = at.get(&other) {
            put(replica, elsewhere, &now);
        }
        put(replica, place, &other);
        true
    }
}

/// A stage and a group of it; a stage without groups has a place for its owner.
type Place = (usize, usize);

fn places(replica: &Replica) -> Vec<Place> {
    let stages = replica.stages.iter().enumerate();
    stages
        .flat_map(|(index, stage)| (0..stage.groups.len().max(1)).map(move |group| (index, group)))
        .collect()
}

fn device(replica: &Replica, (stage, group): Place) -> &DeviceRef {
    let stage = &replica.stages[stage];
    stage
        .groups
        .get(group)
        .map_or(&stage.owner, |group| &group.holder)
}

fn put(replica: &mut Replica, (stage, group): Place, device: &DeviceRef) {
    let stage = &mut replica.stages[stage];
    if group == 0 {
        stage.owner = device.clone();
    }
    if let Some(group) = stage.groups.get_mut(group) {
        group.holder = device.clone();
    }
}
