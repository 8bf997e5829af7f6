//! Weights on the device, as the checkpoint stores them.
//!
//! A matrix is `[rows (out), cols (in)]`, row-major, split by rows in parts that each fit in one binding. FP8 block
//! scales are widened to f32 when loaded (exact from BF16), in one table for the whole matrix, indexed by the original
//! row and column. No decoding here: shaders and twins decode.

use std::ops::Range;

use super::{DeviceBuffer, OpError};

/// Side of an FP8 scale block; blocks at the edges are partial.
pub const FP8_BLOCK: u32 = 128;
/// Columns of every matrix are a multiple of this, so that shaders read 16 bytes at a time.
pub const COLS_ALIGN: u32 = 16;
/// Byte offsets of parts, vectors and scale tables in their buffers are multiples of this.
pub const PART_ALIGN: u64 = 16;

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// bfloat16, 2 bytes a value.
    Bf16,
    /// e4m3, 1 byte a value, with one f32 multiplier per 128 x 128 block.
    Fp8Block,
}

impl WeightFormat {
    /// Bytes of one row of `cols` values, without scales.
    pub const fn row_bytes(self, cols: u32) -> u64 {
        match self {
            Self::Bf16 => cols as u64 * 2,
            Self::Fp8Block => cols as u64,
        }
    }

    /// Values of the f32 scale table of a `[rows, cols]` matrix; 0 for formats without one.
    pub const fn scale_count(self, rows: u32, cols: u32) -> u64 {
        match self {
            Self::Bf16 => 0,
            Self::Fp8Block => rows.div_ceil(FP8_BLOCK) as u64 * cols.div_ceil(FP8_BLOCK) as u64,
        }
    }
}

/// Rows of a matrix in one buffer.
#[derive(Clone, Debug)]
pub struct MatrixPart<B> {
    /// Rows of the matrix that the part holds.
    pub rows: Range<u32>,
    /// Where they are.
    pub buffer: B,
    /// Byte at which the first of them starts, a multiple of [`PART_ALIGN`].
    pub offset: u64,
}

/// f32 scale table of an FP8 block matrix: `[ceil(rows / 128), ceil(cols / 128)]`, row-major.
#[derive(Clone, Debug)]
pub struct Scales<B> {
    /// Where it is.
    pub buffer: B,
    /// Byte at which it starts, a multiple of [`PART_ALIGN`].
    pub offset: u64,
}

/// A matrix `[rows, cols]` on the device. Made by [`Matrix::new`], which checks it.
#[derive(Clone, Debug)]
pub struct Matrix<B> {
    rows: u32,
    cols: u32,
    format: WeightFormat,
    parts: Vec<MatrixPart<B>>,
    scales: Option<Scales<B>>,
}

impl<B: DeviceBuffer> Matrix<B> {
    /// Checks that the parts tile `0..rows` in order, that parts and scales lie inside their buffers, and that FP8
    /// matrices, and only they, have scales.
    pub fn new(
        rows: u32,
        cols: u32,
        format: WeightFormat,
        parts: Vec<MatrixPart<B>>,
        scales: Option<Scales<B>>,
    ) -> Result<Self, OpError> {
        const OP: &str = "matrix";
        let name = format!("[{rows}, {cols}] {format:?}");
        super::rows::check_width(OP, &format!("columns of {name}"), cols, COLS_ALIGN)?;
        let mut next = 0;
        for part in &parts {
            if part.rows.start != next || part.rows.end <= next || part.rows.end > rows {
                let detail = format!(
                    "{name}: a part holds rows {:?} where a range from {next} up to at most {rows} must follow",
                    part.rows
                );
                return Err(OpError::shape(OP, detail));
            }
            next = part.rows.end;
            let count = u64::from(part.rows.end - part.rows.start);
            check_span("part", &part.buffer, part.offset, count * format.row_bytes(cols))?;
        }
        if next != rows || rows == 0 {
            return Err(OpError::shape(OP, format!("{name}: parts end at row {next}")));
        }
        match (format, &scales) {
            (WeightFormat::Bf16, None) => {}
            (WeightFormat::Fp8Block, Some(table)) => {
                check_span(
                    "scales",
                    &table.buffer,
                    table.offset,
                    format.scale_count(rows, cols) * 4,
                )?;
            }
            (WeightFormat::Bf16, Some(_)) => {
                return Err(OpError::shape(OP, format!("{name}: has scales, must have none")));
            }
            (WeightFormat::Fp8Block, None) => {
                return Err(OpError::shape(
                    OP,
                    format!("{name}: has no scales, needs a table"),
                ));
            }
        }
        Ok(Self {
            rows,
            cols,
            format,
            parts,
            scales,
        })
    }

    /// Rows (outputs).
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Columns (inputs).
    pub fn cols(&self) -> u32 {
        self.cols
    }

    /// How it is stored.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Its parts, in row order.
    pub fn parts(&self) -> &[MatrixPart<B>] {
        &self.parts
    }

    /// Its scale table, for FP8.
    pub fn scales(&self) -> Option<&Scales<B>> {
        self.scales.as_ref()
    }
}

/// Splits `0..rows` in ranges whose bytes stay within `limit`, at multiples of `unit` rows.
///
/// `unit` is 1 for most matrices and the rows of one head for `wkv_b`. Fails when one unit exceeds the limit.
pub fn split_rows(rows: u32, row_bytes: u64, unit: u32, limit: u64) -> Result<Vec<Range<u32>>, OpError> {
    let unit = unit.max(1);
    let unit_bytes = row_bytes.saturating_mul(u64::from(unit)).max(1);
    let units = u32::try_from(limit / unit_bytes).unwrap_or(u32::MAX);
    if units == 0 {
        return Err(OpError::BindingLimit {
            label: format!("{unit} rows of {row_bytes} bytes"),
            bytes: unit_bytes,
            limit,
        });
    }
    let step = units.saturating_mul(unit);
    let mut ranges = Vec::new();
    let mut start = 0;
    while start < rows {
        let end = start.saturating_add(step).min(rows);
        ranges.push(start..end);
        start = end;
    }
    Ok(ranges)
}

/// A BF16 vector, such as a norm's weight.
#[derive(Clone, Debug)]
pub struct Vector<B> {
    len: u32,
    buffer: B,
    offset: u64,
}

impl<B: DeviceBuffer> Vector<B> {
    /// Checks that the vector lies inside its buffer; `offset` is in bytes, a multiple of [`PART_ALIGN`].
    pub fn new(len: u32, buffer: B, offset: u64) -> Result<Self, OpError> {
        check_span("vector", &buffer, offset, u64::from(len) * 2)?;
        Ok(Self { len, buffer, offset })
    }

    /// Number of values.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it holds no value.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it is.
    pub fn buffer(&self) -> &B {
        &self.buffer
    }

    /// Byte at which it starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// Refuses a span that is not aligned or leaves its buffer.
pub(crate) fn check_span<B: DeviceBuffer>(
    what: &'static str,
    buffer: &B,
    offset: u64,
    bytes: u64,
) -> Result<(), OpError> {
    if !offset.is_multiple_of(PART_ALIGN) {
        return Err(OpError::shape(
            what,
            format!("offset {offset} must be a multiple of {PART_ALIGN}"),
        ));
    }
    let end = offset
        .checked_add(bytes)
        .ok_or_else(|| OpError::shape(what, format!("{bytes} bytes at offset {offset} overflow")))?;
    if end > buffer.bytes() {
        return Err(OpError::TooSmall {
            op: what,
            operand: "weights",
            found: buffer.bytes(),
            needed: end,
        });
    }
    Ok(())
}
