//! What a model is and how a cluster speaks of it: ids, placement, steps.
//!
//! No tokio, tonic or wgpu here: this crate is data and checks on data.

pub mod ids;
pub mod members;
pub mod placement;
pub mod sampling;
pub mod step;
pub mod time;
