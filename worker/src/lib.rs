//! Runs the layers of a replica's stages on the GPUs of one host.

pub mod config;
pub mod executor;
pub mod process;
pub mod rpc;
pub mod scheduler;
pub mod weights;
