//! Tensors of an open checkpoint: bytes in the mapped file, never copied until they are decoded.

use std::ops::Range;

use super::error::{BadValue, NoSuchRows};
use super::header::Entry;
use crate::dtype::{self, Dtype};

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
    pub fn check_finite(&self) -> Result<(), BadValue> {
        match dtype::first_not_finite(self.dtype, self.bytes) {
            None => Ok(()),
            Some(index) => Err(self.bad_value(index, "that is not finite", "numbers only")),
        }
    }

    /// Refuses an e4m3 code that is NaN or has a sign. A scale of zero is right: quantising may round to it.
    pub fn check_scales(&self) -> Result<(), BadValue> {
        // 0x7f is NaN, and from 0x80 on codes have a sign.
        match self.bytes.iter().position(|&code| code >= 0x7f) {
            None => Ok(()),
            Some(index) => {
                let problem = "that is negative or no number";
                Err(self.bad_value(index, problem, "a scale of at least zero"))
            }
        }
    }

    /// What is wrong with an element of this view.
    pub(super) fn bad_value(&self, index: usize, problem: &'static str, expected: &'static str) -> BadValue {
        BadValue {
            file: self.file.to_owned(),
            name: self.name.to_owned(),
            dtype: self.dtype,
            problem,
            offset: self.offset + index as u64 * self.dtype.bytes(),
            expected,
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
