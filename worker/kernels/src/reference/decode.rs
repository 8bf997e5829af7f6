//! Stored weights to f64: BF16, e4m3 with its multipliers, e2m1 with its scales and multiplier.

use super::CpuBuffer;
use crate::ops::{
    ExpertBank, ExpertLayout, FP8_BLOCK, Matrix, NVFP4_GROUP, PART_ALIGN, Vector, WeightFormat,
};

/// bfloat16: the upper half of an f32.
pub fn bf16(code: u16) -> f32 {
    f32::from_bits(u32::from(code) << 16)
}

/// e4m3 (OCP 8-bit floating point, "FN": no infinities, `0x7f` and `0xff` are NaN): sign, 4 bits of exponent with
/// bias 7, 3 of mantissa.
pub fn e4m3(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from((code >> 3) & 15);
    let mantissa = f32::from(code & 7);
    if code & 0x7f == 0x7f {
        return f32::NAN;
    }
    if exponent == 0 {
        return sign * mantissa * 2f32.powi(-9);
    }
    sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7)
}

/// e2m1 (OCP Microscaling Formats), in the lower four bits: sign, 2 bits of exponent with bias 1, 1 of mantissa.
pub fn e2m1(code: u8) -> f32 {
    let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from((code >> 1) & 3);
    let mantissa = f32::from(code & 1);
    if exponent == 0 {
        return sign * mantissa / 2.0;
    }
    sign * (1.0 + mantissa / 2.0) * 2f32.powi(exponent - 1)
}

/// A matrix decoded to `[rows, cols]`.
pub(super) struct Decoded {
    pub(super) rows: usize,
    pub(super) cols: usize,
    values: Vec<f64>,
}

impl Decoded {
    pub(super) fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }

    /// `sum_k w[row, k] x[k]`.
    pub(super) fn dot(&self, row: usize, x: &[f32]) -> f64 {
        self.row(row).iter().zip(x).map(|(w, &x)| w * f64::from(x)).sum()
    }
}

/// `codes` row by row; `scales` as on the device.
fn decode(format: WeightFormat, rows: usize, cols: usize, codes: &[u8], scales: &[u8]) -> Decoded {
    let place = |index: usize| (index / cols, index % cols);
    let values = match format {
        WeightFormat::Bf16 => {
            let codes = codes.chunks_exact(2);
            codes
                .map(|code| f64::from(bf16(u16::from_le_bytes([code[0], code[1]]))))
                .collect()
        }
        WeightFormat::Fp8Block | WeightFormat::Fp8Tensor => {
            let block = FP8_BLOCK as usize;
            let scales = floats(scales);
            let scale = |index: usize| match (format, place(index)) {
                (WeightFormat::Fp8Block, (row, col)) => {
                    scales[row / block * cols.div_ceil(block) + col / block]
                }
                _ => scales[0],
            };
            let codes = codes.iter().enumerate();
            codes
                .map(|(index, &code)| f64::from(e4m3(code)) * f64::from(scale(index)))
                .collect()
        }
        WeightFormat::Nvfp4 => {
            let group = NVFP4_GROUP as usize;
            let (multiplier, scales) = scales.split_at(PART_ALIGN as usize);
            let multiplier = f64::from(floats(multiplier)[0]);
            let value = |index: usize| {
                let (row, col) = place(index);
                let code = codes[index / 2] >> (index % 2 * 4);
                let scale = e4m3(scales[row * (cols / group) + col / group]);
                f64::from(e2m1(code)) * f64::from(scale) * multiplier
            };
            (0..rows * cols).map(value).collect()
        }
    };
    Decoded { rows, cols, values }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]]))
        .collect()
}

/// All parts of a matrix.
pub(super) fn matrix(matrix: &Matrix<CpuBuffer>) -> Decoded {
    let (format, rows, cols) = (matrix.format(), matrix.rows(), matrix.cols());
    let codes = matrix.parts().iter().flat_map(|part| {
        let count = u64::from(part.rows.end - part.rows.start);
        part.buffer.span(part.offset, count * format.row_bytes(cols))
    });
    let codes: Vec<u8> = codes.collect();
    let scales = matrix.scales().map_or_else(Vec::new, |scales| {
        scales.buffer.span(scales.offset, format.scale_bytes(rows, cols))
    });
    decode(format, rows as usize, cols as usize, &codes, &scales)
}

/// A BF16 vector.
pub(super) fn vector(vector: &Vector<CpuBuffer>) -> Vec<f64> {
    let codes = vector.buffer().span(vector.offset(), u64::from(vector.len()) * 2);
    decode(WeightFormat::Bf16, 1, vector.len() as usize, &codes, &[]).values
}

/// The three matrices of an expert: gate, up, down.
pub(super) fn expert(bank: &ExpertBank<CpuBuffer>, expert: u32) -> Option<[Decoded; 3]> {
    let layout = bank.layout();
    let part = bank.parts().iter().find(|part| part.experts.contains(&expert))?;
    let start = part.offset + u64::from(expert - part.experts.start) * layout.bytes;
    let section = |format: WeightFormat, codes: u64, scales: u64, rows: u32, cols: u32| {
        let bytes = format.row_bytes(cols) * u64::from(rows);
        let codes = part.buffer.span(start + codes, bytes);
        let scales = part.buffer.span(start + scales, format.scale_bytes(rows, cols));
        decode(format, rows as usize, cols as usize, &codes, &scales)
    };
    let &ExpertLayout { dim, hidden, .. } = layout;
    Some([
        section(layout.up_format, layout.w1, layout.s1, hidden, dim),
        section(layout.up_format, layout.w3, layout.s3, hidden, dim),
        section(layout.down_format, layout.w2, layout.s2, dim, hidden),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_the_values_of_the_specification() {
        assert_eq!(e4m3(0x00), 0.0);
        assert_eq!(e4m3(0x01), 2f32.powi(-9));
        assert_eq!(e4m3(0x07), 7.0 * 2f32.powi(-9));
        assert_eq!(e4m3(0x08), 2f32.powi(-6));
        assert_eq!(e4m3(0x38), 1.0);
        assert_eq!(e4m3(0x7e), 448.0);
        assert_eq!(e4m3(0xfe), -448.0);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }

    #[test]
    fn e2m1_has_the_values_of_the_specification() {
        let values: Vec<f32> = (0..8).map(e2m1).collect();
        assert_eq!(values, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
        assert!((0..8).all(|code| e2m1(code + 8) == -e2m1(code)));
    }

    #[test]
    fn an_even_column_is_the_lower_half_of_a_byte() {
        // Codes 2 (1.0) and 5 (3.0) in turn; a scale of 2.0 for each row's 16 columns; 0.5 for all.
        let mut scales = vec![0; 16];
        scales[..4].copy_from_slice(&0.5_f32.to_le_bytes());
        scales.extend([0x40, 0x48]);
        let decoded = decode(WeightFormat::Nvfp4, 2, 16, &[0x52; 16], &scales);
        assert_eq!(decoded.row(0)[..4], [1.0, 3.0, 1.0, 3.0]);
        assert_eq!(decoded.row(1)[14..], [2.0, 6.0]);
    }

    #[test]
    fn bf16_is_the_upper_half_of_f32() {
        assert_eq!(bf16(0x3f80), 1.0);
        assert_eq!(bf16(0xc049), -3.140625);
    }
}
