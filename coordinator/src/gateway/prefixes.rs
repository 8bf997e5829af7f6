//! Beginnings of prompts, and which replica was last given each.
//!
//! Pure: no clock, no locks, and the key is an argument. Beginnings are told apart by a keyed hash of all blocks so far,
//! as the workers' prefix caches do, the tenant's salt first. Nothing is served from here: a hash that two prompts share
//! sends one of them to another replica than is best, and no more. What a replica really holds is not known here: it
//! is taken to hold what it was last given.

use std::collections::BTreeMap;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;
use tramontane_model::ids::{Fence, ReplicaId};

/// Most beginnings that are remembered: at 16 tokens a block, those of 2 million tokens; at most 16 MiB.
pub(super) const MAX_ENTRIES: usize = 1 << 17;
/// Blocks of one prompt that are looked at: the rest of a longer one changes no choice.
const MAX_BLOCKS: usize = 1 << 12;
const _: () = assert!(MAX_BLOCKS < MAX_ENTRIES);
/// Known to all: gateways spread prompts that they know nothing of alike.
const COMMON_KEY: [u8; 16] = [0; 16];

/// The beginnings of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    /// A hash for each full block, of it and of everything before it.
    blocks: Vec<u64>,
    /// Equal at every gateway for prompts with the same first block.
    spread: u64,
}

impl Prefix {
    /// The beginnings of a prompt, in steps of `block_tokens`.
    pub(super) fn new(key: &[u8; 16], block_tokens: u32, salt: &[u8], prompt: &[u32]) -> Self {
        let block_tokens = usize::try_from(block_tokens).unwrap_or(usize::MAX).max(1);
        let first = prompt.chunks(block_tokens).next().unwrap_or_default();
        let mut before = None;
        let blocks = prompt.chunks_exact(block_tokens).take(MAX_BLOCKS);
        let blocks = blocks.map(|tokens| {
            let hash = hash(key, before, salt, tokens);
            before = Some(hash);
            hash
        });
        Self {
            blocks: blocks.collect(),
            spread: hash(&COMMON_KEY, None, salt, first),
        }
    }

    /// Full blocks of the prompt.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Rendezvous hashing: of equally good replicas the one with the highest rank is taken, so that prompts spread
    /// evenly and each keeps to its replica as others come and go.
    pub(super) fn rank(&self, replica: ReplicaId) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&COMMON_KEY);
        hasher.write_u64(self.spread);
        hasher.write_u64(replica.0);
        hasher.finish()
    }
}

fn hash(key: &[u8; 16], before: Option<u64>, salt: &[u8], tokens: &[u32]) -> u64 {
    let mut hasher = SipHasher13::new_with_key(key);
    match before {
        None => {
            hasher.write_u64(salt.len() as u64);
            hasher.write(salt);
        }
        Some(before) => hasher.write_u64(before),
    }
    for &token in tokens {
        hasher.write_u32(token);
    }
    hasher.finish()
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    fence: Fence,
    used: u64,
}

/// Who was last given which beginnings; the ones not seen for longest are forgotten first, longer ones before what they
/// begin with.
#[derive(Debug)]
pub(super) struct PrefixTable {
    capacity: usize,
    entries: BTreeMap<u64, Entry>,
    by_use: BTreeMap<u64, u64>,
    uses: u64,
}

impl PrefixTable {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            entries: BTreeMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
        }
    }

    /// Notes that a replica is given a prompt.
    pub(super) fn given(&mut self, prefix: &Prefix, fence: Fence) {
        for &block in prefix.blocks.iter().rev() {
            self.uses += 1;
            let used = self.uses;
            if let Some(older) = self.entries.insert(block, Entry { fence, used }) {
                self.by_use.remove(&older.used);
            }
            self.by_use.insert(used, block);
        }
        while self.entries.len() > self.capacity {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                break;
            };
            self.entries.remove(&oldest);
        }
    }

    /// Of the replicas that may be chosen the one that was given the longest beginning of a prompt, and how many blocks
    /// that is. What was given to an older generation is void, as its cache is gone.
    pub(super) fn longest(&self, prefix: &Prefix, may: impl Fn(Fence) -> bool) -> Option<(Fence, usize)> {
        let lengths = (1..=prefix.blocks.len()).rev();
        let mut longest_first = lengths.zip(prefix.blocks.iter().rev());
        longest_first.find_map(|(length, block)| {
            let entry = self.entries.get(block)?;
            may(entry.fence).then_some((entry.fence, length))
        })
    }
}

#[cfg(test)]
mod tests {
    use tramontane_model::ids::Generation;

    use super::*;

    const KEY: [u8; 16] = [7; 16];

    fn prefix(tokens: &[u32]) -> Prefix {
        Prefix::new(&KEY, 2, b"", tokens)
    }

    fn fence(replica: u64, generation: u64) -> Fence {
        Fence {
            replica: ReplicaId(replica),
            generation: Generation(generation),
        }
    }

    fn any(_: Fence) -> bool {
        true
    }

    #[test]
    fn a_beginning_is_found_in_whole_blocks() {
        let mut table = PrefixTable::new(100);
        table.given(&prefix(&[1, 2, 3, 4, 5]), fence(1, 1));
        for (prompt, blocks) in [(&[1, 2, 3, 4, 5, 6][..], 2), (&[1, 2, 3, 9], 1), (&[1, 2], 1)] {
            assert_eq!(table.longest(&prefix(prompt), any), Some((fence(1, 1), blocks)));
        }
        for prompt in [&[1][..], &[], &[2, 1, 3, 4], &[3, 4]] {
            assert_eq!(table.longest(&prefix(prompt), any), None, "{prompt:?}");
        }
        let salted = Prefix::new(&KEY, 2, b"tenant", &[1, 2, 3, 4]);
        assert_eq!(table.longest(&salted, any), None, "another tenant's");
        let keyed = Prefix::new(&[8; 16], 2, b"", &[1, 2, 3, 4]);
        assert_eq!(table.longest(&keyed, any), None, "another gateway's");
    }

    #[test]
    fn the_longest_wins_and_the_last_one_counts() {
        let mut table = PrefixTable::new(100);
        table.given(&prefix(&[1, 2, 3, 4, 5, 6]), fence(1, 1));
        table.given(&prefix(&[1, 2, 3, 4]), fence(2, 1));
        let asked = prefix(&[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(table.longest(&asked, any), Some((fence(1, 1), 3)));
        let second = |fence: Fence| fence.replica == ReplicaId(2);
        assert_eq!(table.longest(&asked, second), Some((fence(2, 1), 2)));
        assert_eq!(table.longest(&prefix(&[1, 2, 9, 9]), any), Some((fence(2, 1), 1)));
        // A new generation has an empty cache.
        let newer = |found: Fence| found == fence(1, 2);
        assert_eq!(table.longest(&asked, newer), None);
    }

    #[test]
    fn the_oldest_are_forgotten_and_the_longer_ones_first() {
        let mut table = PrefixTable::new(4);
        table.given(&prefix(&[1, 2, 3, 4]), fence(1, 1));
        table.given(&prefix(&[5, 6, 7, 8]), fence(2, 1));
        table.given(&prefix(&[1, 2, 3, 4]), fence(1, 1));
        table.given(&prefix(&[9, 9]), fence(1, 1));
        assert_eq!(
            table.longest(&prefix(&[5, 6, 7, 8]), any),
            Some((fence(2, 1), 1)),
            "its second block went"
        );
        assert_eq!(table.longest(&prefix(&[1, 2, 3, 4]), any), Some((fence(1, 1), 2)));
        for number in 10..1000 {
            table.given(&prefix(&[number, number, 1, 1, 2, 2]), fence(1, 1));
            assert!(table.entries.len() <= 4 && table.by_use.len() == table.entries.len());
        }
    }

    #[test]
    fn every_gateway_ranks_alike_and_prompts_spread() {
        let of = |key: [u8; 16], first: u32, rest: u32| Prefix::new(&key, 2, b"", &[first, 1, rest]);
        let best = |prefix: &Prefix| (1..=4).max_by_key(|&id| prefix.rank(ReplicaId(id))).unwrap();
        let mut counts = [0; 5];
        for first in 0..400 {
            let chosen = best(&of(KEY, first, 0));
            assert_eq!(
                chosen,
                best(&of([9; 16], first, 5)),
                "the first block alone decides"
            );
            counts[chosen as usize] += 1;
        }
        assert!(counts[1..].iter().all(|&count| count > 60), "{counts:?}");
    }
}
