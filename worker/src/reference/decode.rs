//! Stored weights to f64: BF16, and e4m3 with its block scales.

use super::CpuBuffer;
use crate::ops::{ExpertBank, ExpertLayout, FP8_BLOCK, Matrix, Vector, WeightFormat};

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

fn decode(
    format: WeightFormat,
    rows: usize,
    cols: usize,
    bytes: impl Iterator<Item = u8>,
    scales: &[f32],
) -> Decoded {
    let values = match format {
        WeightFormat::Bf16 => {
            let bytes: Vec<u8> = bytes.collect();
            let codes = bytes
                .chunks_exact(2)
                .map(|code| u16::from_le_bytes([code[0], code[1]]));
            codes.map(|code| f64::from(bf16(code))).collect()
        }
        WeightFormat::Fp8Block => {
            let block = FP8_BLOCK as usize;
            let blocks = cols.div_ceil(block);
            let scale = |index: usize| scales[index / cols / block * blocks + index % cols / block];
            bytes
                .enumerate()
                .map(|(index, code)| f64::from(e4m3(code)) * f64::from(scale(index)))
                .collect()
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
    let row_bytes = matrix.format().row_bytes(matrix.cols());
    let bytes = matrix.parts().iter().flat_map(|part| {
        let count = u64::from(part.rows.end - part.rows.start);
        part.buffer.span(part.offset, count * row_bytes)
    });
    let scales = matrix.scales().map_or_else(Vec::new, |table| {
        let count = matrix.format().scale_count(matrix.rows(), matrix.cols());
        floats(&table.buffer.span(table.offset, count * 4))
    });
    let (rows, cols) = (matrix.rows() as usize, matrix.cols() as usize);
    decode(matrix.format(), rows, cols, bytes, &scales)
}

/// A BF16 vector.
pub(super) fn vector(vector: &Vector<CpuBuffer>) -> Vec<f64> {
    let bytes = vector.buffer().span(vector.offset(), u64::from(vector.len()) * 2);
    decode(
        WeightFormat::Bf16,
        1,
        vector.len() as usize,
        bytes.into_iter(),
        &[],
    )
    .values
}

/// The three matrices of an expert: gate, up, down.
pub(super) fn expert(bank: &ExpertBank<CpuBuffer>, expert: u32) -> Option<[Decoded; 3]> {
    let layout = bank.layout();
    let part = bank.parts().iter().find(|part| part.experts.contains(&expert))?;
    let start = part.offset + u64::from(expert - part.experts.start) * layout.bytes;
    let section = |weights: u64, scales: u64, rows: u32, cols: u32| {
        let format = layout.format;
        let bytes = part
            .buffer
            .span(start + weights, format.row_bytes(cols) * u64::from(rows));
        let table = floats(
            &part
                .buffer
                .span(start + scales, format.scale_count(rows, cols) * 4),
        );
        decode(format, rows as usize, cols as usize, bytes.into_iter(), &table)
    };
    let &ExpertLayout { dim, hidden, .. } = layout;
    Some([
        section(layout.w1, layout.s1, hidden, dim),
        section(layout.w3, layout.s3, hidden, dim),
        section(layout.w2, layout.s2, dim, hidden),
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
    fn bf16_is_the_upper_half_of_f32() {
        assert_eq!(bf16(0x3f80), 1.0);
        assert_eq!(bf16(0xc049), -3.140625);
    }
}
