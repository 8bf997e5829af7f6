//! What can be wrong with a coordinator's log, and what would be right.

use std::path::PathBuf;

use tramontane_model::ids::CoordinatorId;

use crate::raft::identity::Members;

/// A log that cannot be opened, trusted or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or a file in it cannot be used.
    #[error("{}: cannot {action} in the data directory: {source}", path.display())]
    Directory {
        /// The directory or file.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Another process, or another coordinator of this one, has it open.
    #[error(
        "{place}: the data directory is in use by another process; stop that one, or give each coordinator a directory of its own"
    )]
    InUse {
        /// The log's file.
        place: String,
    },
    /// The directory was used before, but its log is not there any more.
    #[error(
        "{place}: the log is missing or empty although this directory was used before; restore the directory whole, or remove this coordinator (tramontane cluster remove ID) and add it anew under an id never used before, with join = true and an empty directory"
    )]
    Lost {
        /// The log's file.
        place: String,
    },
    /// The file is no log, or not one that can be read.
    #[error(
        "{place}: not an intact coordinator's log ({detail}); restore the directory whole, or remove this coordinator (tramontane cluster remove ID) and add it anew under an id never used before, with join = true and an empty directory"
    )]
    Corrupt {
        /// The log's file.
        place: String,
        /// What does not fit.
        detail: String,
    },
    /// The log was written in another format.
    #[error("{place}: the log has format {found}, this version reads format {expected}")]
    Format {
        /// The log's file.
        place: String,
        /// Format in the file.
        found: u32,
        /// Format of this version.
        expected: u32,
    },
    /// The directory belongs to another cluster.
    #[error("{place}: the data directory belongs to cluster {found:?}, the configuration says {expected:?}")]
    OtherCluster {
        /// The log's file.
        place: String,
        /// Cluster in the file.
        found: String,
        /// Cluster in the configuration.
        expected: String,
    },
    /// The directory belongs to another coordinator.
    #[error("{place}: the data directory belongs to coordinator {found}, the configuration says {expected}")]
    OtherCoordinator {
        /// The log's file.
        place: String,
        /// Id in the file.
        found: CoordinatorId,
        /// Id in the configuration.
        expected: CoordinatorId,
    },
    /// The configuration's first members changed since the directory was made.
    #[error(
        "{place}: the data directory was made with initial_members {found}, the configuration says {expected}; initial_members must never change"
    )]
    OtherMembers {
        /// The log's file.
        place: String,
        /// Members in the file.
        found: Members,
        /// Members in the configuration.
        expected: Members,
    },
    /// A transaction failed: the disk is full or broken. Nothing of it may be promised, and nothing more is written.
    #[error(
        "{place}: cannot write the log: {source}; make room or replace the disk, and restart this coordinator"
    )]
    Write {
        /// The log's file.
        place: String,
        /// redb's answer.
        source: Box<redb::Error>,
    },
    /// What raft asks to be kept does not continue what is there: a fault of this program.
    #[error("{place}: {detail}")]
    Sequence {
        /// The log's file.
        place: String,
        /// What does not fit.
        detail: String,
    },
}

impl StoreError {
    /// The error for a database that cannot be opened.
    pub(super) fn opening(place: &str, error: redb::DatabaseError) -> Self {
        let place = place.to_owned();
        #[expect(clippy::wildcard_enum_match_arm, reason = "redb's enum is open-ended")]
        match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Self::InUse { place },
            redb::DatabaseError::Storage(redb::StorageError::Io(source))
                if source.kind() != std::io::ErrorKind::InvalidData =>
            {
                Self::Directory {
                    path: place.into(),
                    action: "open the log",
                    source,
                }
            }
            // Whatever else keeps a database from opening makes it unusable.
            other => Self::Corrupt {
                place,
                detail: other.to_string(),
            },
        }
    }
}
