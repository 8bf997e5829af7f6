//! The wire: generated messages and services.

/// Generated from `cluster/v1/*.proto` by `make proto`; never edited.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
#[rustfmt::skip]
#[path = "generated.rs"]
pub mod v1;
