//! Byte pair encoding by rank: of all adjacent pairs that form a token, the one of lowest rank is
//! merged first, the leftmost of equals first, until none is left.
//!
//! Gives what tiktoken's merge loop gives, in O(n log n): the parts of a piece form a linked list and
//! a heap holds the candidate pairs, so a megabyte of one letter costs no more per byte than a word.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

/// The text tokens by rank, and their ranks by bytes.
///
/// **Invariant:** ranks 0..256 are the single bytes in order; the bytes of ranks differ.
pub(super) struct Ranks {
    tokens: Vec<Arc<[u8]>>,
    by_bytes: HashMap<Arc<[u8]>, u32>,
    longest: usize,
}

impl Ranks {
    /// Gives the tokens their ranks, in order.
    pub(super) fn new(tokens: Vec<Arc<[u8]>>) -> Self {
        let by_bytes = tokens.iter().cloned().zip(0..).collect();
        let longest = tokens.iter().map(|token| token.len()).max().unwrap_or(0);
        Self {
            tokens,
            by_bytes,
            longest,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn tokens(&self) -> &[Arc<[u8]>] {
        &self.tokens
    }

    pub(super) fn bytes_of(&self, rank: usize) -> Option<&[u8]> {
        self.tokens.get(rank).map(AsRef::as_ref)
    }

    fn rank_of(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.longest {
            return None;
        }
        self.by_bytes.get(bytes).copied()
    }
}

/// Marks a byte of a piece where no part starts any more.
const MERGED: u32 = u32::MAX;

/// Encodes pieces one after another, keeping its working memory between them.
pub(super) struct Merger<'a> {
    ranks: &'a Ranks,
    first_id: u32,
    /// Where the part that starts at this byte ends, which is where the next one starts.
    end: Vec<u32>,
    /// Where the part before the one that starts at this byte starts.
    previous: Vec<u32>,
    /// Pairs that form a token: rank, start of the left part, end of the right part.
    candidates: BinaryHeap<Reverse<(u32, u32, u32)>>,
    /// How often a rank was looked up: the work done, for the test of its bound.
    lookups: usize,
}

impl<'a> Merger<'a> {
    /// `first_id` is the id of rank 0.
    pub(super) fn new(ranks: &'a Ranks, first_id: u32) -> Self {
        Self {
            ranks,
            first_id,
            end: Vec::new(),
            previous: Vec::new(),
            candidates: BinaryHeap::new(),
            lookups: 0,
        }
    }

    /// Appends the ids of `piece`, of fewer than 2^32 - 1 bytes, to `ids`.
    pub(super) fn encode_piece(&mut self, piece: &[u8], ids: &mut Vec<u32>) {
        if piece.is_empty() {
            return;
        }
        // A word that is a token is that token, whether or not merging would reach it.
        if let Some(rank) = self.look_up(piece) {
            ids.push(self.first_id + rank);
            return;
        }
        self.merge(piece);
        let mut start = 0;
        while start < piece.len() {
            let end = self.end[start] as usize;
            let part = &piece[start..end];
            // Every part is a byte or the result of a merge, so it has a rank.
            if let Some(rank) = self.ranks.rank_of(part) {
                ids.push(self.first_id + rank);
            }
            start = end;
        }
    }

    /// Leaves in `end` the parts that `piece` falls into.
    fn merge(&mut self, piece: &[u8]) {
        let length = piece.len() as u32;
        self.end.clear();
        self.end.extend(1..=length);
        self.previous.clear();
        self.previous
            .extend((0..length).map(|start| start.wrapping_sub(1)));
        self.candidates.clear();
        for start in 0..length.saturating_sub(1) {
            self.consider(piece, start, start + 2);
        }
        while let Some(Reverse((_, left, end))) = self.candidates.pop() {
            let right = self.end[left as usize];
            let stands = right != MERGED && right < length && self.end[right as usize] == end;
            if !stands {
                continue;
            }
            self.end[left as usize] = end;
            self.end[right as usize] = MERGED;
            if end < length {
                self.previous[end as usize] = left;
                self.consider(piece, left, self.end[end as usize]);
            }
            if left > 0 {
                self.consider(piece, self.previous[left as usize], end);
            }
        }
    }

    /// Adds the pair of parts that covers `start..end` to the candidates if it is a token.
    fn consider(&mut self, piece: &[u8], start: u32, end: u32) {
        if let Some(rank) = self.look_up(&piece[start as usize..end as usize]) {
            self.candidates.push(Reverse((rank, start, end)));
        }
    }

    fn look_up(&mut self, bytes: &[u8]) -> Option<u32> {
        self.lookups += 1;
        self.ranks.rank_of(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranks(merges: &[&str]) -> Ranks {
        let bytes = (0..=255u8).map(|byte| Arc::from([byte].as_slice()));
        let merges = merges.iter().map(|merge| Arc::from(merge.as_bytes()));
        Ranks::new(bytes.chain(merges).collect())
    }

    fn encode(ranks: &Ranks, piece: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        Merger::new(ranks, 0).encode_piece(piece.as_bytes(), &mut ids);
        ids
    }

    /// The definition, step by step: find the best pair in the whole list, merge it, start again.
    fn encode_by_definition(ranks: &Ranks, piece: &str) -> Vec<u32> {
        if let Some(rank) = ranks.rank_of(piece.as_bytes()) {
            return vec![rank];
        }
        let mut parts: Vec<Vec<u8>> = piece.bytes().map(|byte| vec![byte]).collect();
        loop {
            let best = (1..parts.len())
                .filter_map(|right| Some((ranks.rank_of(&parts[right - 1..=right].concat())?, right)))
                .min();
            let Some((_, right)) = best else { break };
            let part = parts.remove(right);
            parts[right - 1].extend(part);
        }
        parts.iter().map(|part| ranks.rank_of(part).unwrap()).collect()
    }

    const MERGES: &[&str] = &[
        "aa", "ab", "ba", "aaa", "bb", "abab", "aaaa", "bab", "aab", "baab", "abb",
    ];

    #[test]
    fn equal_ranks_merge_from_the_left() {
        let ranks = ranks(&["aa"]);
        assert_eq!(encode(&ranks, "aaaaa"), [256, 256, u32::from(b'a')]);
    }

    #[test]
    fn a_whole_token_needs_no_merge_path() {
        let ranks = ranks(&["abc"]);
        assert_eq!(encode(&ranks, "abc"), [256]);
        assert_eq!(encode(&ranks, "abcabc").len(), 6);
    }

    #[test]
    fn work_grows_with_length_only() {
        let doubling: Vec<String> = (1..10).map(|n| "a".repeat(1 << n)).collect();
        let merges: Vec<&str> = doubling.iter().map(String::as_str).collect();
        for merges in [&merges[..], MERGES, &[]] {
            let ranks = ranks(merges);
            let piece = "a".repeat(1_000_000);
            let mut merger = Merger::new(&ranks, 0);
            let mut ids = Vec::new();
            merger.encode_piece(piece.as_bytes(), &mut ids);
            // One look-up for the whole piece, one for each first pair, two for each merge.
            assert!(merger.lookups <= 3 * piece.len(), "{} look-ups", merger.lookups);
            let bytes: usize = ids
                .iter()
                .map(|&id| ranks.bytes_of(id as usize).unwrap().len())
                .sum();
            assert_eq!(bytes, piece.len());
        }
    }

    proptest! {
        #[test]
        fn merges_as_the_definition_does(piece in "[abc]{1,60}") {
            let ranks = ranks(MERGES);
            prop_assert_eq!(encode(&ranks, &piece), encode_by_definition(&ranks, &piece));
        }

        #[test]
        fn merges_as_the_definition_does_for_any_ranks(
            merges in prop::collection::btree_set("[ab]{2,6}", 0..20),
            order in any::<prop::sample::Index>(),
            piece in "[ab]{1,40}",
        ) {
            let mut merges: Vec<&str> = merges.iter().map(String::as_str).collect();
            if !merges.is_empty() {
                let middle = order.index(merges.len());
                merges.rotate_left(middle);
            }
            let ranks = ranks(&merges);
            prop_assert_eq!(encode(&ranks, &piece), encode_by_definition(&ranks, &piece));
        }
    }
}
