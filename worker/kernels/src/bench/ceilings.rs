//! What a device can do at most: a copy, and the best plain product of matrices.

use std::time::Instant;

use super::clock::{Record, Stopwatch};
use super::probe::Probe;
use crate::figures::Ceilings;
use crate::gpu::{GpuBackend, GpuBuffer, PLAIN_TILES};
use crate::ops::{Backend, Linear, Matrix, MatrixPart, OpError, Rows, WeightFormat};

/// Bytes of the copy at most.
const COPY_BYTES: u64 = 1 << 30;
/// Bytes that threads of the host copy.
const HOST_BYTES: usize = 256 << 20;
/// Bytes that go through the device's caches between calls, where it is a GPU and where it is a processor.
const FLUSH_BYTES: (u64, u64) = (128 << 20, 32 << 20);
const REPEATS: u32 = 5;
/// Rows and columns of the products that are tried.
const SIZES: [u32; 5] = [256, 512, 1024, 2048, 4096];
/// A product that takes so long is large enough.
const ENOUGH_S: f64 = 0.1;
/// A product that takes so many times as long as the quickest is not tried on.
const FAR: f64 = 2.0;

/// Two buffers that are copied between calls, so that no call finds its operands in the device's caches.
#[derive(Clone, Debug)]
pub(super) struct Flush {
    from: GpuBuffer,
    to: GpuBuffer,
}

impl Flush {
    pub(super) fn new(device: &mut Probe<GpuBackend>) -> Result<Self, OpError> {
        let wanted = if device.info().is_cpu {
            FLUSH_BYTES.1
        } else {
            FLUSH_BYTES.0
        };
        let bytes = wanted.min(device.info().memory_bytes / 32).max(16);
        Ok(Self {
            from: device.alloc("copied from", bytes)?,
            to: device.alloc("copied to", bytes)?,
        })
    }

    pub(super) fn record(&self, device: &mut Probe<GpuBackend>) {
        device.inner().copy(&self.from, &self.to, u64::MAX);
    }
}

/// The least of some calls; of one if that takes longer than `beaten`.
fn least(
    watch: &Stopwatch,
    device: &mut Probe<GpuBackend>,
    beaten: f64,
    work: &mut Record<'_>,
) -> Result<f64, OpError> {
    let mut least = f64::INFINITY;
    // The first one compiles.
    work(device)?;
    for _ in 0..REPEATS {
        least = least.min(watch.time(device, &mut |_| Ok(()), work)?);
        if least > beaten {
            break;
        }
    }
    Ok(least)
}

/// Measures both.
pub(super) fn measure(device: &mut Probe<GpuBackend>, watch: &Stopwatch) -> Result<Ceilings, OpError> {
    let (copy_bytes_per_s, copy_by) = copy(device, watch)?;
    let (product_flops_per_s, product_by) = product(device, watch)?;
    Ok(Ceilings {
        copy_bytes_per_s,
        copy_by,
        product_flops_per_s,
        product_by,
    })
}

fn copy(device: &mut Probe<GpuBackend>, watch: &Stopwatch) -> Result<(f64, String), OpError> {
    let limit = device.max_binding_bytes().min(device.info().memory_bytes / 8);
    let bytes = COPY_BYTES.min(limit) / 16 * 16;
    let (from, to) = (
        device.alloc("copied from", bytes)?,
        device.alloc("copied to", bytes)?,
    );
    let seconds = least(watch, device, f64::INFINITY, &mut |device| {
        device.inner().copy(&from, &to, bytes);
        Ok(())
    })?;
    let by_device = (
        2.0 * bytes as f64 / seconds,
        format!("a copy of {} MiB on the device", bytes >> 20),
    );
    if !device.info().is_cpu {
        return Ok(by_device);
    }
    // A driver copies with one thread, and computes with all.
    let by_host = host_copy();
    Ok(if by_host.0 > by_device.0 {
        by_host
    } else {
        by_device
    })
}

/// Bytes read and written in a second by all processors.
fn host_copy() -> (f64, String) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let from = vec![1_u8; HOST_BYTES];
    let mut to = vec![2_u8; HOST_BYTES];
    let part = HOST_BYTES.div_ceil(threads);
    let mut least = f64::INFINITY;
    for _ in 0..REPEATS {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for (to, from) in to.chunks_mut(part).zip(from.chunks(part)) {
                scope.spawn(|| to.copy_from_slice(from));
            }
        });
        least = least.min(started.elapsed().as_secs_f64());
    }
    let by = format!(
        "a copy of {} MiB by {threads} threads of the host",
        HOST_BYTES >> 20
    );
    (2.0 * HOST_BYTES as f64 / least, by)
}

fn product(device: &mut Probe<GpuBackend>, watch: &Stopwatch) -> Result<(f64, String), OpError> {
    let mut best = (0.0, String::new());
    let mut tiles = PLAIN_TILES.to_vec();
    for size in SIZES {
        let operands = 3 * u64::from(size) * u64::from(size) * 4;
        if operands > device.info().memory_bytes / 4 {
            break;
        }
        let flops = 2.0 * f64::from(size).powi(3);
        let mut quickest = linear(device, watch, size)?;
        let mut by = "the bf16 linear layer".to_owned();
        let mut lasting = Vec::new();
        for tile in tiles {
            // What the driver refuses is no ceiling, and what is far behind will not come to the front.
            let Ok(product) = device.inner().plain_product(size, tile) else {
                continue;
            };
            let seconds = least(watch, device, FAR * quickest, &mut |device| {
                device.inner().multiply(&product);
                Ok(())
            })?;
            if seconds < quickest {
                (quickest, by) = (seconds, format!("f32 in tiles of {} x {}", tile.rows, tile.cols));
            }
            if seconds < FAR * quickest {
                lasting.push(tile);
            }
        }
        if flops / quickest > best.0 {
            best = (flops / quickest, format!("{by}, {size} rows and columns"));
        }
        if quickest > ENOUGH_S {
            break;
        }
        tiles = lasting;
    }
    Ok(best)
}

/// Seconds of a linear layer as a prompt's rows go through it.
fn linear(device: &mut Probe<GpuBackend>, watch: &Stopwatch, size: u32) -> Result<f64, OpError> {
    let format = WeightFormat::Bf16;
    let bytes = u64::from(size) * format.row_bytes(size);
    // The bits of ones.
    let block = 0x3f80_3f80_u32.to_le_bytes().repeat(1 << 16);
    let mut filled = |bytes: u64| {
        let buffer = device.alloc("operand", bytes)?;
        for start in (0..bytes).step_by(block.len()) {
            let length = block
                .len()
                .min(usize::try_from(bytes - start).unwrap_or(usize::MAX));
            device.write(&buffer, start, &block[..length])?;
        }
        Ok::<GpuBuffer, OpError>(buffer)
    };
    let part = MatrixPart {
        rows: 0..size,
        buffer: filled(bytes)?,
        offset: 0,
    };
    let (input, output) = (filled(2 * bytes)?, filled(2 * bytes)?);
    let weight = Matrix::new(size, size, format, vec![part], None)?;
    let op = Linear {
        input: &input,
        weight: &weight,
        output: &output,
        add: false,
        rows: Rows::new(0, size),
    };
    let seconds = least(watch, device, f64::INFINITY, &mut |device| device.linear(&op));
    device.take();
    seconds
}
