//! How the log lies in redb: two tables, every value checked when it is read.
//!
//! `entries` maps an index to an encoded raft entry. `meta` holds the identity, the number of starts, the hard
//! state, the truncation point and the checkpoint, each under its name.

use std::collections::VecDeque;

use prost_raft::Message;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use redb::{ReadableTable, TableDefinition, TableHandle, WriteTransaction};
use serde::{Deserialize, Serialize};
use tramontane_model::ids::CoordinatorId;

use super::error::StoreError;
use super::mirror::{Mirror, Position};
use crate::raft::identity::{Identity, Members};

/// Format that this version writes.
const FORMAT: u32 = 1;

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const IDENTITY: &str = "identity";
const STARTS: &str = "starts";
const HARD_STATE: &str = "hard_state";
const TRUNCATED: &str = "truncated";
const CHECKPOINT: &str = "checkpoint";

/// Who the log belongs to, as written.
#[derive(Serialize, Deserialize)]
struct IdentityRecord {
    format: u32,
    cluster: String,
    coordinator: CoordinatorId,
    initial_members: Vec<CoordinatorId>,
}

/// A failed access: redb's error, or a value that makes no sense.
pub(super) enum AccessError {
    Redb(redb::Error),
    Store(StoreError),
}

impl<E: Into<redb::Error>> From<E> for AccessError {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

/// One transaction's worth of changes, all or nothing.
#[derive(Default)]
pub(super) struct Changes<'a> {
    /// Replaces the checkpoint.
    pub(super) checkpoint: Option<&'a Snapshot>,
    /// Forgets the entries up to here.
    pub(super) truncate_to: Option<Position>,
    /// Forgets every entry; with a checkpoint from the leader.
    pub(super) clear_entries: bool,
    /// Replaces the log from the first of these on.
    pub(super) entries: &'a [Entry],
    /// Replaces the hard state.
    pub(super) hard_state: Option<&'a HardState>,
}

pub(super) fn write(transaction: &WriteTransaction, changes: &Changes<'_>) -> Result<(), redb::Error> {
    let mut meta = transaction.open_table(META)?;
    let mut entries = transaction.open_table(ENTRIES)?;
    if changes.clear_entries {
        entries.retain(|_, _| false)?;
    }
    if let Some(checkpoint) = changes.checkpoint {
        meta.insert(CHECKPOINT, checkpoint.encode_to_vec().as_slice())?;
    }
    if let Some(to) = changes.truncate_to {
        entries.retain_in(..=to.index, |_, _| false)?;
        meta.insert(TRUNCATED, encode_position(to).as_slice())?;
    }
    if let Some(first) = changes.entries.first() {
        entries.retain_in(first.index.., |_, _| false)?;
        for entry in changes.entries {
            entries.insert(entry.index, entry.encode_to_vec().as_slice())?;
        }
    }
    if let Some(hard_state) = changes.hard_state {
        meta.insert(HARD_STATE, hard_state.encode_to_vec().as_slice())?;
    }
    Ok(())
}

/// Binds an unused file to `identity`, or checks that a used one belongs to it; counts the start.
///
/// Returns how often the log was opened, this time included.
pub(super) fn claim(
    transaction: &WriteTransaction,
    place: &str,
    identity: &Identity,
    must_exist: bool,
) -> Result<u64, AccessError> {
    for table in transaction.list_tables()? {
        if table.name() != ENTRIES.name() && table.name() != META.name() {
            return Err(corrupt(place, format!("it has a table {:?}", table.name())));
        }
    }
    let mut meta = transaction.open_table(META)?;
    let found = meta.get(IDENTITY)?.map(|value| value.value().to_vec());
    let starts = match found {
        Some(bytes) => {
            check_identity(place, &bytes, identity)?;
            let starts = required(place, STARTS, meta.get(STARTS)?.map(|v| v.value().to_vec()))?;
            u64_from(place, STARTS, &starts)?
        }
        None if must_exist => {
            return Err(AccessError::Store(StoreError::Lost {
                place: place.to_owned(),
            }));
        }
        None => {
            let record = IdentityRecord {
                format: FORMAT,
                cluster: identity.cluster().to_owned(),
                coordinator: identity.id(),
                initial_members: identity.members().as_slice().to_vec(),
            };
            let bytes = serde_json::to_vec(&record).map_err(|e| corrupt(place, e.to_string()))?;
            meta.insert(IDENTITY, bytes.as_slice())?;
            let members = ConfState {
                voters: identity.members().raw(),
                ..ConfState::default()
            };
            let metadata = SnapshotMetadata {
                conf_state: Some(members),
                index: 0,
                term: 0,
            };
            let checkpoint = Snapshot {
                data: Vec::new(),
                metadata: Some(metadata),
            };
            meta.insert(CHECKPOINT, checkpoint.encode_to_vec().as_slice())?;
            meta.insert(TRUNCATED, encode_position(Position::default()).as_slice())?;
            meta.insert(HARD_STATE, HardState::default().encode_to_vec().as_slice())?;
            0
        }
    };
    let starts = starts.saturating_add(1);
    meta.insert(STARTS, starts.to_le_bytes().as_slice())?;
    Ok(starts)
}

fn check_identity(place: &str, bytes: &[u8], identity: &Identity) -> Result<(), AccessError> {
    let record: IdentityRecord =
        serde_json::from_slice(bytes).map_err(|e| corrupt(place, format!("its identity: {e}")))?;
    let place = place.to_owned();
    let refused = if record.format != FORMAT {
        StoreError::Format {
            place,
            found: record.format,
            expected: FORMAT,
        }
    } else if record.cluster != identity.cluster() {
        StoreError::OtherCluster {
            place,
            found: record.cluster,
            expected: identity.cluster().to_owned(),
        }
    } else if record.coordinator != identity.id() {
        StoreError::OtherCoordinator {
            place,
            found: record.coordinator,
            expected: identity.id(),
        }
    } else {
        match Members::new(record.initial_members) {
            Ok(found) if found == *identity.members() => return Ok(()),
            Ok(found) => StoreError::OtherMembers {
                place,
                found,
                expected: identity.members().clone(),
            },
            Err(e) => StoreError::Corrupt {
                place,
                detail: format!("its identity: {e}"),
            },
        }
    };
    Err(AccessError::Store(refused))
}

/// Reads and checks everything.
pub(super) fn load(transaction: &WriteTransaction, place: &str) -> Result<Mirror, AccessError> {
    let meta = transaction.open_table(META)?;
    let value = |name: &'static str| -> Result<Vec<u8>, AccessError> {
        required(place, name, meta.get(name)?.map(|value| value.value().to_vec()))
    };
    let mut mirror = Mirror {
        hard_state: decode(place, HARD_STATE, &value(HARD_STATE)?)?,
        truncated: decode_position(place, &value(TRUNCATED)?)?,
        checkpoint: decode(place, CHECKPOINT, &value(CHECKPOINT)?)?,
        entries: VecDeque::new(),
        entry_bytes: 0,
    };
    let entries = transaction.open_table(ENTRIES)?;
    let mut term = mirror.truncated.term;
    for row in entries.iter()? {
        let (index, value) = row?;
        let entry: Entry = decode(place, "an entry", value.value())?;
        let expected = mirror.last_index() + 1;
        if index.value() != expected || entry.index != expected || entry.term < term {
            let (index, term) = (entry.index, entry.term);
            return Err(corrupt(
                place,
                format!("entry {index} of term {term} where entry {expected} belongs"),
            ));
        }
        term = entry.term;
        mirror.entry_bytes += value.value().len() as u64;
        mirror.entries.push_back(entry);
    }
    check(place, &mirror)?;
    Ok(mirror)
}

/// The relations between the parts that raft-rs takes for granted.
fn check(place: &str, mirror: &Mirror) -> Result<(), AccessError> {
    let (first, last) = (mirror.truncated.index, mirror.last_index());
    let (commit, checkpoint) = (mirror.hard_state.commit, mirror.checkpoint_index());
    if !(first..=last).contains(&commit) || !(first..=commit).contains(&checkpoint) {
        return Err(corrupt(
            place,
            format!("commit {commit} and checkpoint {checkpoint} do not fit a log of {first}..={last}"),
        ));
    }
    if mirror.conf_state().voters.is_empty() {
        return Err(corrupt(place, "the checkpoint names no members".to_owned()));
    }
    Ok(())
}

fn corrupt(place: &str, detail: String) -> AccessError {
    AccessError::Store(StoreError::Corrupt {
        place: place.to_owned(),
        detail,
    })
}

fn required(place: &str, name: &'static str, value: Option<Vec<u8>>) -> Result<Vec<u8>, AccessError> {
    value.ok_or_else(|| corrupt(place, format!("it has no {name}")))
}

fn decode<M: Message + Default>(place: &str, name: &str, bytes: &[u8]) -> Result<M, AccessError> {
    M::decode(bytes).map_err(|e| corrupt(place, format!("{name}: {e}")))
}

fn u64_from(place: &str, name: &'static str, bytes: &[u8]) -> Result<u64, AccessError> {
    let bytes = bytes
        .try_into()
        .map_err(|_| corrupt(place, format!("{name} has {} bytes", bytes.len())))?;
    Ok(u64::from_le_bytes(bytes))
}

fn encode_position(position: Position) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&position.index.to_le_bytes());
    bytes[8..].copy_from_slice(&position.term.to_le_bytes());
    bytes
}

fn decode_position(place: &str, bytes: &[u8]) -> Result<Position, AccessError> {
    let (index, term) = bytes.split_at_checked(8).unwrap_or((bytes, &[]));
    Ok(Position {
        index: u64_from(place, TRUNCATED, index)?,
        term: u64_from(place, TRUNCATED, term)?,
    })
}
