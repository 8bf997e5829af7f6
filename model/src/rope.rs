//! Rotary tables: the cosine and sine of every position and frequency, and the query's growth with the position.
//!
//! Computed in f64 and rounded to f32 once, on the CPU, so that every device turns by the same angle. No attention
//! factor: `apply_scale` is false for every served model, which is checked when its spec is read.

use std::f64::consts::TAU;
use std::ops::Range;

use crate::spec::{QueryScaling, RopeSpec, YarnSpec};

/// The frequencies of one model's rotary encoding.
///
/// Pair `i` of a head's rotated part is its values `2i` and `2i + 1` (interleaved); at position `p` it turns by
/// `p * frequencies()[i]` radians.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryTable {
    frequencies: Vec<f64>,
}

impl RotaryTable {
    /// The frequencies `theta^(-2i / dim)`, stretched by YaRN where the model has it.
    pub fn new(rope: &RopeSpec) -> Self {
        let dim = f64::from(rope.dim);
        let plain = (0..rope.dim / 2).map(|pair| rope.theta.powf(-2.0 * f64::from(pair) / dim));
        let frequencies = match &rope.yarn {
            None => plain.collect(),
            Some(yarn) => {
                let ramp = Ramp::new(yarn, rope);
                plain
                    .zip(0_u32..)
                    .map(|(frequency, pair)| {
                        let stretched = ramp.at(pair);
                        frequency / yarn.factor * stretched + frequency * (1.0 - stretched)
                    })
                    .collect()
            }
        };
        Self { frequencies }
    }

    /// Radians per position of each pair, fastest first.
    pub fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }

    /// Values in one position's row: a cosine and a sine for each pair.
    pub fn row_len(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Writes one position's row: `[cos, sin]` of each pair in turn. A longer `row` keeps its rest.
    pub fn write_row(&self, position: u32, row: &mut [f32]) {
        for (pair, frequency) in row.chunks_exact_mut(2).zip(&self.frequencies) {
            let (sin, cos) = (f64::from(position) * frequency).sin_cos();
            pair[0] = cos as f32;
            pair[1] = sin as f32;
        }
    }

    /// The rows of consecutive positions, `[positions, pairs, 2]` row-major.
    pub fn cos_sin(&self, positions: Range<u32>) -> Vec<f32> {
        let mut table = vec![0.0; positions.len() * self.row_len()];
        // The shortest head has two pairs, so a row is never empty.
        for (row, position) in table.chunks_exact_mut(self.row_len().max(1)).zip(positions) {
            self.write_row(position, row);
        }
        table
    }
}

/// How far each pair is stretched: 0 up to `low`, 1 from `high`, linear between (YaRN, section 3.2, in the form of
/// its reference code: the borders are pair indexes, rounded outwards).
struct Ramp {
    low: f64,
    high: f64,
}

impl Ramp {
    fn new(yarn: &YarnSpec, rope: &RopeSpec) -> Self {
        let dim = f64::from(rope.dim);
        // The pair, as a real number, that turns this often within the original context.
        let pair_of = |rotations: f64| {
            let wavelength = f64::from(yarn.original_context) / rotations;
            dim * (wavelength / TAU).ln() / (2.0 * rope.theta.ln())
        };
        let low = pair_of(yarn.beta_fast).floor().max(0.0);
        let high = pair_of(yarn.beta_slow).ceil().min(dim - 1.0);
        // A step would divide by zero; the reference code widens it by this much.
        let high = if high == low { high + 0.001 } else { high };
        Self { low, high }
    }

    fn at(&self, pair: u32) -> f64 {
        ((f64::from(pair) - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// What a query at `position` is multiplied with; 1 where the model has no such scaling.
pub fn query_scale(scaling: Option<&QueryScaling>, position: u32) -> f32 {
    match scaling {
        None => 1.0,
        Some(scaling) => {
            let step = position / scaling.original_context.max(1);
            (1.0 + scaling.beta * f64::from(step).ln_1p()) as f32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(dim: u32, yarn: Option<(f64, u32)>) -> RopeSpec {
        let yarn = yarn.map(|(factor, original_context)| YarnSpec {
            factor,
            original_context,
            beta_fast: 32.0,
            beta_slow: 1.0,
        });
        RopeSpec {
            dim,
            theta: 10_000.0,
            yarn,
        }
    }

    /// The same frequencies without a logarithm: the borders are found by counting each whole pair's rotations.
    fn by_counting(spec: &RopeSpec) -> Vec<f64> {
        let yarn = spec.yarn.as_ref().expect("a spec with yarn");
        let frequency = |pair: i32| spec.theta.powf(f64::from(2 * pair) / f64::from(spec.dim)).recip();
        let rotations = |pair: i32| f64::from(yarn.original_context) * frequency(pair) / TAU;
        let low = (0..spec.dim as i32)
            .take_while(|&pair| rotations(pair) >= yarn.beta_fast)
            .last()
            .unwrap_or(0);
        let high = (0..spec.dim as i32 - 1)
            .find(|&pair| rotations(pair) <= yarn.beta_slow)
            .unwrap_or(spec.dim as i32 - 1);
        (0..spec.dim as i32 / 2)
            .map(|pair| {
                let kept = if pair <= low {
                    1.0
                } else if pair >= high {
                    0.0
                } else {
                    f64::from(high - pair) / f64::from(high - low)
                };
                frequency(pair) * (kept + (1.0 - kept) / yarn.factor)
            })
            .collect()
    }

    #[test]
    fn frequencies_agree_with_counting_rotations() {
        for (dim, factor, original) in [
            (64, 36.0, 8192),
            (64, 128.0, 8192),
            (16, 16.0, 256),
            (128, 16.0, 16384),
        ] {
            let spec = rope(dim, Some((factor, original)));
            let expected = by_counting(&spec);
            let table = RotaryTable::new(&spec);
            assert_eq!(table.frequencies().len(), expected.len());
            for (pair, (found, expected)) in table.frequencies().iter().zip(&expected).enumerate() {
                assert!(
                    (found / expected - 1.0).abs() < 1e-12,
                    "{dim} {pair}: {found} {expected}"
                );
            }
        }
    }

    /// Within 8192 positions pair 12 turns 41.2 times and pair 13 30.9 times, pair 24 1.30 times and pair 25 0.98 times:
    /// pair 12 is the last one left alone, pair 25 the first one stretched in full, thirteen steps on.
    #[test]
    fn large_3_has_its_borders_at_pairs_12_and_25() {
        let table = RotaryTable::new(&rope(64, Some((36.0, 8192))));
        let ratio = |pair: i32| table.frequencies()[pair as usize] * 10_000_f64.powf(f64::from(pair) / 32.0);
        assert!((ratio(12) - 1.0).abs() < 1e-12);
        assert!((ratio(13) - (12.0 / 13.0 + 1.0 / 13.0 / 36.0)).abs() < 1e-12);
        assert!((ratio(24) - (1.0 / 13.0 + 12.0 / 13.0 / 36.0)).abs() < 1e-12);
        assert!((ratio(25) - 1.0 / 36.0).abs() < 1e-12);
    }

    #[test]
    fn without_yarn_the_frequencies_are_plain() {
        let table = RotaryTable::new(&rope(8, None));
        for (found, expected) in table.frequencies().iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((found / expected - 1.0_f64).abs() < 1e-12);
        }
    }

    /// Rows against repeated complex multiplication by one position's rotation: no cosine of a large angle in it.
    #[test]
    fn rows_agree_with_repeated_rotation() {
        let table = RotaryTable::new(&rope(16, Some((16.0, 256))));
        let rows = table.cos_sin(0..4096);
        assert_eq!(rows.len(), 4096 * 16);
        for (pair, frequency) in table.frequencies().iter().enumerate() {
            let (step_sin, step_cos) = frequency.sin_cos();
            let (mut cos, mut sin) = (1.0_f64, 0.0_f64);
            for position in 0..4096 {
                let at = position * 16 + 2 * pair;
                assert!((f64::from(rows[at]) - cos).abs() < 1e-7, "{pair} {position}");
                assert!((f64::from(rows[at + 1]) - sin).abs() < 1e-7, "{pair} {position}");
                (cos, sin) = (cos * step_cos - sin * step_sin, sin * step_cos + cos * step_sin);
            }
        }
    }

    #[test]
    fn a_range_is_a_part_of_the_whole_table() {
        let table = RotaryTable::new(&rope(16, Some((16.0, 256))));
        let whole = table.cos_sin(0..64);
        assert_eq!(table.cos_sin(17..40), whole[17 * 16..40 * 16]);
        assert!(table.cos_sin(5..5).is_empty());
        let mut row = [9.0; 18];
        table.write_row(63, &mut row);
        assert_eq!(row[..16], whole[63 * 16..]);
        assert_eq!(row[16..], [9.0, 9.0]);
    }

    #[test]
    fn the_query_grows_by_steps_of_the_original_context() {
        let scaling = QueryScaling {
            original_context: 256,
            beta: 0.1,
        };
        let at = |position| query_scale(Some(&scaling), position);
        assert_eq!((at(0), at(255)), (1.0, 1.0));
        // 1 + 0.1 ln 2, and 1 + 0.1 ln 16 = 1 + 0.4 ln 2.
        assert_eq!((at(256), at(511)), (1.069_314_7, 1.069_314_7));
        assert_eq!(at(15 * 256), 1.277_258_9);
        assert_eq!(query_scale(None, 100_000), 1.0);
    }
}
