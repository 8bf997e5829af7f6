//! Weights on the device, as the checkpoint stores them.
//!
//! A matrix is `[rows (out), cols (in)]`, row-major, split by rows in parts that each fit in one binding. Its scales, laid
//! out as [`WeightFormat`] says, are one section for the whole matrix, indexed by the original row and column. No decoding
//! here: shaders and twins decode.

use std::ops::Range;

pub use tramontane_model::spec::FP8_BLOCK;
use tramontane_model::tensors::{CHUNK_COLS, SECTION_ALIGN};
pub use tramontane_model::tensors::{NVFP4_GROUP, WeightFormat};

use super::{DeviceBuffer, OpError};

/// Columns of every matrix are a multiple of this: shaders read so many at a time.
pub const COLS_ALIGN: u32 = CHUNK_COLS;
/// Byte offsets of parts, vectors and sections of scales in their buffers are multiples of this.
pub const PART_ALIGN: u64 = SECTION_ALIGN;

/// Rows of a matrix in one buffer.
#[derive(Clone, Debug)]
pub struct MatrixPart<B> {
    /// Rows of the matrix that the part holds.
    pub rows: Range<u32>,
    /// Where they are.
    pub buffer: B,
    /// Byte at which the first of them starts, a multiple of [`PART_ALIGN`] and of a chunk's bytes.
    pub offset: u64,
}

/// The scales of a quantised matrix.
#[derive(Clone, Debug)]
pub struct Scales<B> {
    /// Where they are.
    pub buffer: B,
    /// Byte at which they start, a multiple of [`PART_ALIGN`].
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
    /// Checks that the parts tile `0..rows` in order, that parts and scales lie inside their buffers, and that quantised
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
            check_chunks(format, part.offset)?;
        }
        if next != rows || rows == 0 {
            return Err(OpError::shape(OP, format!("{name}: parts end at row {next}")));
        }
        let scale_bytes = format.scale_bytes(rows, cols);
        match &scales {
            Some(scales) if scale_bytes > 0 => {
                check_span("scales", &scales.buffer, scales.offset, scale_bytes)?;
            }
            Some(_) => {
                return Err(OpError::shape(OP, format!("{name}: has scales, must have none")));
            }
            None if scale_bytes > 0 => {
                return Err(OpError::shape(OP, format!("{name}: has no scales, needs them")));
            }
            None => {}
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

    /// Its scales, where it is quantised.
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

/// Refuses codes that do not start at a multiple of a chunk's bytes, by which shaders index them.
pub(crate) fn check_chunks(format: WeightFormat, offset: u64) -> Result<(), OpError> {
    let chunk = format.chunk_bytes();
    if offset.is_multiple_of(chunk) {
        return Ok(());
    }
    let detail = format!("{format} codes at offset {offset}, it must be a multiple of {chunk}");
    Err(OpError::shape("matrix", detail))
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
