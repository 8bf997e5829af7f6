//! Runs the layers of a replica's stages on the GPUs of one host.

pub mod config;
pub mod executor;
pub mod gpu;
pub mod ops;
pub mod process;
pub mod reference;
pub mod rpc;
pub mod scheduler;
pub mod weights;
