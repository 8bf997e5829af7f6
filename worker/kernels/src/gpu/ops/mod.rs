//! From an op's operands to dispatches, an op or a group of like ops per file.
//!
//! Offsets and strides are in the units of the shaders: words of 4 bytes, or groups of 4 values.

pub(super) mod adjust;
pub(super) mod attention;
pub(super) mod elementwise;
pub(super) mod expanded_attention;
pub(super) mod experts;
pub(super) mod matmul;
pub(super) mod norm;
pub(super) mod queries;
pub(super) mod rotate_qkv;
pub(super) mod route;
pub(super) mod row_factors;
pub(super) mod sample;
mod shares;

/// A byte offset inside a buffer, in units of `unit` bytes. Buffers are below 2^32 units of 4 bytes.
fn units(bytes: u64, unit: u64) -> u32 {
    u32::try_from(bytes / unit).unwrap_or(u32::MAX)
}
