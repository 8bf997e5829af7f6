//! The rows of a step: how many of each role, and what attention must know of each.

use super::{DeviceBuffer, OpError};

/// Slot or table index of a row that must not touch the cache.
pub const NO_ROW: u32 = u32::MAX;

/// Rows of an op, those of generated tokens first, then those of given ones (DET-1: each role has its kernels).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Rows of generated tokens: decode kernels.
    pub generated: u32,
    /// Rows of given tokens: prefill kernels.
    pub given: u32,
}

impl Rows {
    /// Rows of both roles.
    pub const fn new(generated: u32, given: u32) -> Self {
        Self { generated, given }
    }

    /// All rows.
    pub const fn total(self) -> u32 {
        self.generated.saturating_add(self.given)
    }
}

/// What attention and the cache write know of a row; a buffer of these, one per row, accompanies a step.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct RowMeta {
    /// Position in the sequence, from 0. Attention sees cache positions `0..=position`.
    pub position: u32,
    /// Where the row's latent goes: `block * block_tokens + position % block_tokens`, or [`NO_ROW`].
    pub slot: u32,
    /// Row of the block tables that holds the sequence's blocks.
    pub table: u32,
    /// Llama-4 scale of the query, `1 + beta ln(1 + floor(position / original))`; 1 without it.
    pub query_scale: f32,
}

/// Bytes of `rows * width` f32 values, or an error that names the op.
pub(crate) fn f32_bytes(op: &'static str, rows: u64, width: u64) -> Result<u64, OpError> {
    rows.checked_mul(width)
        .and_then(|values| values.checked_mul(4))
        .ok_or_else(|| OpError::shape(op, format!("{rows} rows of {width} values overflow")))
}

/// Refuses a buffer that holds fewer than `rows * width` values of 4 bytes.
pub(crate) fn check_rows<B: DeviceBuffer>(
    op: &'static str,
    operand: &'static str,
    buffer: &B,
    rows: u32,
    width: u32,
) -> Result<(), OpError> {
    check_words(op, operand, buffer, u64::from(rows), u64::from(width))
}

/// As [`check_rows`], for counts that may exceed `u32`.
pub(crate) fn check_words<B: DeviceBuffer>(
    op: &'static str,
    operand: &'static str,
    buffer: &B,
    rows: u64,
    width: u64,
) -> Result<(), OpError> {
    let needed = f32_bytes(op, rows, width)?;
    let found = buffer.bytes();
    if found < needed {
        return Err(OpError::TooSmall {
            op,
            operand,
            found,
            needed,
        });
    }
    Ok(())
}

/// Whole rows of `width` values of 4 bytes that a buffer has room for.
pub(crate) fn whole_rows<B: DeviceBuffer>(buffer: &B, width: u32) -> u32 {
    let rows = buffer.bytes() / (u64::from(width.max(1)) * 4);
    u32::try_from(rows).unwrap_or(u32::MAX)
}

/// Refuses a width that is zero or not a multiple of `align`.
pub(crate) fn check_width(op: &'static str, what: &str, width: u32, align: u32) -> Result<(), OpError> {
    if width == 0 || !width.is_multiple_of(align) {
        return Err(OpError::shape(
            op,
            format!("{what} is {width}, it must be a positive multiple of {align}"),
        ));
    }
    Ok(())
}
