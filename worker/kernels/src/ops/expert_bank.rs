//! The routed experts of one layer that a device holds: one contiguous record per expert.
//!
//! A record is `w1 | w3 | w2 | s1 | s3 | s2`: gate and up `[hidden, dim]`, down `[dim, hidden]`, then their sections of
//! scales (none for BF16). Gate and up have one format, down may have another. Every section starts at a multiple of 16
//! bytes, and codes, so the next record as well, at one of a chunk's bytes. A bank is several buffers, split at expert
//! borders so that each fits in one binding.

use std::ops::Range;

use tramontane_model::tensors::record_bytes;

use super::matrix::{COLS_ALIGN, PART_ALIGN, check_chunks, check_span};
use super::{DeviceBuffer, OpError, WeightFormat};

/// Where the sections of an expert's record are, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertLayout {
    /// Width of the residual stream.
    pub dim: u32,
    /// Width of the expert's hidden layer.
    pub hidden: u32,
    /// How gate and up are stored.
    pub up_format: WeightFormat,
    /// How down is stored.
    pub down_format: WeightFormat,
    /// Gate, `[hidden, dim]`.
    pub w1: u64,
    /// Up, `[hidden, dim]`.
    pub w3: u64,
    /// Down, `[dim, hidden]`.
    pub w2: u64,
    /// Scales of `w1`.
    pub s1: u64,
    /// Scales of `w3`.
    pub s3: u64,
    /// Scales of `w2`.
    pub s2: u64,
    /// Length of the record.
    pub bytes: u64,
}

impl ExpertLayout {
    /// Layout for widths that are multiples of 16; `formats` are those of gate and up, and of down.
    pub fn new(dim: u32, hidden: u32, formats: (WeightFormat, WeightFormat)) -> Result<Self, OpError> {
        super::rows::check_width("expert record", "dim", dim, COLS_ALIGN)?;
        super::rows::check_width("expert record", "hidden", hidden, COLS_ALIGN)?;
        let (up_format, down_format) = formats;
        let up = u64::from(hidden) * up_format.row_bytes(dim);
        let down = u64::from(dim) * down_format.row_bytes(hidden);
        let up_scales = up_format.scale_bytes(hidden, dim).next_multiple_of(PART_ALIGN);
        let down_scales = down_format.scale_bytes(dim, hidden).next_multiple_of(PART_ALIGN);
        let s1 = 2 * up + down;
        let end = s1 + 2 * up_scales + down_scales;
        Ok(Self {
            dim,
            hidden,
            up_format,
            down_format,
            w1: 0,
            w3: up,
            w2: 2 * up,
            s1,
            s3: s1 + up_scales,
            s2: s1 + 2 * up_scales,
            bytes: record_bytes(end, [up_format, down_format]),
        })
    }

    /// Splits `experts` in ranges whose records stay within `limit` bytes. Fails when one record exceeds it.
    pub fn split(&self, experts: Range<u32>, limit: u64) -> Result<Vec<Range<u32>>, OpError> {
        let count = experts.end.saturating_sub(experts.start);
        let ranges =
            super::matrix::split_rows(count, self.bytes, 1, limit).map_err(|_| OpError::BindingLimit {
                label: format!("record of one expert ({} x {})", self.dim, self.hidden),
                bytes: self.bytes,
                limit,
            })?;
        Ok(ranges
            .into_iter()
            .map(|range| experts.start + range.start..experts.start + range.end)
            .collect())
    }
}

/// Records of consecutive experts in one buffer.
#[derive(Clone, Debug)]
pub struct BankPart<B> {
    /// Ids of the experts, within the layer.
    pub experts: Range<u32>,
    /// Where their records are.
    pub buffer: B,
    /// Byte at which the first record starts, a multiple of 16 and of a chunk's bytes.
    pub offset: u64,
}

/// Experts of one layer on this device, a range of the layer's ids. Made by [`ExpertBank::new`], which checks it.
#[derive(Clone, Debug)]
pub struct ExpertBank<B> {
    layout: ExpertLayout,
    experts: Range<u32>,
    parts: Vec<BankPart<B>>,
}

impl<B: DeviceBuffer> ExpertBank<B> {
    /// Checks that the parts tile `experts` in order and lie inside their buffers.
    pub fn new(layout: ExpertLayout, experts: Range<u32>, parts: Vec<BankPart<B>>) -> Result<Self, OpError> {
        const OP: &str = "expert bank";
        let mut next = experts.start;
        for part in &parts {
            if part.experts.start != next || part.experts.end <= next || part.experts.end > experts.end {
                let detail = format!(
                    "a part holds experts {:?} where a range from {next} up to at most {} must follow",
                    part.experts, experts.end
                );
                return Err(OpError::shape(OP, detail));
            }
            next = part.experts.end;
            let count = u64::from(part.experts.end - part.experts.start);
            let bytes = layout.bytes.checked_mul(count).ok_or_else(|| {
                OpError::shape(OP, format!("{count} records of {} bytes overflow", layout.bytes))
            })?;
            check_span(OP, &part.buffer, part.offset, bytes)?;
            check_chunks(layout.up_format, part.offset)?;
            check_chunks(layout.down_format, part.offset)?;
        }
        if next != experts.end || experts.is_empty() {
            return Err(OpError::shape(
                OP,
                format!("parts end at expert {next}, the bank holds {experts:?}"),
            ));
        }
        Ok(Self {
            layout,
            experts,
            parts,
        })
    }

    /// Layout of the records.
    pub fn layout(&self) -> &ExpertLayout {
        &self.layout
    }

    /// Ids of the experts, within the layer.
    pub fn experts(&self) -> Range<u32> {
        self.experts.clone()
    }

    /// Its parts, in expert order.
    pub fn parts(&self) -> &[BankPart<B>] {
        &self.parts
    }
}
