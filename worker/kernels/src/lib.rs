//! What a device computes: the ops, as compute shaders and as their twins on the CPU, and layers made of them.

pub mod bench;
pub mod figures;
pub mod gpu;
pub mod layers;
pub mod ops;
pub mod reference;
pub mod synthetic;
