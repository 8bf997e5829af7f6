//! Models of real dimensions without their weights: published shapes, and random values of every weight format.
//!
//! For what depends on sizes alone: how fast parts of a model are computed, whether a machine can hold them.

mod params;
mod random;
mod shape;
mod values;

pub use params::{ParamsError, changed};
pub use random::Random;
pub use shape::{Format, Shape};
pub use values::{NVFP4_DIVISOR, Values};
