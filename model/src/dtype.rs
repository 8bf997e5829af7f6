//! Number formats of stored weights, and their exact values as `f32`.
//!
//! No encoding of e4m3 here: weights are used as stored, activations are never quantised.

use std::fmt;

use half::bf16;

/// An element type of the safetensors format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// One byte per truth value.
    Bool,
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Float, 5 exponent and 2 mantissa bits.
    F8E5m2,
    /// Float, 4 exponent and 3 mantissa bits, the "fn" kind: no infinities, NaN at 0x7f and 0xff.
    F8E4m3,
    /// Power of two, 8 exponent bits.
    F8E8m0,
    /// Unsigned, 16 bits.
    U16,
    /// Signed, 16 bits.
    I16,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 32 bits.
    I32,
    /// IEEE single.
    F32,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    I64,
    /// IEEE double.
    F64,
}

impl Dtype {
    /// Every type, narrow ones first.
    pub const ALL: [Self; 16] = [
        Self::Bool,
        Self::U8,
        Self::I8,
        Self::F8E5m2,
        Self::F8E4m3,
        Self::F8E8m0,
        Self::U16,
        Self::I16,
        Self::F16,
        Self::Bf16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type's name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E5m2 => "F8_E5M2",
            Self::F8E4m3 => "F8_E4M3",
            Self::F8E8m0 => "F8_E8M0",
            Self::U16 => "U16",
            Self::I16 => "I16",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::U32 => "U32",
            Self::I32 => "I32",
            Self::F32 => "F32",
            Self::U64 => "U64",
            Self::I64 => "I64",
            Self::F64 => "F64",
        }
    }

    /// The type with this name in a safetensors header.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E5m2 | Self::F8E4m3 | Self::F8E8m0 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The value of each e4m3 code; NaN at 0x7f and 0xff.
///
/// Source: Micikevicius et al., "FP8 Formats for Deep Learning", table 1: bias 7, subnormals in steps of 2^-9,
/// exponent 15 is an ordinary exponent but for the all-ones mantissa.
pub const E4M3_VALUES: [f32; 256] = e4m3_values();

const fn e4m3_values() -> [f32; 256] {
    let mut values = [0.0_f32; 256];
    let mut code = 0_u32;
    while code < 256 {
        let sign = (code & 0x80) << 24;
        let exponent = (code >> 3) & 0xf;
        let mantissa = code & 7;
        let magnitude = if exponent == 15 && mantissa == 7 {
            0x7fc0_0000
        } else if exponent > 0 {
            // Re-biased from 7 to 127, the mantissa moved from 3 to 23 bits.
            ((exponent + 120) << 23) | (mantissa << 20)
        } else {
            // Eight is 2^3 and the step 2^-9, so the product is exact.
            (mantissa as f32 * 0.001_953_125).to_bits()
        };
        values[code as usize] = f32::from_bits(sign | magnitude);
        code += 1;
    }
    values
}

/// The value of an e4m3 code.
pub fn e4m3_to_f32(code: u8) -> f32 {
    E4M3_VALUES[usize::from(code)]
}

/// Whether an e4m3 code is NaN.
pub fn e4m3_is_nan(code: u8) -> bool {
    code & 0x7f == 0x7f
}

/// The magnitudes of e2m1 by the lower three bits of a code; the fourth is the sign.
///
/// Source: OCP Microscaling Formats 1.0, section 5.3.3: 2 bits of exponent with bias 1, 1 of mantissa, no infinity, no NaN.
pub const E2M1_MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The value of an e2m1 code, which is in the lower four bits.
pub fn e2m1_to_f32(code: u8) -> f32 {
    let magnitude = E2M1_MAGNITUDES[usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// The value of a bf16 bit pattern.
pub fn bf16_to_f32(bits: u16) -> f32 {
    bf16::from_bits(bits).to_f32()
}

/// The nearest bf16, ties to even; NaN stays NaN.
pub fn f32_to_bf16(value: f32) -> u16 {
    bf16::from_f32(value).to_bits()
}

/// Decodes little-endian elements of `dtype`, which must be [`Dtype::Bf16`], [`Dtype::F8E4m3`] or [`Dtype::F32`].
///
/// Stops at the shorter of `bytes` and `out` and returns how many elements it wrote; `None` for another type.
pub fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Option<usize> {
    let pairs = |width: usize| out.len().min(bytes.len() / width);
    if dtype == Dtype::F8E4m3 {
        let n = pairs(1);
        for (value, &code) in out.iter_mut().zip(bytes) {
            *value = e4m3_to_f32(code);
        }
        Some(n)
    } else if dtype == Dtype::Bf16 {
        let n = pairs(2);
        for (value, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            *value = bf16_to_f32(u16::from_le_bytes([b[0], b[1]]));
        }
        Some(n)
    } else if dtype == Dtype::F32 {
        let n = pairs(4);
        for (value, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
            *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        }
        Some(n)
    } else {
        None
    }
}

/// Bytes looked at before each test for an early end: long enough that the compiler uses vector instructions.
const SCAN_BYTES: usize = 256;

/// The index of the first element of `bytes` that is NaN or infinite, if there is one.
///
/// Knows [`Dtype::F8E4m3`], [`Dtype::Bf16`] and [`Dtype::F32`]; elements of other types count as finite.
pub fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    // Without a branch for each element: a vector of them at a time.
    if dtype == Dtype::F8E4m3 {
        scan(bytes, |&[code]: &[u8; 1]| code & 0x7f == 0x7f)
    } else if dtype == Dtype::Bf16 {
        scan(bytes, |&bits| u16::from_le_bytes(bits) & 0x7f80 == 0x7f80)
    } else if dtype == Dtype::F32 {
        scan(bytes, |&bits| {
            u32::from_le_bytes(bits) & 0x7f80_0000 == 0x7f80_0000
        })
    } else {
        None
    }
}

fn scan<const WIDTH: usize>(bytes: &[u8], bad: impl Fn(&[u8; WIDTH]) -> bool) -> Option<usize> {
    for (index, chunk) in bytes.chunks(SCAN_BYTES).enumerate() {
        let (elements, _) = chunk.as_chunks::<WIDTH>();
        let any = elements.iter().fold(false, |any, element| any | bad(element));
        if any {
            return Some(index * (SCAN_BYTES / WIDTH) + elements.iter().position(bad)?);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value from the format's definition, in f64, by powers of two instead of bit patterns.
    fn by_definition(sign: bool, exponent: i32, mantissa: i32, mantissa_bits: i32, bias: i32) -> f64 {
        let fraction = f64::from(mantissa) / 2_f64.powi(mantissa_bits);
        let magnitude = if exponent == 0 {
            fraction * 2_f64.powi(1 - bias)
        } else {
            (1.0 + fraction) * 2_f64.powi(exponent - bias)
        };
        if sign { -magnitude } else { magnitude }
    }

    #[test]
    fn every_e4m3_code_has_its_defined_value() {
        for code in 0..=255_u8 {
            let (sign, exponent, mantissa) = (code >= 128, i32::from(code % 128 / 8), i32::from(code % 8));
            let value = e4m3_to_f32(code);
            if code % 128 == 127 {
                assert!(value.is_nan() && e4m3_is_nan(code), "code {code:#04x}");
                continue;
            }
            let expected = by_definition(sign, exponent, mantissa, 3, 7);
            assert_eq!(f64::from(value), expected, "code {code:#04x}");
            assert_eq!(value.is_sign_negative(), sign, "code {code:#04x}");
            assert!(!e4m3_is_nan(code), "code {code:#04x}");
        }
        assert_eq!((e4m3_to_f32(0x7e), e4m3_to_f32(0x01)), (448.0, 0.001_953_125));
    }

    #[test]
    fn every_e2m1_code_has_its_defined_value() {
        for code in 0..16_u8 {
            let (exponent, mantissa) = (i32::from(code / 2 % 4), i32::from(code % 2));
            let expected = by_definition(code >= 8, exponent, mantissa, 1, 1);
            assert_eq!(f64::from(e2m1_to_f32(code)), expected, "code {code}");
            assert_eq!(e2m1_to_f32(code).is_sign_negative(), code >= 8, "code {code}");
        }
    }

    #[test]
    fn every_bf16_code_has_its_defined_value_and_comes_back() {
        for bits in 0..=u16::MAX {
            let (sign, exponent) = (bits >= 0x8000, i32::from(bits % 0x8000 / 128));
            let mantissa = i32::from(bits % 128);
            let value = bf16_to_f32(bits);
            if exponent == 255 {
                assert_eq!(
                    (value.is_nan(), value.is_infinite()),
                    (mantissa != 0, mantissa == 0)
                );
                continue;
            }
            assert_eq!(
                f64::from(value),
                by_definition(sign, exponent, mantissa, 7, 127),
                "{bits:#06x}"
            );
            assert_eq!(f32_to_bf16(value), bits);
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        let step = 2_f32.powi(-7);
        assert_eq!(bf16_to_f32(f32_to_bf16(1.0 + 0.5 * step)), 1.0);
        assert_eq!(bf16_to_f32(f32_to_bf16(1.0 + 1.5 * step)), 1.0 + 2.0 * step);
        assert_eq!(bf16_to_f32(f32_to_bf16(1.0 + 0.51 * step)), 1.0 + step);
        assert!(bf16_to_f32(f32_to_bf16(f32::NAN)).is_nan());
    }

    #[test]
    fn decode_agrees_with_the_single_conversions() {
        let mut out = [0.0; 3];
        assert_eq!(decode(Dtype::F8E4m3, &[0x38, 0xb8], &mut out), Some(2));
        assert_eq!(out[..2], [1.0, -1.0]);
        assert_eq!(
            decode(Dtype::Bf16, &[0x80, 0x3f, 0x00, 0xc0, 0xff], &mut out),
            Some(2)
        );
        assert_eq!(out[..2], [1.0, -2.0]);
        assert_eq!(decode(Dtype::F32, &0.1_f32.to_le_bytes(), &mut out), Some(1));
        assert_eq!(out[0], 0.1);
        assert_eq!(decode(Dtype::F16, &[0, 0], &mut out), None);
    }

    #[test]
    fn the_first_non_finite_element_is_found_at_every_place() {
        for n in [1_usize, 7, 255, 256, 257, 1000] {
            for (dtype, good, bad) in [
                (Dtype::F8E4m3, vec![0x7e], vec![0xff]),
                (Dtype::Bf16, vec![0x7f, 0x7f], vec![0x80, 0x7f]),
                (
                    Dtype::F32,
                    f32::MAX.to_le_bytes().to_vec(),
                    f32::NAN.to_le_bytes().to_vec(),
                ),
                (
                    Dtype::F32,
                    f32::MIN.to_le_bytes().to_vec(),
                    f32::NEG_INFINITY.to_le_bytes().to_vec(),
                ),
            ] {
                let clean = good.repeat(n);
                assert_eq!(first_not_finite(dtype, &clean), None);
                for at in [0, n / 2, n - 1] {
                    let mut bytes = clean.clone();
                    bytes[at * bad.len()..(at + 1) * bad.len()].copy_from_slice(&bad);
                    assert_eq!(first_not_finite(dtype, &bytes), Some(at), "{dtype} {n}");
                }
            }
        }
    }

    #[test]
    fn the_non_finite_codes_are_exactly_the_defined_ones() {
        for code in 0..=255_u8 {
            assert_eq!(
                first_not_finite(Dtype::F8E4m3, &[code]).is_some(),
                e4m3_to_f32(code).is_nan()
            );
        }
        for bits in 0..=u16::MAX {
            let found = first_not_finite(Dtype::Bf16, &bits.to_le_bytes()).is_some();
            assert_eq!(found, !bf16_to_f32(bits).is_finite(), "{bits:#06x}");
        }
    }

    #[test]
    fn names_are_unique_and_parse_back() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_name("bf16"), None);
    }
}
