//! Does a device that rounds given rows to f16 compute with them what it must?
//!
//! Before its first use such a device multiplies rows of very different sizes with weights of each format that it takes so.
//! What comes out must be as near to the twin's as 11 significant bits of the rows allow, and a row's bits must be the same
//! in every tile and at every place of it (DET-1). A driver that fails gets other kernels.

use std::time::{Duration, Instant};

use super::backend::GpuBackend;
use crate::ops::{
    Backend, Linear, Matrix, MatrixPart, OpError, PART_ALIGN, ReadRange, Rows, Scales, WeightFormat,
};
use crate::reference::CpuBackend;

/// Longest wait for the results.
const TIMEOUT: Duration = Duration::from_secs(30);
/// More than one tile of rows, and of outputs.
const ROWS: u32 = 70;
const OUTPUTS: u32 = 150;
/// Three blocks of FP8, the last one of them cut, and an odd number of chunks.
const COLS: u32 = 304;
/// Rows that are computed again among others, and how many tiles must be there for large ones: a lone row, the end, and all in
/// small tiles.
const AGAIN: [(u32, u32, u32); 3] = [(3, 1, 0), (37, 33, 0), (0, ROWS, u32::MAX)];
/// What a result may differ by, in parts of the sum of the terms' magnitudes: rows are rounded by 2^-11 at most, sums by less.
const BOUND: f64 = 1.0 / 1024.0;

/// A matrix's bytes: codes, and the section of scales.
struct Weights {
    format: WeightFormat,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

/// Numbers that look random and are the same in every run.
fn bits(state: &mut u32) -> u32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    *state >> 8
}

impl Weights {
    fn new(format: WeightFormat) -> Self {
        let state = &mut 7;
        let mut bytes = |count: u64, largest: u32| -> Vec<u8> {
            (0..count).map(|_| (bits(state) % (largest + 1)) as u8).collect()
        };
        let code = |code: u8| if code & 0x7f == 0x7f { code ^ 1 } else { code };
        let codes = bytes(format.row_bytes(COLS) * u64::from(OUTPUTS), 0xff);
        let scale_bytes = format.scale_bytes(OUTPUTS, COLS);
        let multiplier = |index: u64| (0.001 + 0.0003 * index as f32).to_le_bytes();
        let scales = match format {
            WeightFormat::Bf16 => Vec::new(),
            WeightFormat::Fp8Block | WeightFormat::Fp8Tensor => {
                (0..scale_bytes / 4).flat_map(multiplier).collect()
            }
            WeightFormat::Nvfp4 => {
                let mut section = multiplier(0).to_vec();
                section.resize(PART_ALIGN as usize, 0);
                // Every scale there is: they have no sign and are no NaN.
                section.extend(bytes(scale_bytes - PART_ALIGN, 0x7e));
                section
            }
        };
        let codes = match format {
            WeightFormat::Fp8Block | WeightFormat::Fp8Tensor => codes.into_iter().map(code).collect(),
            WeightFormat::Bf16 | WeightFormat::Nvfp4 => codes,
        };
        Self {
            format,
            codes,
            scales,
        }
    }

    /// With the magnitudes of the codes.
    fn magnitudes(&self) -> Self {
        let mask = match self.format {
            WeightFormat::Nvfp4 => 0x77,
            WeightFormat::Bf16 | WeightFormat::Fp8Block | WeightFormat::Fp8Tensor => 0x7f,
        };
        Self {
            format: self.format,
            codes: self.codes.iter().map(|code| code & mask).collect(),
            scales: self.scales.clone(),
        }
    }

    /// The outputs of given rows.
    fn times<D: Backend>(&self, device: &mut D, rows: &[f32]) -> Result<Vec<f32>, OpError> {
        let mut upload = |bytes: &[u8]| {
            let mut words = bytes.to_vec();
            words.resize(bytes.len().next_multiple_of(4), 0);
            let buffer = device.alloc("trial", words.len() as u64)?;
            device.write(&buffer, 0, &words)?;
            Ok::<_, OpError>(buffer)
        };
        let part = MatrixPart {
            rows: 0..OUTPUTS,
            buffer: upload(&self.codes)?,
            offset: 0,
        };
        let scales = Scales {
            buffer: upload(&self.scales)?,
            offset: 0,
        };
        let input = upload(bytemuck::cast_slice(rows))?;
        let weight = Matrix::new(OUTPUTS, COLS, self.format, vec![part], Some(scales))?;
        let count = rows.len() as u32 / COLS;
        let bytes = u64::from(count * OUTPUTS) * 4;
        let output = device.alloc("trial", bytes)?;
        device.linear(&Linear {
            input: &input,
            weight: &weight,
            output: &output,
            add: false,
            rows: Rows::new(0, count),
        })?;
        let range = ReadRange {
            buffer: output,
            offset: 0,
            bytes,
        };
        let read = device.read(&[range], Instant::now() + TIMEOUT)?;
        Ok(bytemuck::pod_collect_to_vec(&read.concat()))
    }
}

/// Rows whose largest numbers are from 2^-24 to 2^23.
fn rows() -> Vec<f32> {
    let state = &mut 11;
    let value = |index: u32| {
        let size = 2_f32.powi((index / COLS * 7 % 48) as i32 - 24);
        (bits(state) as f32 / (1 << 23) as f32 - 1.0) * size
    };
    (0..ROWS * COLS).map(value).collect()
}

/// Says what is wrong with a device, if anything is.
pub(super) fn check(device: &mut GpuBackend) -> Result<(), String> {
    // Tiles are large wherever there are rows for them, then small ones as well.
    let enough = device.set_enough_tiles(0);
    let result = check_tiles(device);
    device.set_enough_tiles(enough);
    result
}

fn check_tiles(device: &mut GpuBackend) -> Result<(), String> {
    let rows = rows();
    let magnitudes: Vec<f32> = rows.iter().map(|value| value.abs()).collect();
    let failed = |error: OpError| error.to_string();
    for format in [WeightFormat::Fp8Block, WeightFormat::Nvfp4] {
        let weights = Weights::new(format);
        let found = weights.times(device, &rows).map_err(failed)?;
        let mut twin = CpuBackend::new(1 << 24, 1 << 24);
        let expected = weights.times(&mut twin, &rows).map_err(failed)?;
        let sizes = weights
            .magnitudes()
            .times(&mut twin, &magnitudes)
            .map_err(failed)?;
        compare(format, &found, &expected, &sizes)?;
        for (first, count, enough) in AGAIN {
            device.set_enough_tiles(enough);
            let of = |width: u32| (first * width) as usize..((first + count) * width) as usize;
            let again = weights.times(device, &rows[of(COLS)]).map_err(failed)?;
            device.set_enough_tiles(0);
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
            if !again.iter().zip(&found[of(OUTPUTS)]).all(same) {
                return Err(format!(
                    "{format}: rows from {first} on depend on those beside them"
                ));
            }
        }
    }
    Ok(())
}

fn compare(format: WeightFormat, found: &[f32], expected: &[f32], sizes: &[f32]) -> Result<(), String> {
    for (place, ((&found, &expected), &size)) in found.iter().zip(expected).zip(sizes).enumerate() {
        let difference = (f64::from(found) - f64::from(expected)).abs();
        // What is not a number is not near either.
        let is_near = difference <= BOUND * f64::from(size);
        if !is_near {
            let (row, output) = (place / OUTPUTS as usize, place % OUTPUTS as usize);
            return Err(format!(
                "{format}: output {output} of row {row} is {found:e}, {expected:e} is right"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{DeviceConfig, open_with_given_rows_in_f16};

    #[test]
    fn rows_rounded_to_f16_are_near_enough_and_no_nearer_than_they_are() {
        let mut device = open_with_given_rows_in_f16(&DeviceConfig::default()).expect("an adapter");
        check(&mut device).expect("what it computes is right");
        assert_eq!(device.held_bytes(), 0, "nothing is kept");
        // It does round: the bound is not met by far.
        let (weights, rows) = (Weights::new(WeightFormat::Nvfp4), rows());
        let found = weights.times(&mut device, &rows).expect("runs");
        let mut twin = CpuBackend::new(1 << 24, 1 << 24);
        let expected = weights.times(&mut twin, &rows).expect("runs");
        let nearer: Vec<f32> = expected.iter().map(|value| value * 1e-7).collect();
        assert!(compare(WeightFormat::Nvfp4, &found, &expected, &nearer).is_err());
    }

    #[test]
    fn a_device_that_is_wrong_in_one_output_is_refused() {
        let expected = [1.0, 2.0, -3.0];
        let sizes = [10.0, 10.0, 10.0];
        let compare = |found: [f32; 3]| compare(WeightFormat::Fp8Block, &found, &expected, &sizes);
        assert_eq!(compare([1.009, 1.992, -3.0]), Ok(()));
        let refusal = "FP8 with a scale per block: output 2 of row 0 is -3.02e0, -3e0 is right";
        assert_eq!(compare([1.0, 2.0, -3.02]).expect_err("too far"), refusal);
        assert!(compare([1.0, f32::NAN, -3.0]).is_err());
    }
}
