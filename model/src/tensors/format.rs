//! How a weight is stored, and the bytes that it takes on a device.
//!
//! Devices keep codes as the checkpoint has them. Beside the codes of a quantised matrix they keep one section of
//! scales: f32 multipliers in FP8, one per block or one for all; in NVFP4 the f32 multiplier of the whole matrix, then,
//! from [`SECTION_ALIGN`] on, the e4m3 scales as stored. No decoding here: shaders and their twins decode.

use std::fmt;

use super::Shape;
use crate::spec::FP8_BLOCK;

/// Every section of a weight on a device (codes, scales, a vector) starts at a multiple of this.
pub const SECTION_ALIGN: u64 = 16;
/// Columns that kernels read at a time: codes start at a multiple of the bytes of so many.
pub const CHUNK_COLS: u32 = 16;
/// Neighbouring columns of a row that share an NVFP4 scale.
pub const NVFP4_GROUP: u32 = 16;

/// How one tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightFormat {
    /// bfloat16.
    Bf16,
    /// e4m3 with one multiplier per 128 x 128 block; blocks at the edges are partial.
    Fp8Block,
    /// e4m3 with one multiplier for the whole matrix.
    Fp8Tensor,
    /// e2m1, two codes a byte, with an e4m3 scale per [`NVFP4_GROUP`] columns and a divisor for the whole matrix.
    Nvfp4,
}

impl WeightFormat {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Bf16, Self::Fp8Block, Self::Fp8Tensor, Self::Nvfp4];

    /// What it is called in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::Fp8Block => "FP8 with a scale per block",
            Self::Fp8Tensor => "FP8 with one scale",
            Self::Nvfp4 => "NVFP4",
        }
    }

    /// Bytes of the codes of one row of `cols` values.
    pub const fn row_bytes(self, cols: u32) -> u64 {
        match self {
            Self::Bf16 => 2 * cols as u64,
            Self::Fp8Block | Self::Fp8Tensor => cols as u64,
            Self::Nvfp4 => cols as u64 / 2,
        }
    }

    /// Bytes of the codes of [`CHUNK_COLS`] columns.
    pub const fn chunk_bytes(self) -> u64 {
        self.row_bytes(CHUNK_COLS)
    }

    /// Bytes of the section of scales of a `[rows, cols]` matrix on a device; 0 for formats without one.
    pub const fn scale_bytes(self, rows: u32, cols: u32) -> u64 {
        match self {
            Self::Bf16 => 0,
            Self::Fp8Block => 4 * rows.div_ceil(FP8_BLOCK) as u64 * cols.div_ceil(FP8_BLOCK) as u64,
            Self::Fp8Tensor => 4,
            Self::Nvfp4 => SECTION_ALIGN + rows as u64 * (cols / NVFP4_GROUP) as u64,
        }
    }

    /// Bytes that a tensor of this shape takes on a device: codes and scales, each rounded up to [`SECTION_ALIGN`].
    /// A vector is always bfloat16.
    pub const fn device_bytes(self, shape: Shape) -> u64 {
        match shape {
            Shape::Vector(len) => (2 * len as u64).next_multiple_of(SECTION_ALIGN),
            Shape::Matrix { rows, cols } => {
                let codes = (rows as u64 * self.row_bytes(cols)).next_multiple_of(SECTION_ALIGN);
                codes + self.scale_bytes(rows, cols).next_multiple_of(SECTION_ALIGN)
            }
        }
    }
}

/// Bytes from one record of matrices to the next, where each has so many and the matrices are stored in `formats`.
pub fn record_bytes(bytes: u64, formats: impl IntoIterator<Item = WeightFormat>) -> u64 {
    let chunk = formats.into_iter().map(WeightFormat::chunk_bytes).max();
    bytes.next_multiple_of(chunk.unwrap_or(0).max(SECTION_ALIGN))
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_bytes_round_each_section_up() {
        let matrix = Shape::Matrix { rows: 3, cols: 48 };
        let bytes = WeightFormat::ALL.map(|format| format.device_bytes(matrix));
        // NVFP4: 3 rows of 24 bytes; a multiplier, and 3 rows of 3 scales.
        assert_eq!(bytes, [288, 144 + 16, 144 + 16, 80 + 32]);
        let partial = Shape::Matrix { rows: 129, cols: 640 };
        assert_eq!(WeightFormat::Fp8Block.device_bytes(partial), 129 * 640 + 48);
        assert_eq!(WeightFormat::Fp8Tensor.device_bytes(partial), 129 * 640 + 16);
        let nvfp4 = WeightFormat::Nvfp4.device_bytes(partial);
        assert_eq!(nvfp4, 129 * 320 + 16 + (129_u64 * 40).next_multiple_of(16));
        assert_eq!(WeightFormat::Bf16.device_bytes(Shape::Vector(9)), 32);
    }
}
