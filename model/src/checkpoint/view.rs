//! Tensors of an open checkpoint: bytes in the mapped file, never copied until they are decoded.

use std::ops::Range;

use super::error::{NoSuchRows, NotFinite};
use super::header::Entry;
use crate::dtype::{self, Dtype};
use crate::spec::FP8_BLOCK;
use crate::tensors::{HalfSplit, Shape, TensorId, WeightFormat};

/// A tensor, or some of its rows, as stored.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    pub(super) name: &'a str,
    pub(super) file: &'a str,
    pub(super) dtype: Dtype,
    pub(super) shape: &'a [u64],
    pub(super) bytes: &'a [u8],
    pub(super) offset: u64,
    /// Rows in `bytes`; the rest of the fields are those of the whole tensor.
    pub(super) rows: u64,
}

impl<'a> TensorView<'a> {
    /// A whole tensor.
    pub(super) fn whole(entry: &'a Entry, file: &'a str, file_bytes: &'a [u8]) -> Self {
        Self {
            name: &entry.name,
            file,
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: &file_bytes[entry.span.clone()],
            offset: entry.span.start as u64,
            rows: entry.shape.first().copied().unwrap_or(1),
        }
    }

    /// The tensor's name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The name of the file that it is in.
    pub fn file(&self) -> &'a str {
        self.file
    }

    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape of the whole tensor.
    pub fn shape(&self) -> &'a [u64] {
        self.shape
    }

    /// The bytes, little-endian, row-major; aligned to nothing.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The first byte's place in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many rows (of the first dimension) this view has.
    pub fn row_count(&self) -> u64 {
        self.rows
    }

    /// Some rows (of the first dimension), counted from the first row of this view.
    pub fn rows(&self, rows: Range<u32>) -> Result<Self, NoSuchRows> {
        let (start, end) = (u64::from(rows.start), u64::from(rows.end));
        if start > end || end > self.rows {
            let name = self.name.to_owned();
            return Err(NoSuchRows {
                name,
                start: rows.start,
                end: rows.end,
                rows: self.rows,
            });
        }
        // No rows at all have no bytes. Else the products are at most the length of `bytes`.
        let row_bytes = (self.bytes.len() as u64).checked_div(self.rows).unwrap_or(0);
        let bytes = &self.bytes[(start * row_bytes) as usize..(end * row_bytes) as usize];
        Ok(Self {
            bytes,
            offset: self.offset + start * row_bytes,
            rows: end - start,
            ..*self
        })
    }

    /// Refuses a NaN or infinity, naming the first one's place.
    pub fn check_finite(&self) -> Result<(), NotFinite> {
        match dtype::first_not_finite(self.dtype, self.bytes) {
            None => Ok(()),
            Some(index) => Err(NotFinite {
                file: self.file.to_owned(),
                name: self.name.to_owned(),
                dtype: self.dtype,
                offset: self.offset + index as u64 * self.dtype.bytes(),
            }),
        }
    }

    /// The elements as f32, exactly; nothing but BF16, e4m3 and F32 is decoded (empty otherwise).
    pub fn to_f32(&self) -> Vec<f32> {
        let elements = self.bytes.len() / self.dtype.bytes() as usize;
        let mut values = vec![0.0; elements];
        match dtype::decode(self.dtype, self.bytes, &mut values) {
            Some(_) => values,
            None => Vec::new(),
        }
    }
}

/// A tensor of the language model with its scales: shape, dtype and scales are those that its spec asks for.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    pub(super) id: TensorId,
    pub(super) shape: Shape,
    pub(super) format: WeightFormat,
    pub(super) values: TensorView<'a>,
    pub(super) scales: Option<TensorView<'a>>,
    pub(super) half_split: Option<HalfSplit>,
}

impl<'a> Weight<'a> {
    /// Which tensor.
    pub fn id(&self) -> TensorId {
        self.id
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// How it is stored.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Its stored values; [`TensorView::rows`] gives some rows.
    pub fn values(&self) -> TensorView<'a> {
        self.values
    }

    /// How the stored rows are ordered, if not as devices hold them.
    pub fn half_split(&self) -> Option<HalfSplit> {
        self.half_split
    }

    /// Its stored scales, BF16 or F32, `[ceil(rows / 128), ceil(cols / 128)]`; there exactly for FP8.
    pub fn scales(&self) -> Option<TensorView<'a>> {
        self.scales
    }

    /// The scales as f32, exactly, after a check that they are numbers; empty for BF16.
    pub fn scales_f32(&self) -> Result<Vec<f32>, NotFinite> {
        match self.scales {
            None => Ok(Vec::new()),
            Some(scales) => scales.check_finite().map(|()| scales.to_f32()),
        }
    }

    /// The values times their scales, rounded once to f32: what the stored weight stands for, in the order of storage.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = self.values.to_f32();
        if let (Some(scales), Shape::Matrix { cols, .. }) = (self.scales, self.shape) {
            let scales = scales.to_f32();
            let (block, cols) = (FP8_BLOCK as usize, (cols as usize).max(1));
            let blocks_per_row = cols.div_ceil(block);
            for (row, line) in values.chunks_exact_mut(cols).enumerate() {
                let line_scales = &scales[row / block * blocks_per_row..];
                for (part, scale) in line.chunks_mut(block).zip(line_scales) {
                    part.iter_mut().for_each(|value| *value *= scale);
                }
            }
        }
        values
    }
}
