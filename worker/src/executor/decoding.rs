//! Does a device decode stored weights as it must?
//!
//! Kernels take codes apart by bits. Before a device loads a model it multiplies every code of the model's formats with one,
//! and what comes out must be what the code stands for, to the bit: a driver that gets that wrong is refused here and not
//! found by its answers.

use std::time::Instant;

use tramontane_model::tensors::WeightFormat;

use tramontane_kernels::ops::{
    Backend, COLS_ALIGN, Linear, Matrix, MatrixPart, OpError, PART_ALIGN, ReadRange, Rows, Scales,
};
use tramontane_kernels::reference::{bf16, e2m1, e4m3};

const COLS: usize = COLS_ALIGN as usize;
/// Rows of activations: kernels for one and for several are not the same, nor are those of the two roles.
const TILES: [Rows; 4] = [Rows::new(1, 0), Rows::new(4, 0), Rows::new(0, 1), Rows::new(0, 4)];
/// The multiplier where a format has one: no power of two, so that its every bit counts.
const MULTIPLIER: f32 = 0.1;

/// A matrix with every code of a format, and what they stand for.
struct Codes {
    format: WeightFormat,
    codes: Vec<u8>,
    scales: Vec<u8>,
    values: Vec<f32>,
}

impl Codes {
    fn of(format: WeightFormat) -> Self {
        let multiplier = MULTIPLIER.to_le_bytes().to_vec();
        let (codes, scales, values) = match format {
            WeightFormat::Bf16 => {
                // Of subnormal numbers a device may make zeros.
                let kept = |code: u16| if bf16(code).is_normal() { code } else { 0 };
                let codes: Vec<u16> = (0..=u16::MAX).map(kept).collect();
                let values = codes.iter().map(|&code| bf16(code)).collect();
                (
                    codes.into_iter().flat_map(u16::to_le_bytes).collect(),
                    Vec::new(),
                    values,
                )
            }
            WeightFormat::Fp8Block | WeightFormat::Fp8Tensor => {
                let kept = |code: u8| if e4m3(code).is_nan() { 0 } else { code };
                let codes: Vec<u8> = (0..=u8::MAX).map(kept).collect();
                let values = codes.iter().map(|&code| e4m3(code) * MULTIPLIER).collect();
                (codes, multiplier, values)
            }
            WeightFormat::Nvfp4 => {
                // A row of all codes for each scale; codes and scales times each other are exact.
                let row: Vec<u8> = (0..COLS as u8)
                    .step_by(2)
                    .map(|code| code | (code + 1) << 4)
                    .collect();
                let scales = 0..0x7f_u8;
                let values = scales
                    .clone()
                    .flat_map(|scale| (0..COLS as u8).map(move |code| e2m1(code) * e4m3(scale) * MULTIPLIER));
                let values = values.collect();
                let mut section = multiplier;
                section.resize(PART_ALIGN as usize, 0);
                section.extend(scales.clone());
                (row.repeat(scales.len()), section, values)
            }
        };
        Self {
            format,
            codes,
            scales,
            values,
        }
    }

    fn matrix<D: Backend>(&self, backend: &mut D) -> Result<Matrix<D::Buffer>, OpError> {
        let rows = (self.values.len() / COLS) as u32;
        let mut upload = |bytes: &[u8]| {
            let mut words = bytes.to_vec();
            words.resize(bytes.len().next_multiple_of(4), 0);
            let buffer = backend.alloc("every code", words.len() as u64)?;
            backend.write(&buffer, 0, &words).map(|()| buffer)
        };
        let part = MatrixPart {
            rows: 0..rows,
            buffer: upload(&self.codes)?,
            offset: 0,
        };
        let scales = match self.scales.is_empty() {
            true => None,
            false => Some(Scales {
                buffer: upload(&self.scales)?,
                offset: 0,
            }),
        };
        Matrix::new(rows, COLS_ALIGN, self.format, vec![part], scales)
    }

    /// The first column of a tile, its rows of activations, and what came out: one row for each.
    fn compare(&self, first: usize, tile: usize, found: &[f32]) -> Result<(), String> {
        let rows = self.values.len() / COLS;
        for (place, &found) in found.iter().take(tile * rows).enumerate() {
            let (column, row) = (first + place / rows, place % rows);
            let expected = self.values[row * COLS + column];
            if found != expected {
                return Err(format!(
                    "it decodes {} weights wrongly: {found:e} where {expected:e} is right, row {row} column {column} of \
                     all codes with {tile} rows of activations",
                    self.format
                ));
            }
        }
        Ok(())
    }

    fn check<D: Backend>(&self, backend: &mut D, deadline: Instant) -> Result<(), OpError> {
        let matrix = self.matrix(backend)?;
        let mut outputs = Vec::new();
        for rows in TILES {
            let tile = rows.total() as usize;
            for first in (0..COLS).step_by(tile) {
                // Each row of activations has a one in the column that it asks for.
                let mut ones = vec![0.0_f32; tile * COLS];
                (0..tile).for_each(|row| ones[row * COLS + first + row] = 1.0);
                let input = backend.alloc("ones", (4 * ones.len()) as u64)?;
                backend.write(&input, 0, bytemuck::cast_slice(&ones))?;
                let bytes = tile as u64 * u64::from(matrix.rows()) * 4;
                let output = backend.alloc("values", bytes)?;
                let op = Linear {
                    input: &input,
                    weight: &matrix,
                    output: &output,
                    add: false,
                    rows,
                };
                backend.linear(&op)?;
                let range = ReadRange {
                    buffer: output,
                    offset: 0,
                    bytes,
                };
                outputs.push((first, tile, range));
            }
        }
        let ranges: Vec<_> = outputs.iter().map(|(_, _, range)| range.clone()).collect();
        let read = backend.read(&ranges, deadline)?;
        for ((first, tile, _), bytes) in outputs.iter().zip(read) {
            let found: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
            self.compare(*first, *tile, &found)
                .map_err(|problem| OpError::Wrong {
                    device: backend.info().name.clone(),
                    problem,
                })?;
        }
        Ok(())
    }
}

/// Refuses a device that decodes one of these formats wrongly.
pub(super) fn check<D: Backend>(
    backend: &mut D,
    formats: impl IntoIterator<Item = WeightFormat>,
    deadline: Instant,
) -> Result<(), OpError> {
    formats
        .into_iter()
        .try_for_each(|format| Codes::of(format).check(backend, deadline))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use tramontane_kernels::gpu;
    use tramontane_kernels::gpu::DeviceConfig;
    use tramontane_kernels::reference::CpuBackend;

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn device() -> DeviceConfig {
        DeviceConfig {
            memory_bytes: Some(64 << 20),
            ..DeviceConfig::default()
        }
    }

    #[test]
    fn twins_and_shaders_decode_every_code_to_the_bit() {
        let mut twin = CpuBackend::new(64 << 20, 64 << 20);
        check(&mut twin, WeightFormat::ALL, deadline()).expect("the twins");
        assert_eq!(twin.held_bytes(), 0, "nothing is kept");
        for open in [
            gpu::open,
            gpu::open_with_gpu_kernels,
            gpu::open_with_given_rows_in_f16,
            gpu::open_without_halves,
        ] {
            let mut device = open(&device()).expect("a Vulkan adapter");
            check(&mut device, WeightFormat::ALL, deadline()).expect("the shaders");
            assert_eq!(device.held_bytes(), 0, "nothing is kept");
        }
    }

    #[test]
    fn a_device_that_is_wrong_by_one_bit_of_one_code_is_refused() {
        let mut device = gpu::open(&device()).expect("a Vulkan adapter");
        for format in WeightFormat::ALL {
            let mut codes = Codes::of(format);
            let at = codes.values.len() - 3;
            let right = codes.values[at];
            codes.values[at] = f32::from_bits(right.to_bits() ^ 1);
            let error = codes
                .check(&mut device, deadline())
                .expect_err("one value is another");
            let text = error.to_string();
            let expected = format!("it decodes {format} weights wrongly: {right:e} where");
            assert!(text.contains(&expected), "{text}");
        }
    }
}
