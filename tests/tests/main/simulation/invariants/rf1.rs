//! RF-1: an acknowledged change survives, and all members apply the same changes in the same order.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Checked, ensure};

#[derive(Debug, Default)]
pub(in super::super) struct Log {
    /// Hash of each change, by its number.
    changes: BTreeMap<u64, u64>,
    acknowledged: u64,
    leaders: BTreeMap<u64, u64>,
}

impl Log {
    /// A member applied its change of this number. Says whether it is the first that did.
    pub(in super::super) fn applied(&mut self, number: u64, entry: &[u8]) -> Result<bool, super::Violation> {
        let mut hasher = DefaultHasher::new();
        entry.hash(&mut hasher);
        let hash = hasher.finish();
        let is_first = !self.changes.contains_key(&number);
        let known = *self.changes.entry(number).or_insert(hash);
        ensure("RF-1", known == hash, || {
            format!("members differ in change {number}")
        })?;
        Ok(is_first)
    }

    /// Somebody was told that a change among the first so many is there to stay.
    pub(in super::super) fn acknowledged(&mut self, changes: u64) {
        self.acknowledged = self.acknowledged.max(changes);
    }

    /// Terms that somebody led.
    pub(in super::super) fn terms(&self) -> usize {
        self.leaders.len()
    }

    /// Election safety.
    pub(in super::super) fn leads(&mut self, term: u64, member: u64) -> Checked {
        let first = *self.leaders.entry(term).or_insert(member);
        ensure("RF-1", first == member, || {
            format!("{first} and {member} lead in term {term}")
        })
    }

    /// In the end: a member holds everything that was acknowledged to anybody.
    pub(in super::super) fn check_end(&self, member: u64, changes: u64) -> Checked {
        ensure("RF-1", changes >= self.acknowledged, || {
            format!(
                "{member} has {changes} changes, {} were acknowledged",
                self.acknowledged
            )
        })
    }
}
