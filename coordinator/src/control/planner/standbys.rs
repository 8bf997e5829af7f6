//! Spare memory filled with copies of weights: who stands by for whom.
//!
//! The value of copies is the bytes that need not be read when a worker is lost. Workers come in the order of the bytes
//! that they compute with, and one whose every place can be taken over ([`promote`]) comes before parts of others. A copy
//! lies on another worker than what it is of; one of each share is enough. What a device would need beside the copy as
//! the owner of its layers, cache and scratch, must fit as well.
//!
//! Pure and deterministic, and a fixed point: devices that keep a copy go on with it among equals.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use tramontane_model::ids::{DeviceRef, WorkerId};
use tramontane_model::placement::Replica;
use tramontane_model::standby::{Place, Share, Standby};

use super::Candidate;
use super::promote::{Copies, promote};
use crate::control::footprint::{DeviceLimits, ModelFootprint, usage};
use crate::control::limits::MAX_SHARES;
use crate::control::standby::share_bytes;

/// Most devices that copies are offered to, those with the most room.
const MAX_OFFERED: usize = 1024;
/// Most places that copies are sought for.
const MAX_PLACES: usize = MAX_SHARES;

/// What standbys are chosen for.
#[derive(Clone, Copy, Debug)]
pub struct Spare<'a> {
    /// What the model needs.
    pub footprint: &'a ModelFootprint,
    /// The replicas that serve, no device in two of them.
    pub replicas: &'a [&'a Replica],
    /// Every device that may be used, those of the replicas among them; none twice.
    pub candidates: &'a [Candidate],
    /// Whether devices that compute may be given copies that they do not keep yet: loading takes some of their time.
    pub on_busy: bool,
    /// Devices that are to be given no copies.
    pub left_out: &'a BTreeSet<DeviceRef>,
    /// The standbys that there are.
    pub present: &'a [Standby],
}

/// Chooses the standbys for all spare memory.
pub fn fill(spare: &Spare<'_>) -> Vec<Standby> {
    let mut filling = Filling::new(*spare);
    let places = |worker: &WorkerId| -> Vec<At<'_>> {
        let all = spare.replicas.iter().enumerate();
        let of = all.flat_map(|(replica, placed)| {
            let own = placed.places().filter(|place| place.device.worker == *worker);
            own.map(move |place| At { replica, place })
        });
        of.collect()
    };
    let workers: BTreeSet<&WorkerId> = spare
        .replicas
        .iter()
        .flat_map(|replica| replica.devices())
        .map(|device| &device.worker)
        .collect();
    let bytes = |at: &At<'_>| share_bytes(spare.footprint, &at.place.share);
    let mut at_stake: Vec<(u128, &WorkerId, Vec<At<'_>>)> = workers
        .into_iter()
        .map(|worker| {
            let places = places(worker);
            (
                places.iter().map(|at| u128::from(bytes(at))).sum(),
                worker,
                places,
            )
        })
        .collect();
    at_stake.sort_by_key(|&(bytes, worker, _)| (Reverse(bytes), worker));
    let mut parts: Vec<At<'_>> = Vec::new();
    let mut left = MAX_PLACES;
    for (_, worker, mut places) in at_stake {
        places.truncate(left);
        left -= places.len();
        places.sort_by_key(|at| (Reverse(bytes(at)), at.replica, at.place.stage, at.place.group));
        if !filling.cover(worker, &places) {
            parts.extend(places);
        }
    }
    parts.sort_by_key(|at| Reverse(bytes(at)));
    for at in parts {
        filling.copy(&at);
    }
    filling.standbys()
}

/// Bytes that would have to be read if a worker were lost that takes part in a replica.
pub fn read_after(
    footprint: &ModelFootprint,
    replica: &Replica,
    worker: &WorkerId,
    copies: &[Standby],
    limits: impl Fn(&DeviceRef) -> Option<DeviceLimits>,
) -> u64 {
    let limits = |device: &DeviceRef| limits(device).filter(|_| device.worker != *worker);
    if promote(footprint, replica, replica.generation, copies, limits).is_some() {
        return 0;
    }
    let bytes = |open: bool| {
        let stands_by = |share: &Share| {
            let mut others = copies.iter().filter(|copy| copy.device.worker != *worker);
            others.any(|copy| copy.shares.contains(share))
        };
        let places = replica.places().filter(|place| place.device.worker == *worker);
        let open = places.filter(|place| !open || !stands_by(&place.share));
        let bytes = open.map(|place| share_bytes(footprint, &place.share));
        bytes.fold(0, u64::saturating_add)
    };
    // Copies that no placement can be built of save nothing for sure.
    Some(bytes(true))
        .filter(|&open| open > 0)
        .unwrap_or_else(|| bytes(false))
}

/// A place of one of the replicas.
#[derive(Clone, Copy, Debug)]
struct At<'a> {
    replica: usize,
    place: Place<'a>,
}

/// A device while its memory is filled.
#[derive(Clone, Debug)]
struct Room<'a> {
    candidate: &'a Candidate,
    /// The replica that it takes part in, and the stage that it owns there.
    replica: Option<usize>,
    owned: Option<usize>,
    /// What it holds there.
    computes: Vec<Share>,
    /// Bytes that are left.
    free: u64,
    shares: Vec<Share>,
}

struct Filling<'a> {
    spare: Spare<'a>,
    rooms: BTreeMap<&'a DeviceRef, Room<'a>>,
    /// Devices that copies are offered to.
    offered: Vec<&'a DeviceRef>,
    /// Copies so far, in the order in which they were given.
    given: Vec<(&'a DeviceRef, u64)>,
}

impl Copies for BTreeMap<&DeviceRef, Room<'_>> {
    fn has(&self, device: &DeviceRef, share: &Share) -> bool {
        self.get(device).is_some_and(|room| room.shares.contains(share))
    }

    fn devices(&self) -> impl Iterator<Item = &DeviceRef> {
        self.iter()
            .filter(|(_, room)| !room.shares.is_empty())
            .map(|(&device, _)| device)
    }
}

impl<'a> Filling<'a> {
    fn new(spare: Spare<'a>) -> Self {
        let mut used = BTreeMap::new();
        for (index, replica) in spare.replicas.iter().enumerate() {
            for (device, used_by) in usage(spare.footprint, replica) {
                used.insert(device, (index, used_by.total_bytes()));
            }
        }
        let rooms = spare.candidates.iter().map(|candidate| {
            let device = &candidate.device;
            let own = used.get(device).copied();
            let replica = own.map(|(replica, _)| replica);
            let placed = replica.map(|replica| spare.replicas[replica]);
            let computes = placed.map(|placed| placed.shares_of(device).collect());
            let owned =
                placed.and_then(|placed| placed.stages.iter().position(|stage| stage.owner == *device));
            let room = Room {
                candidate,
                replica,
                owned,
                computes: computes.unwrap_or_default(),
                free: candidate
                    .memory_bytes
                    .saturating_sub(own.map_or(0, |(_, bytes)| bytes)),
                shares: Vec::new(),
            };
            (device, room)
        });
        let rooms: BTreeMap<&DeviceRef, Room<'_>> = rooms.collect();
        let mut offered: Vec<&DeviceRef> = rooms.keys().copied().collect();
        offered.retain(|device| !spare.left_out.contains(*device));
        offered.sort_by_key(|device| (Reverse(rooms[device].free), *device));
        offered.truncate(MAX_OFFERED);
        Self {
            spare,
            rooms,
            offered,
            given: Vec::new(),
        }
    }

    /// Copies everything that a worker computes with, so that its loss needs no reading; nothing if that cannot be.
    fn cover(&mut self, worker: &WorkerId, places: &[At<'_>]) -> bool {
        let before = self.given.len();
        let covered = places.iter().all(|at| self.copy(at)) && self.is_covered(worker, places);
        if !covered {
            for (device, bytes) in self.given.drain(before..).rev() {
                if let Some(room) = self.rooms.get_mut(device) {
                    room.shares.pop();
                    room.free += bytes;
                }
            }
        }
        covered
    }

    /// Whether each replica that a worker takes part in can go on without it and without reading.
    fn is_covered(&self, worker: &WorkerId, places: &[At<'_>]) -> bool {
        let replicas: BTreeSet<usize> = places.iter().map(|at| at.replica).collect();
        replicas.into_iter().all(|index| {
            let limits = |device: &DeviceRef| {
                let room = self.rooms.get(device)?;
                let may = device.worker != *worker && room.replica.is_none_or(|own| own == index);
                may.then_some(DeviceLimits {
                    memory_bytes: room.candidate.memory_bytes,
                    max_binding_bytes: room.candidate.max_binding_bytes,
                })
            };
            let replica = self.spare.replicas[index];
            let generation = replica.generation;
            promote(self.spare.footprint, replica, generation, &self.rooms, limits).is_some()
        })
    }

    /// Gives some device a copy of a place's share, if none has one and there is room. Says whether one has it then.
    fn copy(&mut self, at: &At<'_>) -> bool {
        let share = at.place.share;
        let kind = |device: &DeviceRef| {
            let known = self.rooms.get(device);
            known.map(|room| room.candidate.kind.as_str())
        };
        let wanted_kind = kind(at.place.device);
        let offered = self.offered.iter().map(|device| (*device, &self.rooms[device]));
        let able = offered.filter(|(_, room)| self.is_able(room, at));
        let best = able.min_by_key(|&(device, room)| {
            (
                !room.shares.contains(&share),
                Some(room.candidate.kind.as_str()) != wanted_kind,
                room.replica.is_some(),
                !self.spare.present.has(device, &share),
                Reverse(room.free),
                device,
            )
        });
        let Some(device) = best.map(|(device, _)| device) else {
            return false;
        };
        let bytes = share_bytes(self.spare.footprint, &share);
        if let Some(room) = self.rooms.get_mut(device)
            && !room.shares.contains(&share)
        {
            room.free -= bytes;
            room.shares.push(share);
            self.given.push((device, bytes));
        }
        true
    }

    /// Whether a device has, or could be given, a copy for a place, and take the place.
    fn is_able(&self, room: &Room<'_>, at: &At<'_>) -> bool {
        let Place {
            stage,
            group,
            device,
            share,
        } = at.place;
        if room.candidate.device.worker == device.worker {
            return false;
        }
        let replica = self.spare.replicas[at.replica];
        if room.replica.is_some_and(|own| own != at.replica) {
            return false;
        }
        if group == 0
            && let Some(owned) = room.owned
        {
            let next = owned.abs_diff(stage) == 1;
            let whole = |index: usize| replica.stages[index].groups.len() <= 1;
            if !next || !whole(owned) || !whole(stage) {
                return false;
            }
        }
        if room.shares.contains(&share) {
            return true;
        }
        let keeps = self.spare.present.has(&room.candidate.device, &share);
        if room.replica.is_some() && !self.spare.on_busy && !keeps {
            return false;
        }
        if self.given.len() >= MAX_SHARES || room.computes.iter().any(|other| other.overlaps(&share)) {
            return false;
        }
        let (beside, binding) = self.beside(replica, &share);
        let bytes = share_bytes(self.spare.footprint, &share).saturating_add(beside);
        bytes <= room.free && binding <= room.candidate.max_binding_bytes
    }

    /// What a device that computes a share of this replica needs beside weights, and its largest binding, in bytes.
    fn beside(&self, replica: &Replica, share: &Share) -> (u64, u64) {
        let footprint = self.spare.footprint;
        if !share.owned() {
            return (footprint.scratch.holder_bytes, 0);
        }
        let tokens = u64::from(replica.kv.blocks).saturating_mul(u64::from(replica.kv.block_tokens));
        let layers = share.layers().iter();
        let caches = layers.filter_map(|layer| footprint.layers.get(layer as usize));
        let last = share.layers().end() == footprint.n_layers();
        let (mut bytes, mut binding) = (footprint.scratch.of_owner(last), 0u64);
        for layer in caches {
            let cache = layer.kv_bytes(replica.kv.format).saturating_mul(tokens);
            bytes = bytes.saturating_add(cache);
            binding = binding.max(cache);
        }
        (bytes, binding)
    }

    fn standbys(self) -> Vec<Standby> {
        let kept = self.rooms.into_iter().filter(|(_, room)| !room.shares.is_empty());
        let each = kept.map(|(device, mut room)| {
            room.shares.sort_unstable();
            Standby {
                device: device.clone(),
                shares: room.shares,
            }
        });
        each.collect()
    }
}
