//! Checkpoints on disk, good and bad, through the crate's public interface.

mod bad_checkpoints;
mod good_checkpoints;
mod manifests;
mod support;
