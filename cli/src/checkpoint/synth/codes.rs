//! The stored tensors of a weight, and random values for them.
//!
//! Weights have about the spread of a trained model's: a sum over the columns of inputs of size one is of size one.

use half::bf16;
use tramontane_model::dtype::{E4M3_VALUES, e2m1_to_f32};
use tramontane_model::spec::FP8_BLOCK;
use tramontane_model::tensors::{NVFP4_GROUP, Shape, TensorSpec, WeightFormat};

use super::random::Random;

/// e4m3 of 1.
const E4M3_ONE: u8 = 0x38;
/// Codes of e4m3 that are not numbers, sign aside.
const E4M3_NAN: u8 = 0x7f;
/// What NVFP4 scales are divided by: stored scales are then well within e4m3.
const NVFP4_DIVISOR: f32 = 64.0;

/// What its elements are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Values {
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

/// A tensor as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: &'static str,
    pub(super) shape: Vec<u64>,
    pub(super) values: Values,
}

impl Tensor {
    /// Its bytes in the file.
    pub(super) fn bytes(&self) -> u64 {
        let width = match self.values {
            Values::Spread(_) | Values::Norm => 2,
            Values::E4m3 | Values::E2m1 | Values::E4m3Scale(_) => 1,
            Values::Constant(_) => 4,
        };
        self.shape.iter().product::<u64>() * width
    }
}

/// The stored tensors of one weight: its codes, then what scales them.
pub(super) fn stored(tensor: &TensorSpec) -> Vec<Tensor> {
    let name = tensor.id.to_string();
    let beside = |ending: &str| name.replace(".weight", ending);
    let dims = tensor.shape.dims();
    let one = |name: String, dtype, shape: Vec<u64>, values| Tensor {
        name,
        dtype,
        shape,
        values,
    };
    let Shape::Matrix { rows, cols } = tensor.shape else {
        return vec![one(name, "BF16", dims, Values::Norm)];
    };
    let spread = (cols as f32).sqrt().recip();
    let (rows, cols) = (u64::from(rows), u64::from(cols));
    match tensor.usual_format {
        WeightFormat::Bf16 => {
            // The root of the mean square of what is evenly spread is a third of its square.
            let values = Values::Spread(spread * 3.0_f32.sqrt());
            vec![one(name, "BF16", dims, values)]
        }
        WeightFormat::Fp8Block => {
            let block = u64::from(FP8_BLOCK);
            let blocks = vec![rows.div_ceil(block), cols.div_ceil(block)];
            let scale = Values::Constant(spread / e4m3_size());
            vec![
                one(name.clone(), "F8_E4M3", dims, Values::E4m3),
                one(beside(".weight_scale"), "F32", blocks, scale),
            ]
        }
        WeightFormat::Fp8Tensor => {
            let scale = Values::Constant(spread / e4m3_size());
            vec![
                one(name.clone(), "F8_E4M3", dims, Values::E4m3),
                one(beside(".qscale_weight"), "F32", Vec::new(), scale),
            ]
        }
        WeightFormat::Nvfp4 => {
            let groups = vec![rows, cols / u64::from(NVFP4_GROUP)];
            // Scales are between one and two times this, 1.5 on the whole.
            let scale = Values::E4m3Scale(spread / e2m1_size() * NVFP4_DIVISOR / 1.5);
            let divisor = Values::Constant(NVFP4_DIVISOR);
            vec![
                one(beside(".weight_packed"), "U8", vec![rows, cols / 2], Values::E2m1),
                one(beside(".weight_scale"), "F8_E4M3", groups, scale),
                one(beside(".weight_global_scale"), "F32", vec![1], divisor),
            ]
        }
    }
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
    /// Fills whole elements.
    pub(super) fn fill(self, random: &mut Random, bytes: &mut [u8]) {
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
