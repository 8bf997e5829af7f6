//! The candidates in the order in which they are used, and teams of them.
//!
//! Larger devices first; among devices of about the same size every worker's first comes before any worker's second,
//! then devices of the kind with the most memory, then by name.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use tramontane_model::ids::{DeviceRef, WorkerId};

use super::Candidate;
use super::demand::Room;

/// Candidates in order.
#[derive(Debug)]
pub(super) struct Devices<'a> {
    /// The candidates, best first.
    pub(super) sorted: Vec<&'a Candidate>,
    /// Positions of those that can own a stage.
    owners: Vec<usize>,
}

/// Devices of one stage by their position, the owner first.
pub(super) type Members = Vec<usize>;

/// Sizes that differ by less than a sixteenth count as the same.
fn size_class(bytes: u64) -> u64 {
    let bits = u64::BITS - bytes.leading_zeros();
    let shift = bits.saturating_sub(5);
    (u64::from(bits) << 8) | (bytes >> shift)
}

impl<'a> Devices<'a> {
    /// Sorts candidates. `smallest_cache` is what a device must be able to bind to own any layer.
    pub(super) fn new(candidates: &'a [Candidate], smallest_cache: u128) -> Self {
        let mut of_kind: BTreeMap<&str, u128> = BTreeMap::new();
        for candidate in candidates {
            *of_kind.entry(&candidate.kind).or_default() += u128::from(candidate.memory_bytes);
        }
        let mut by_name: Vec<&Candidate> = candidates.iter().collect();
        by_name.sort_by_key(|candidate| (Reverse(candidate.memory_bytes), candidate.device.clone()));
        let mut turns: BTreeMap<(&WorkerId, u64), u32> = BTreeMap::new();
        let mut keyed: Vec<_> = by_name
            .into_iter()
            .map(|candidate| {
                let class = size_class(candidate.memory_bytes);
                let turn = turns.entry((&candidate.device.worker, class)).or_default();
                *turn += 1;
                let kind = of_kind.get(candidate.kind.as_str()).copied().unwrap_or(0);
                let key = (Reverse(class), *turn, Reverse(kind), candidate.kind.as_str());
                (
                    (key, Reverse(candidate.memory_bytes), &candidate.device),
                    candidate,
                )
            })
            .collect();
        keyed.sort_by(|left, right| left.0.cmp(&right.0));
        let sorted: Vec<&Candidate> = keyed.into_iter().map(|(_, candidate)| candidate).collect();
        let owns = |&index: &usize| u128::from(sorted[index].max_binding_bytes) >= smallest_cache;
        let owners = (0..sorted.len()).filter(owns).collect();
        Self { sorted, owners }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Where a device is.
    pub(super) fn position(&self, device: &DeviceRef) -> Option<usize> {
        self.sorted
            .iter()
            .position(|candidate| candidate.device == *device)
    }

    /// A device as the search sees it, with `extra` bytes more than it has.
    pub(super) fn room(&self, index: usize, extra: u64) -> Room {
        let candidate = self.sorted[index];
        Room {
            memory: candidate.memory_bytes.saturating_add(extra),
            binding: candidate.max_binding_bytes,
        }
    }

    /// Teams of `groups` devices for `stages` stages. With one group there are as many as there are devices, so that
    /// the search may choose; with more, the largest own and each next device goes to the team with the least memory.
    pub(super) fn teams(&self, stages: usize, groups: usize) -> Option<Vec<Members>> {
        if groups == 1 {
            let teams: Vec<Members> = self.owners.iter().map(|&index| vec![index]).collect();
            return (teams.len() >= stages).then_some(teams);
        }
        let owners = self.owners.get(..stages)?;
        let mut rest = (0..self.len()).filter(|index| !owners.contains(index));
        let mut teams: Vec<(u128, Members)> = owners
            .iter()
            .map(|&index| (self.sorted[index].memory_bytes.into(), vec![index]))
            .collect();
        for _ in 1..groups {
            let mut order: Vec<usize> = (0..stages).collect();
            order.sort_by_key(|&team| (teams[team].0, team));
            for team in order {
                let next = rest.next()?;
                teams[team].0 += u128::from(self.sorted[next].memory_bytes);
                teams[team].1.push(next);
            }
        }
        Some(teams.into_iter().map(|(_, members)| members).collect())
    }

    /// The most memory that so many devices have together.
    pub(super) fn most_memory(&self, devices: usize) -> u128 {
        let mut all: Vec<u64> = self.sorted.iter().map(|one| one.memory_bytes).collect();
        all.sort_unstable_by_key(|&bytes| Reverse(bytes));
        all.iter().take(devices).copied().map(u128::from).sum()
    }
}
