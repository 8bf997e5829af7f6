//! Times of attention on the best Vulkan adapter: decode and prefill, at the widths of Mistral Large 3, of the miniature
//! and of Ministral 3.
//!
//! `cargo bench --profile release -p tramontane-kernels` prints the least and the median time of a call per shape, with a
//! cache of f32 and with one of f16, and the ratio of the least.

use std::error::Error;
use std::time::{Duration, Instant};

use half::f16;
use half::slice::HalfFloatSliceExt;
use tramontane_kernels::gpu::{self, DeviceConfig, GpuBackend};
use tramontane_kernels::ops::{Attention, Backend, KvCache, KvCacheShape, ReadRange, RowMeta, Rows};
use tramontane_model::placement::KvFormat;

const BLOCK_TOKENS: u32 = 16;
/// Time that a shape takes about, however often it is called.
const BUDGET: Duration = Duration::from_millis(1500);

/// Rows at these positions, each of a sequence of its own or all of one.
struct Shape {
    name: &'static str,
    cache: fn(u32, KvFormat) -> KvCacheShape,
    heads: u32,
    rows: u32,
    /// Position of the last row.
    last: u32,
    /// Rows follow each other in one sequence.
    prefill: bool,
}

fn large(blocks: u32, format: KvFormat) -> KvCacheShape {
    KvCacheShape::latent(blocks, BLOCK_TOKENS, 512, 64, format)
}

fn miniature(blocks: u32, format: KvFormat) -> KvCacheShape {
    KvCacheShape::latent(blocks, BLOCK_TOKENS, 64, 16, format)
}

fn ministral(blocks: u32, format: KvFormat) -> KvCacheShape {
    KvCacheShape::grouped(blocks, BLOCK_TOKENS, 8, 128, format)
}

const fn shape(
    name: &'static str,
    cache: fn(u32, KvFormat) -> KvCacheShape,
    heads: u32,
    rows: u32,
    last: u32,
    prefill: bool,
) -> Shape {
    Shape {
        name,
        cache,
        heads,
        rows,
        last,
        prefill,
    }
}

const SHAPES: [Shape; 13] = [
    shape("large decode 1 x 100", large, 128, 1, 99, false),
    shape("large decode 1 x 1k", large, 128, 1, 1023, false),
    shape("large decode 1 x 4k", large, 128, 1, 4095, false),
    shape("large decode 8 x 1k", large, 128, 8, 1023, false),
    shape("large prefill 64 to 512", large, 128, 64, 511, true),
    shape("miniature decode 1 x 100", miniature, 8, 1, 99, false),
    shape("miniature decode 1 x 3k", miniature, 8, 1, 2999, false),
    shape("miniature decode 32 x 100", miniature, 8, 32, 99, false),
    shape("miniature decode 32 x 600", miniature, 8, 32, 599, false),
    shape("miniature prefill 256 to 256", miniature, 8, 256, 255, true),
    shape("miniature prefill 256 to 1k", miniature, 8, 256, 1023, true),
    shape("ministral decode 1 x 1k", ministral, 32, 1, 1023, false),
    shape("ministral prefill 64 to 512", ministral, 32, 64, 511, true),
];

/// Least and median time of a call.
fn measure(
    device: &mut GpuBackend,
    shape: &Shape,
    format: KvFormat,
) -> Result<(Duration, Duration), Box<dyn Error>> {
    let width = shape.last / BLOCK_TOKENS + 1;
    let tables = if shape.prefill { 1 } else { shape.rows };
    let cache = (shape.cache)(tables * width, format);
    let words = |count: u32| -> Vec<f32> { (0..count).map(|i| (i as f32 * 0.37).sin()).collect() };
    let mut filled = |data: &[u8]| -> Result<_, Box<dyn Error>> {
        let buffer = device.alloc("bench", data.len() as u64)?;
        device.write(&buffer, 0, data)?;
        Ok(buffer)
    };
    let values = words(u32::try_from(cache.bytes() / format.value_bytes())?);
    let halves: Vec<f16> = values.iter().copied().map(f16::from_f32).collect();
    let values = match format {
        KvFormat::F32 => filled(bytemuck::cast_slice(&values))?,
        KvFormat::F16 => filled(bytemuck::cast_slice(halves.reinterpret_cast()))?,
    };
    let kv = KvCache::new(cache, values)?;
    let queries = filled(bytemuck::cast_slice(&words(shape.rows * shape.heads * cache.key)))?;
    let output = filled(bytemuck::cast_slice(&words(
        shape.rows * shape.heads * cache.value,
    )))?;
    let meta: Vec<RowMeta> = (0..shape.rows)
        .map(|row| RowMeta {
            position: if shape.prefill {
                shape.last + 1 - shape.rows + row
            } else {
                shape.last
            },
            slot: 0,
            table: if shape.prefill { 0 } else { row },
            query_scale: 1.0,
        })
        .collect();
    let meta = filled(bytemuck::cast_slice(&meta))?;
    let blocks: Vec<u32> = (0..tables * width).collect();
    let table = filled(bytemuck::cast_slice(&blocks))?;
    let rows = if shape.prefill {
        Rows::new(0, shape.rows)
    } else {
        Rows::new(shape.rows, 0)
    };
    let partials = filled(&vec![0; 8 << 20])?;
    let (mut times, started) = (Vec::new(), Instant::now());
    while times.len() < 3 || started.elapsed() < BUDGET && times.len() < 50 {
        let before = Instant::now();
        device.attention(&Attention {
            queries: &queries,
            meta: &meta,
            tables: &table,
            table_rows: tables,
            table_width: width,
            cache: &kv,
            heads: shape.heads,
            scale: 0.1,
            partials: &partials,
            output: &output,
            rows,
        })?;
        let range = ReadRange {
            buffer: output.clone(),
            offset: 0,
            bytes: 16,
        };
        device.read(&[range], before + Duration::from_secs(60))?;
        times.push(before.elapsed());
    }
    times.sort();
    Ok((times[0], times[times.len() / 2]))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut device = match std::env::var_os("GPU_KERNELS") {
        Some(_) => gpu::open_with_gpu_kernels(&DeviceConfig::default())?,
        None => gpu::open(&DeviceConfig::default())?,
    };
    println!("{}", device.info().kind);
    for shape in &SHAPES {
        let (least, median) = measure(&mut device, shape, KvFormat::F32)?;
        let (least_f16, median_f16) = measure(&mut device, shape, KvFormat::F16)?;
        let ratio = least_f16.as_secs_f64() / least.as_secs_f64();
        println!(
            "{}: least {least:.2?}, median {median:.2?}; in f16 {least_f16:.2?}, {median_f16:.2?}: {ratio:.2}",
            shape.name
        );
    }
    Ok(())
}
