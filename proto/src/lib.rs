//! The wire: generated messages and services, their checked conversion to and from model types, and the one
//! constructor of channels and listeners.
//!
//! Inside the program there are only model types: a message that does not convert is refused with the field's name.

mod checkpoint;
mod error;
mod expert;
mod fields;
mod files;
mod membership;
pub mod net;
mod placement;
mod serving;
mod stage;

pub use checkpoint::{CheckpointListing, RangeAsked};
pub use error::WireError;
pub use expert::{ExpertResults, ExpertWork};
pub use files::FileServer;
pub use membership::{Directive, Joining, WorkerUpdate};
pub use serving::{Ended, GenerateUpdate, Generation as GenerateSubmission, MAX_CACHE_SALT_BYTES, Progress};
pub use stage::{LinkMessage, MAX_REASON_BYTES, RowsChunk};

/// Generated from `cluster/v1/*.proto` by `make proto`; never edited.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
#[rustfmt::skip]
#[path = "generated.rs"]
pub mod v1;
