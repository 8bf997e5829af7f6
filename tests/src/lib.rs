//! Whole-cluster tests and the records they compare with (`fixtures/`).
//!
//! What is here starts real processes of the program from configuration files, asks them over HTTP and ends them by
//! force. No part of the program is called from within, but for the one that makes connections.
//!
//! **Invariant:** no process outlives the test that started it: the test holds the other end of its standard input,
//! and nothing is waited for without a deadline.

pub mod chaos;
pub mod checkpoint;
pub mod client;
pub mod cluster;
pub mod config;
pub mod fixtures;
pub mod process;
pub mod schema;
pub mod status;
pub mod stream;
pub mod wait;
