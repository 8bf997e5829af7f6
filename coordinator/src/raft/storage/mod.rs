//! The durable log: entries, hard state and checkpoints in one redb file.
//!
//! A checkpoint is the state machine's bytes with the index that produced them and the members at that index, in
//! one record: after a start the entries that follow it are applied again, so a state and its index can never
//! disagree. Every change is one transaction, on disk when the call returns. After a call that failed it is there
//! whole or not at all, and the log takes no more writes until it is opened again. Nothing here knows what the state
//! or an entry's data mean.
//!
//! **Invariant RF-2 (half of it):** what [`raft::Storage`] shows is on disk already.

mod directory;
mod error;
mod mirror;
#[cfg(test)]
mod power_cuts;
mod records;
#[cfg(test)]
mod tests;
mod timed;

use std::path::Path;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState};
use redb::{Builder, Database, Durability, StorageBackend, WriteTransaction};

pub use self::directory::LOG_FILE;
pub use self::error::StoreError;
pub use self::mirror::Position;
#[cfg(test)]
pub(crate) use tramontane_sim::disk as faulty;

use self::mirror::Mirror;
use self::records::{AccessError, Changes};
use super::identity::Identity;

/// redb's page cache; the log itself is in memory, so it only serves writes.
const CACHE_BYTES: usize = 4 << 20;

/// A coordinator's log, open and locked.
pub struct LogStore {
    database: Database,
    place: String,
    starts: u64,
    mirror: Mirror,
}

/// What one ready of raft-rs asks to be kept.
#[derive(Default)]
pub struct Batch<'a> {
    /// A checkpoint from the leader, which replaces state and log.
    pub snapshot: Option<&'a Snapshot>,
    /// Entries to append; they replace what is there from their first index on.
    pub entries: &'a [Entry],
    /// Term, vote and commit.
    pub hard_state: Option<&'a HardState>,
}

impl LogStore {
    /// Opens the log in `directory`, which is made and bound to `identity` on the first start. Fails if another
    /// process has it open, if it belongs to somebody else, or if it is not intact.
    pub fn open(directory: &Path, identity: &Identity) -> Result<Self, StoreError> {
        directory::open(directory, identity)
    }

    /// Opens the log on any storage; `place` is its name in errors. With `must_exist` an empty storage is
    /// an error and not a first start.
    pub fn open_backend(
        backend: impl StorageBackend,
        place: &str,
        identity: &Identity,
        must_exist: bool,
    ) -> Result<Self, StoreError> {
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(|e| StoreError::opening(place, e))?;
        let (starts, mirror) = transact(&database, place, |transaction| {
            let starts = records::claim(transaction, place, identity, must_exist)?;
            Ok((starts, records::load(transaction, place)?))
        })?;
        Ok(Self {
            database,
            place: place.to_owned(),
            starts,
            mirror,
        })
    }

    /// How often the log was opened, this time included: tells the starts of one coordinator apart.
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// The latest checkpoint: index 0 and no data before the first.
    pub fn checkpoint(&self) -> &Snapshot {
        &self.mirror.checkpoint
    }

    /// The last entry that the checkpoint holds.
    pub fn checkpoint_index(&self) -> u64 {
        self.mirror.checkpoint_index()
    }

    /// The members after the checkpoint.
    pub fn conf_state(&self) -> ConfState {
        self.mirror.conf_state()
    }

    /// Term, vote and commit as they are on disk.
    pub fn hard_state(&self) -> &HardState {
        &self.mirror.hard_state
    }

    /// Encoded bytes of the entries kept.
    pub fn entry_bytes(&self) -> u64 {
        self.mirror.entry_bytes
    }

    /// Index of the first entry kept.
    pub fn first(&self) -> u64 {
        self.mirror.first_index()
    }

    /// Index of the last entry kept.
    pub fn last(&self) -> u64 {
        self.mirror.last_index()
    }

    /// Makes one ready durable, in one transaction.
    pub fn persist(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        let snapshot = batch
            .snapshot
            .map(|snapshot| (snapshot, snapshot_position(snapshot)));
        self.check_continues(batch, snapshot.map(|(_, position)| position))?;
        let mut hard_state = batch.hard_state.cloned();
        if let Some((_, position)) = snapshot {
            // What a checkpoint holds is committed, whatever the hard state said before.
            let state = hard_state.get_or_insert_with(|| self.mirror.hard_state.clone());
            state.commit = state.commit.max(position.index);
        }
        self.write(&Changes {
            checkpoint: batch.snapshot,
            truncate_to: snapshot.map(|(_, position)| position),
            clear_entries: snapshot.is_some(),
            entries: batch.entries,
            hard_state: hard_state.as_ref(),
        })?;
        if let Some((snapshot, position)) = snapshot {
            self.mirror.entries.clear();
            self.mirror.entry_bytes = 0;
            self.mirror.truncated = position;
            self.mirror.checkpoint = snapshot.clone();
        }
        self.mirror.append(batch.entries);
        if let Some(hard_state) = hard_state {
            self.mirror.hard_state = hard_state;
        }
        Ok(())
    }

    /// Makes a commit index durable.
    pub fn save_commit(&mut self, commit: u64) -> Result<(), StoreError> {
        let hard_state = HardState {
            commit,
            ..self.mirror.hard_state.clone()
        };
        self.persist(&Batch {
            hard_state: Some(&hard_state),
            ..Batch::default()
        })
    }

    /// Keeps the state after an applied entry and forgets the entries up to `truncate_to`, which must not lie
    /// after it.
    pub fn save_checkpoint(&mut self, checkpoint: Snapshot, truncate_to: u64) -> Result<(), StoreError> {
        let position = snapshot_position(&checkpoint);
        let (commit, older) = (self.mirror.hard_state.commit, self.mirror.checkpoint_index());
        let to = Position {
            index: truncate_to,
            term: self.mirror.term(truncate_to).map_err(|e| {
                self.sequence(format!(
                    "cannot truncate to {truncate_to}, which is not in the log: {e}"
                ))
            })?,
        };
        if position.index < older || position.index > commit || to.index > position.index {
            let index = position.index;
            return Err(self.sequence(format!(
                "a checkpoint at {index}, truncating to {truncate_to}, does not follow the one at {older} with commit {commit}"
            )));
        }
        self.write(&Changes {
            checkpoint: Some(&checkpoint),
            truncate_to: Some(to),
            ..Changes::default()
        })?;
        self.mirror.checkpoint = checkpoint;
        self.mirror.truncate_to(to);
        Ok(())
    }

    fn check_continues(&self, batch: &Batch<'_>, snapshot: Option<Position>) -> Result<(), StoreError> {
        let (truncated, mut last) = match snapshot {
            Some(position) => (position.index, position.index),
            None => (self.mirror.truncated.index, self.mirror.last_index()),
        };
        if snapshot.is_some_and(|position| position.index < self.mirror.checkpoint_index()) {
            return Err(self.sequence(format!("a checkpoint at {truncated} is older than the one kept")));
        }
        for (position, entry) in batch.entries.iter().enumerate() {
            let continues = if position == 0 {
                entry.index > truncated && entry.index <= last + 1
            } else {
                entry.index == last + 1
            };
            if !continues {
                let index = entry.index;
                return Err(self.sequence(format!("entry {index} does not follow {truncated}..={last}")));
            }
            last = entry.index;
        }
        match batch.hard_state {
            Some(state) if state.commit > last => {
                let commit = state.commit;
                Err(self.sequence(format!("commit {commit} lies after the last entry {last}")))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn sequence(&self, detail: String) -> StoreError {
        StoreError::Sequence {
            place: self.place.clone(),
            detail,
        }
    }

    fn write(&self, changes: &Changes<'_>) -> Result<(), StoreError> {
        transact(&self.database, &self.place, |transaction| {
            Ok(records::write(transaction, changes)?)
        })
    }
}

/// Runs `body` in one transaction that is on disk when this returns `Ok`; otherwise it is there whole or not at all.
fn transact<T>(
    database: &Database,
    place: &str,
    body: impl FnOnce(&WriteTransaction) -> Result<T, AccessError>,
) -> Result<T, StoreError> {
    let run = || -> Result<T, AccessError> {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        let result = body(&transaction)?;
        transaction.commit()?;
        Ok(result)
    };
    run().map_err(|error| match error {
        AccessError::Store(error) => error,
        AccessError::Redb(redb::Error::Corrupted(detail)) => StoreError::Corrupt {
            place: place.to_owned(),
            detail,
        },
        AccessError::Redb(source) => StoreError::Write {
            place: place.to_owned(),
            source: Box::new(source),
        },
    })
}

fn snapshot_position(snapshot: &Snapshot) -> Position {
    let metadata = snapshot.metadata.as_ref();
    Position {
        index: metadata.map_or(0, |metadata| metadata.index),
        term: metadata.map_or(0, |metadata| metadata.term),
    }
}

impl raft::Storage for LogStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            self.mirror.hard_state.clone(),
            self.mirror.conf_state(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        Ok(self.mirror.entries(low, high, max_size.into())?)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        Ok(self.mirror.term(index)?)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.mirror.first_index())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.mirror.last_index())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Ok(self.mirror.snapshot(request_index)?)
    }
}
