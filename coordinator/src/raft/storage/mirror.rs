//! The log as raft-rs reads it: in memory, equal to what the last transaction left on disk.
//!
//! Compaction bounds it, so reads need no I/O and cannot fail half-way; a read error inside raft-rs would be a
//! panic. Changed only after the transaction that made the change durable.

use std::collections::VecDeque;

use prost_raft::Message;
use raft::StorageError;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};

/// Index and term of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Index, the first entry's is 1.
    pub index: u64,
    /// Term in which a leader appended it.
    pub term: u64,
}

/// What is on disk.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Mirror {
    pub(super) hard_state: HardState,
    /// The last entry that is no longer kept.
    pub(super) truncated: Position,
    /// The state after some entry at or after `truncated`; at index 0 it holds the first members and no state.
    pub(super) checkpoint: Snapshot,
    /// From `truncated.index + 1`, without gaps.
    pub(super) entries: VecDeque<Entry>,
    /// Encoded size of `entries`.
    pub(super) entry_bytes: u64,
}

impl Mirror {
    pub(super) fn first_index(&self) -> u64 {
        self.truncated.index + 1
    }

    pub(super) fn last_index(&self) -> u64 {
        self.truncated.index + self.entries.len() as u64
    }

    pub(super) fn checkpoint_index(&self) -> u64 {
        self.checkpoint
            .metadata
            .as_ref()
            .map_or(0, |metadata| metadata.index)
    }

    pub(super) fn conf_state(&self) -> ConfState {
        let metadata = self.checkpoint.metadata.as_ref();
        metadata
            .and_then(|metadata| metadata.conf_state.clone())
            .unwrap_or_default()
    }

    /// Place of `index` in `entries`, if it is kept.
    fn slot(&self, index: u64) -> Option<usize> {
        let slot = usize::try_from(index.checked_sub(self.first_index())?).ok()?;
        (slot < self.entries.len()).then_some(slot)
    }

    pub(super) fn term(&self, index: u64) -> Result<u64, StorageError> {
        if index == self.truncated.index {
            return Ok(self.truncated.term);
        }
        match self.slot(index) {
            Some(slot) => Ok(self.entries[slot].term),
            None if index < self.truncated.index => Err(StorageError::Compacted),
            None => Err(StorageError::Unavailable),
        }
    }

    /// Entries `low..high`, cut after `max_bytes` but never to none.
    pub(super) fn entries(
        &self,
        low: u64,
        high: u64,
        max_bytes: Option<u64>,
    ) -> Result<Vec<Entry>, StorageError> {
        if low < self.first_index() {
            return Err(StorageError::Compacted);
        }
        if high > self.last_index() + 1 || low > high {
            return Err(StorageError::Unavailable);
        }
        let mut bytes = 0;
        let mut found = Vec::new();
        let skip = usize::try_from(low - self.first_index()).map_err(|_| StorageError::Unavailable)?;
        let take = usize::try_from(high - low).map_err(|_| StorageError::Unavailable)?;
        for entry in self.entries.iter().skip(skip).take(take) {
            bytes += entry.encoded_len() as u64;
            if !found.is_empty() && max_bytes.is_some_and(|max| bytes > max) {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    /// The checkpoint, if it is recent enough for who asks.
    pub(super) fn snapshot(&self, request_index: u64) -> Result<Snapshot, StorageError> {
        // At index 0 nothing was ever truncated, so that no follower can need one.
        if self.checkpoint_index() == 0 || self.checkpoint_index() < request_index {
            return Err(StorageError::SnapshotTemporarilyUnavailable);
        }
        Ok(self.checkpoint.clone())
    }

    /// Replaces everything from the first of `entries` on; the caller checked that it continues the log.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.last_index() >= first.index {
            let Some(cut) = self.entries.pop_back() else { break };
            self.entry_bytes -= cut.encoded_len() as u64;
        }
        for entry in entries {
            self.entry_bytes += entry.encoded_len() as u64;
            self.entries.push_back(entry.clone());
        }
    }

    /// Forgets the entries up to and including `to`.
    pub(super) fn truncate_to(&mut self, to: Position) {
        while self.truncated.index < to.index {
            let Some(cut) = self.entries.pop_front() else {
                break;
            };
            self.entry_bytes -= cut.encoded_len() as u64;
            self.truncated = Position {
                index: cut.index,
                term: cut.term,
            };
        }
        self.truncated = to;
    }
}
