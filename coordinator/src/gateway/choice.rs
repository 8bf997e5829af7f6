//! Which replica a request goes to, given what each has to do and what it was given before.
//!
//! Pure: the same table and loads give the same choice.

use std::cmp::Reverse;

use tramontane_model::ids::Fence;

use super::prefixes::{Prefix, PrefixTable};

/// A beginning binds if it is at least one part in so many of the prompt: less saves little, and everything that begins
/// with the same few lines would pile up on one replica.
const BINDING_PARTS: usize = 4;

/// A replica that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) fence: Fence,
    /// Requests that it has, running and waiting, as far as is known.
    pub(super) load: u32,
}

/// Why a replica was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// It was given the beginning of the prompt before.
    Prefix,
    /// It has the least to do, and none was given the beginning.
    Load,
    /// It has the least to do; the one that was given the beginning has too much more.
    Imbalance,
    /// It is its turn.
    Turn,
    /// Another choice for the same prompt is there.
    Together,
}

impl Reason {
    /// The reason as one word, for metrics and logs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Load => "load",
            Self::Imbalance => "imbalance",
            Self::Turn => "turn",
            Self::Together => "together",
        }
    }
}

/// The replica that was given the longest beginning of the prompt, unless it has more than `max_imbalance` requests more
/// than the least loaded one; that one otherwise. None if there are no candidates.
pub(super) fn by_prefix(
    candidates: &[Candidate],
    prefix: &Prefix,
    table: &PrefixTable,
    max_imbalance: u32,
) -> Option<(Fence, Reason)> {
    let least = candidates.iter().min_by_key(|candidate| {
        let replica = candidate.fence.replica;
        (candidate.load, Reverse(prefix.rank(replica)), replica)
    })?;
    let find = |fence: Fence| candidates.iter().find(|candidate| candidate.fence == fence);
    let longest = table.longest(prefix, |fence| find(fence).is_some());
    let binding = longest.filter(|(_, blocks)| blocks * BINDING_PARTS >= prefix.len());
    Some(match binding.and_then(|(fence, _)| find(fence)) {
        Some(holder) if holder.load.saturating_sub(least.load) <= max_imbalance => {
            (holder.fence, Reason::Prefix)
        }
        Some(_) => (least.fence, Reason::Imbalance),
        None => (least.fence, Reason::Load),
    })
}

/// The candidates in turn.
pub(super) fn in_turn(candidates: &[Candidate], turn: u64) -> Option<(Fence, Reason)> {
    let count = u64::try_from(candidates.len()).ok().filter(|&count| count > 0)?;
    let index = usize::try_from(turn % count).ok()?;
    candidates
        .get(index)
        .map(|candidate| (candidate.fence, Reason::Turn))
}

#[cfg(test)]
mod tests {
    use tramontane_model::ids::{Generation, ReplicaId};

    use super::*;

    const IMBALANCE: u32 = 4;

    fn fence(replica: u64) -> Fence {
        Fence {
            replica: ReplicaId(replica),
            generation: Generation(1),
        }
    }

    fn candidates(loads: &[u32]) -> Vec<Candidate> {
        let numbered = (1..).zip(loads);
        numbered
            .map(|(replica, &load)| Candidate {
                fence: fence(replica),
                load,
            })
            .collect()
    }

    fn prefix(tokens: &[u32]) -> Prefix {
        Prefix::new(&[7; 16], 1, b"", tokens)
    }

    fn chosen(loads: &[u32], prompt: &[u32], table: &PrefixTable) -> (u64, Reason) {
        let (fence, reason) = by_prefix(&candidates(loads), &prefix(prompt), table, IMBALANCE).unwrap();
        (fence.replica.0, reason)
    }

    #[test]
    fn the_holder_of_the_beginning_is_chosen_unless_it_has_too_much_to_do() {
        let mut table = PrefixTable::new(100);
        table.given(&prefix(&[1, 2, 3]), fence(2));
        let asked = [1, 2, 3, 4];
        for (loads, expected) in [
            ([0, 0, 0], (2, Reason::Prefix)),
            ([9, 4, 0], (2, Reason::Prefix)),
            ([9, 5, 0], (3, Reason::Imbalance)),
            ([7, 11, 8], (2, Reason::Prefix)),
            ([7, 12, 8], (1, Reason::Imbalance)),
        ] {
            assert_eq!(chosen(&loads, &asked, &table), expected, "{loads:?}");
        }
        // If it cannot be chosen, the beginning is nobody's.
        let others = [candidates(&[3, 0, 5])[0], candidates(&[3, 0, 5])[2]];
        let (found, reason) = by_prefix(&others, &prefix(&asked), &table, IMBALANCE).unwrap();
        assert_eq!((found, reason), (fence(1), Reason::Load));
        assert_eq!(by_prefix(&[], &prefix(&asked), &table, IMBALANCE), None);
    }

    #[test]
    fn without_a_beginning_the_least_loaded_is_chosen_and_ties_go_by_rank() {
        let table = PrefixTable::new(100);
        assert_eq!(chosen(&[3, 2, 4], &[1, 2], &table), (2, Reason::Load));
        for first in 0..20 {
            let prompt = [first, 5];
            let ranked = [1, 3]
                .into_iter()
                .max_by_key(|&id| prefix(&prompt).rank(ReplicaId(id)));
            let expected = (ranked.unwrap(), Reason::Load);
            assert_eq!(chosen(&[2, 9, 2], &prompt, &table), expected);
        }
        assert_eq!(chosen(&[1, 0], &[], &table), (2, Reason::Load));
    }

    #[test]
    fn a_short_beginning_does_not_bind() {
        let mut table = PrefixTable::new(100);
        table.given(&prefix(&[1, 2]), fence(1));
        let with = |more: u32| -> Vec<u32> { [1, 2].into_iter().chain(10..10 + more).collect() };
        assert_eq!(chosen(&[1, 0], &with(6), &table), (1, Reason::Prefix));
        assert_eq!(chosen(&[1, 0], &with(7), &table), (2, Reason::Load));
    }

    #[test]
    fn turns_go_round() {
        let all = candidates(&[5, 0, 9]);
        let turns: Vec<u64> = (0..7)
            .map(|turn| in_turn(&all, turn).unwrap().0.replica.0)
            .collect();
        assert_eq!(turns, [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(in_turn(&[], 3), None);
    }
}
