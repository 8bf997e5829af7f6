//! What a range of layers asks of the devices of one stage: room, time, and who gets how many experts.
//!
//! **Time.** A stage's time for a step of one token is taken to be the bytes of weights that are read for it:
//! `sum over its layers of owner_bytes / memory(owner) + experts_per_token * expert_bytes * share / memory(holder)`,
//! where `share` is the part of the routed experts that the slowest holder has. It is an approximation: memory stands
//! in for bandwidth, which nobody has measured; experts are taken to be visited evenly; links, the cache that attention
//! reads, embedding and head are left out.

use std::ops::Range;

use tramontane_model::placement::KvFormat;

use crate::control::footprint::{LayerFootprint, ModelFootprint};

#[cfg(test)]
thread_local! {
    /// How often this thread's searches asked whether a stage fits: what a search costs.
    pub(super) static TRIED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Bits of fraction in a time.
const TIME_BITS: u32 = 32;

/// What bounds a stage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Longest time of a stage, see the module.
    pub(super) time: u128,
    /// Tokens of the smallest cache: experts are split by the room that it leaves, so that a larger cache does not push
    /// them off the owner and make the split uneven.
    pub(super) least: u64,
    /// Tokens that the cache must hold, no fewer than those.
    pub(super) tokens: u64,
}

impl Limits {
    /// Limits with the smallest cache.
    pub(super) fn new(time: u128, tokens: u64) -> Self {
        let least = tokens;
        Self { time, least, tokens }
    }
}

/// A device as the search sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Bytes that it has.
    pub(super) memory: u64,
    /// Bytes that it can bind.
    pub(super) binding: u64,
}

/// Sums over consecutive layers, extended one by one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    owner: u128,
    expert: u128,
    kv_token: u128,
    kv_largest: u128,
}

impl Sums {
    fn add(&mut self, layer: &LayerFootprint, format: KvFormat) {
        let kv_token = u128::from(layer.kv_bytes(format));
        self.owner += u128::from(layer.owner_bytes);
        self.expert += u128::from(layer.expert_bytes);
        self.kv_token += kv_token;
        self.kv_largest = self.kv_largest.max(kv_token);
    }
}

/// Experts and time of one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    /// Experts of each device of the team, the owner's first; empty without routed experts.
    pub(super) shares: Vec<u32>,
    /// Its time.
    pub(super) time: u128,
}

/// A model's demand, with a cache of one format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand<'a> {
    pub(super) footprint: &'a ModelFootprint,
    pub(super) format: KvFormat,
}

impl Demand<'_> {
    /// Layers of the model.
    pub(super) fn layers(&self) -> usize {
        self.footprint.layers.len()
    }

    /// Sums with one layer more.
    pub(super) fn add(&self, sums: &mut Sums, layer: usize) {
        sums.add(&self.footprint.layers[layer], self.format);
    }

    /// Sums over layers.
    pub(super) fn sums(&self, layers: Range<usize>) -> Sums {
        let mut sums = Sums::default();
        layers.for_each(|layer| self.add(&mut sums, layer));
        sums
    }

    /// Bytes of a cache of so many tokens, in all layers.
    pub(super) fn kv_bytes(&self, tokens: u64) -> u128 {
        self.sums(0..self.layers()).kv_token * u128::from(tokens)
    }

    /// Bytes read for one token in a layer, wherever they lie.
    pub(super) fn read_bytes(&self, layer: usize) -> u128 {
        let layer = &self.footprint.layers[layer];
        u128::from(layer.owner_bytes)
            + u128::from(self.footprint.experts_per_token) * u128::from(layer.expert_bytes)
    }

    /// Bytes beside experts that the owner of the layers `start..end` holds for a cache of `tokens`.
    fn owner_bytes(&self, sums: &Sums, start: usize, end: usize, tokens: u64) -> u128 {
        let scratch = self.footprint.scratch.of_owner(end == self.layers());
        let mut bytes = sums.owner + u128::from(scratch);
        #[cfg(feature = "deliberate-bugs")]
        if tramontane_sim::bugs::on(tramontane_sim::bugs::Bug::OverfilledDevice) {
            bytes = sums.owner;
        }
        bytes += sums.kv_token * u128::from(tokens);
        bytes + u128::from(self.footprint.end_bytes(start == 0, end == self.layers()))
    }

    /// Whether a team, its owner first, can be given the layers `start..end` with these sums. What fits still fits with
    /// layers less at either end; with a cache above the smallest and expert groups, nearly always.
    pub(super) fn fit(
        &self,
        sums: &Sums,
        (start, end): (usize, usize),
        team: &[Room],
        limits: Limits,
    ) -> Option<Fit> {
        #[cfg(test)]
        TRIED.set(TRIED.get() + 1);
        let (owner, helpers) = team.split_first()?;
        let beside = |tokens| {
            let own = self.owner_bytes(sums, start, end, tokens);
            u128::from(owner.memory).checked_sub(own)
        };
        let (free, left) = (beside(limits.least)?, beside(limits.tokens)?);
        if sums.kv_largest * u128::from(limits.tokens) > u128::from(owner.binding) {
            return None;
        }
        let mut time = time(sums.owner, owner.memory);
        if time > limits.time {
            return None;
        }
        if sums.expert == 0 {
            let shares = Vec::new();
            return Some(Fit { shares, time });
        }
        let n_experts = self.footprint.n_experts;
        let cap = |free: u128| {
            u32::try_from(free / sums.expert)
                .unwrap_or(u32::MAX)
                .min(n_experts)
        };
        let shares = if helpers.is_empty() {
            (cap(free) == n_experts).then(|| vec![n_experts])?
        } else {
            let scratch = self.footprint.scratch.holder_bytes;
            let room = |helper: &Room| cap(helper.memory.saturating_sub(scratch).into());
            let caps: Vec<u32> = std::iter::once(cap(free))
                .chain(helpers.iter().map(room))
                .collect();
            split(n_experts, &caps, team)?
        };
        if sums.expert * u128::from(*shares.first()?) > left {
            return None;
        }
        let read = sums.expert * u128::from(self.footprint.experts_per_token);
        let of_share = |(room, &share): (&Room, &u32)| {
            self::time(
                read * u128::from(share) / u128::from(n_experts.max(1)),
                room.memory,
            )
        };
        time += team.iter().zip(&shares).map(of_share).max().unwrap_or(0);
        (time <= limits.time).then_some(Fit { shares, time })
    }

    /// Most tokens of cache that the owner of a stage has room for beside the rest.
    pub(super) fn tokens(&self, (start, end): (usize, usize), owner: Room, share: u32) -> u64 {
        let sums = self.sums(start..end);
        let taken = self.owner_bytes(&sums, start, end, 0) + sums.expert * u128::from(share);
        let free = u128::from(owner.memory).saturating_sub(taken);
        let by_memory = free.checked_div(sums.kv_token).unwrap_or(u128::MAX);
        let by_binding = u128::from(owner.binding)
            .checked_div(sums.kv_largest)
            .unwrap_or(u128::MAX);
        u64::try_from(by_memory.min(by_binding)).unwrap_or(u64::MAX)
    }
}

fn time(bytes: u128, memory: u64) -> u128 {
    (bytes << TIME_BITS) / u128::from(memory.max(1))
}

/// Splits experts by the devices' memory, none without any and none above its cap, so that the largest share by memory
/// is as small as can be.
fn split(experts: u32, caps: &[u32], team: &[Room]) -> Option<Vec<u32>> {
    let total: u64 = caps.iter().copied().map(u64::from).sum();
    if total < experts.into() || caps.contains(&0) || caps.len() > experts as usize {
        return None;
    }
    let weight = |index: usize| u128::from(team[index].memory.max(1));
    let mut shares = vec![0u32; caps.len()];
    let mut open: Vec<usize> = (0..caps.len()).collect();
    let mut left = experts;
    // Devices whose part by memory is beyond their cap get their cap, the others what is left.
    loop {
        let weights: u128 = open.iter().map(|&index| weight(index)).sum();
        let part = |index: usize| u128::from(left) * weight(index) / weights.max(1);
        let (full, rest): (Vec<usize>, Vec<usize>) =
            open.iter().partition(|&&index| part(index) >= caps[index].into());
        if full.is_empty() {
            for &index in &rest {
                shares[index] = u32::try_from(part(index)).unwrap_or(u32::MAX);
            }
            break;
        }
        for &index in &full {
            shares[index] = caps[index];
            left = left.saturating_sub(caps[index]);
        }
        open = rest;
    }
    for share in &mut shares {
        *share = (*share).max(1);
    }
    let mut given: u32 = shares.iter().sum();
    // Rounding leaves fewer experts than there are devices, and the floor of one takes no more than that.
    while given < experts {
        let able = (0..shares.len()).filter(|&index| shares[index] < caps[index]);
        let next = able.min_by_key(|&index| (u128::from(shares[index] + 1) << TIME_BITS) / weight(index))?;
        shares[next] += 1;
        given += 1;
    }
    while given > experts {
        let able = (0..shares.len()).filter(|&index| shares[index] > 1);
        let next = able.max_by_key(|&index| (u128::from(shares[index]) << TIME_BITS) / weight(index))?;
        shares[next] -= 1;
        given -= 1;
    }
    Some(shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms(memory: &[u64]) -> Vec<Room> {
        let room = |&memory| Room {
            memory,
            binding: u64::MAX,
        };
        memory.iter().map(room).collect()
    }

    #[test]
    fn experts_go_by_memory_and_room() {
        for (experts, caps, memory, expected) in [
            (16, vec![16, 16], vec![80, 80], Some(vec![8, 8])),
            (16, vec![5, 16], vec![80, 80], Some(vec![5, 11])),
            (128, vec![128; 3], vec![80, 80, 80], Some(vec![43, 43, 42])),
            (12, vec![12, 12], vec![160, 80], Some(vec![8, 4])),
            (16, vec![4, 4], vec![80, 80], None),
            (16, vec![16, 0], vec![80, 80], None),
            (2, vec![2, 2], vec![1 << 40, 1], Some(vec![1, 1])),
            (1, vec![1, 1], vec![80, 80], None),
        ] {
            let found = split(experts, &caps, &rooms(&memory));
            assert_eq!(found, expected, "{experts} {caps:?} {memory:?}");
        }
    }
}
