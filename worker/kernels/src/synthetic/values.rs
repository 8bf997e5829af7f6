//! Random values of weights, as the formats store them.
//!
//! Weights have about the spread of a trained model's: a sum over the columns of inputs of size one is of size one.

use half::bf16;
use tramontane_model::dtype::{E4M3_VALUES, e2m1_to_f32};
use tramontane_model::tensors::WeightFormat;

use super::Random;

/// e4m3 of 1.
const E4M3_ONE: u8 = 0x38;
/// Codes of e4m3 that are not numbers, sign aside.
const E4M3_NAN: u8 = 0x7f;
/// What NVFP4 scales are divided by: stored scales are then well within e4m3.
pub const NVFP4_DIVISOR: f32 = 64.0;

/// What the elements of a stored tensor are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// BF16, evenly spread up to this.
    Spread(f32),
    /// BF16 about 1, as norms have.
    Norm,
    /// Every code of e4m3 that is a number.
    E4m3,
    /// Two codes of e2m1 a byte.
    E2m1,
    /// e4m3 scales, between one and two times this.
    E4m3Scale(f32),
    /// One f32, or several.
    Constant(f32),
}

/// Size of a weight that is multiplied with so many inputs.
fn spread(cols: u32) -> f32 {
    (cols as f32).sqrt().recip()
}

/// Root of the mean square of all codes of e4m3 that are numbers.
fn e4m3_size() -> f32 {
    let numbers = E4M3_VALUES.iter().filter(|value| value.is_finite());
    let squares: f32 = numbers.map(|value| value * value).sum();
    (squares / 254.0).sqrt()
}

/// The same of e2m1.
fn e2m1_size() -> f32 {
    let squares: f32 = (0..16).map(|code| e2m1_to_f32(code).powi(2)).sum();
    (squares / 16.0).sqrt()
}

/// The code of e4m3 nearest to a value, which is above zero.
fn e4m3_near(value: f32) -> u8 {
    let codes = (1..E4M3_NAN).min_by(|&left, &right| {
        let far = |code: u8| (E4M3_VALUES[usize::from(code)] - value).abs();
        far(left).total_cmp(&far(right))
    });
    codes.unwrap_or(E4M3_ONE)
}

impl Values {
    /// The codes of a matrix of so many columns.
    pub fn codes(format: WeightFormat, cols: u32) -> Self {
        match format {
            // The root of the mean square of what is evenly spread is a third of its square.
            WeightFormat::Bf16 => Self::Spread(spread(cols) * 3.0_f32.sqrt()),
            WeightFormat::Fp8Block | WeightFormat::Fp8Tensor => Self::E4m3,
            WeightFormat::Nvfp4 => Self::E2m1,
        }
    }

    /// What scales them, per block, per group of columns or for all. BF16 has none.
    pub fn scales(format: WeightFormat, cols: u32) -> Self {
        match format {
            WeightFormat::Bf16 => Self::Constant(1.0),
            WeightFormat::Fp8Block | WeightFormat::Fp8Tensor => Self::Constant(spread(cols) / e4m3_size()),
            // Scales are between one and two times this, 1.5 on the whole.
            WeightFormat::Nvfp4 => Self::E4m3Scale(spread(cols) / e2m1_size() * NVFP4_DIVISOR / 1.5),
        }
    }

    /// Fills whole elements.
    pub fn fill(self, random: &mut Random, bytes: &mut [u8]) {
        match self {
            Self::Spread(most) => fill_bf16(bytes, || (random.unit() * 2.0 - 1.0) * most),
            Self::Norm => fill_bf16(bytes, || 0.9 + 0.2 * random.unit()),
            Self::E4m3 => {
                random.bytes(bytes);
                for code in bytes.iter_mut().filter(|code| **code & E4M3_NAN == E4M3_NAN) {
                    *code ^= 0x40;
                }
            }
            Self::E2m1 => random.bytes(bytes),
            Self::E4m3Scale(least) => {
                random.bytes(bytes);
                let codes: Vec<u8> = (0..8)
                    .map(|eighth| e4m3_near(least * (1.0 + eighth as f32 / 7.0)))
                    .collect();
                for code in bytes.iter_mut() {
                    *code = codes[usize::from(*code) % codes.len()];
                }
            }
            Self::Constant(value) => {
                for element in bytes.chunks_exact_mut(4) {
                    element.copy_from_slice(&value.to_le_bytes());
                }
            }
        }
    }
}

fn fill_bf16(bytes: &mut [u8], mut next: impl FnMut() -> f32) {
    for element in bytes.chunks_exact_mut(2) {
        element.copy_from_slice(&bf16::from_f32(next()).to_le_bytes());
    }
}
