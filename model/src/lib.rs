//! What a model is and how a cluster speaks of it: spec, weights, ids, placement, steps.
//!
//! No tokio, tonic or wgpu here: this crate is data and checks on data.

pub mod bounded;
pub mod checkpoint;
pub mod config;
pub mod dtype;
pub mod footprint;
pub mod grammar;
pub mod ids;
pub mod layout;
pub mod members;
pub mod placement;
pub mod rope;
pub mod sampling;
pub mod spec;
pub mod standby;
pub mod step;
pub mod tekken;
pub mod tensors;
pub mod time;
