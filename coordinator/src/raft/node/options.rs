//! When a node stands for election and when it truncates its log.

use super::MAX_UNCOMMITTED_BYTES;
use super::error::NodeError;
use crate::raft::identity::{ELECTION_TICKS, Identity};

/// Most entries between two checkpoints.
const MAX_CHECKPOINT_ENTRIES: u64 = 1 << 14;

/// When a node stands for election and when it truncates its log.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Ticks without a leader before this member stands; distinct on every member.
    pub election_timeout_ticks: usize,
    /// Applied entries after which a checkpoint is made.
    pub checkpoint_entries: u64,
    /// Bytes of entries after which a checkpoint is made.
    pub checkpoint_bytes: u64,
    /// Entries before a checkpoint that stay in the log for peers that lag a little.
    pub kept_entries: u64,
}

impl NodeOptions {
    /// The usual options for a member.
    pub fn new(identity: &Identity) -> Self {
        Self {
            election_timeout_ticks: identity.election_timeout_ticks(identity.election_seed()),
            checkpoint_entries: 1024,
            checkpoint_bytes: 2 * MAX_UNCOMMITTED_BYTES,
            kept_entries: 256,
        }
    }

    pub(super) fn check(&self) -> Result<(), NodeError> {
        let Self {
            election_timeout_ticks,
            checkpoint_entries,
            checkpoint_bytes,
            kept_entries,
        } = self;
        if *election_timeout_ticks < ELECTION_TICKS {
            return Err(NodeError::Options(format!(
                "election_timeout_ticks is {election_timeout_ticks}, at least {ELECTION_TICKS} are needed"
            )));
        }
        if !(1..=MAX_CHECKPOINT_ENTRIES).contains(checkpoint_entries)
            || *kept_entries > MAX_CHECKPOINT_ENTRIES
        {
            return Err(NodeError::Options(format!(
                "checkpoint_entries is {checkpoint_entries} and kept_entries {kept_entries}: use 1 to {MAX_CHECKPOINT_ENTRIES} and at most {MAX_CHECKPOINT_ENTRIES}"
            )));
        }
        // Entries that cannot be truncated yet must not alone ask for checkpoint after checkpoint.
        if *checkpoint_bytes < 2 * MAX_UNCOMMITTED_BYTES {
            return Err(NodeError::Options(format!(
                "checkpoint_bytes is {checkpoint_bytes}, at least {} are needed",
                2 * MAX_UNCOMMITTED_BYTES
            )));
        }
        Ok(())
    }
}
