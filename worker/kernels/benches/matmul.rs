//! Times of matrices on the best Vulkan adapter, at the widths of Mistral Large 3: a linear layer, and the routed experts of
//! a layer, of which there are eight.
//!
//! `cargo bench --profile release -p tramontane-kernels --bench matmul` prints, per format and number of rows, the least and
//! the median time of a call, the weights that it reads once in GB/s, and GFLOP/s; first, what a copy by two threads of the
//! host moves, which bounds an emulated device.

use std::error::Error;
use std::time::{Duration, Instant};

use tramontane_kernels::gpu::{self, DeviceConfig, GpuBackend, GpuBuffer};
use tramontane_kernels::ops::{
    Backend, BankPart, ExpertBank, ExpertLayout, ExpertScratch, Experts, Linear, Matrix, MatrixPart, OpError,
    Rows, Scales, WeightFormat, split_rows,
};
use tramontane_model::footprint::expert_plan_words;

const DIM: u32 = 7168;
const HIDDEN: u32 = 4096;
/// Columns of the output of attention: 128 heads of 128.
const ATTENDED: u32 = 16384;
const EXPERTS: u32 = 8;
const TOP_K: u32 = 4;
const FORMATS: [WeightFormat; 3] = [WeightFormat::Fp8Block, WeightFormat::Nvfp4, WeightFormat::Bf16];
const ROWS: [u32; 5] = [1, 4, 8, 64, 128];
/// Time that a shape takes about, however often it is called.
const BUDGET: Duration = Duration::from_millis(1000);

/// Codes and scales whose values are finite in every format.
fn pattern() -> Vec<u32> {
    let mut state = 1_u32;
    let words = (0..1 << 18).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state ^ (state >> 13)) & 0x3f3f_3f3f
    });
    words.collect()
}

fn filled(device: &mut GpuBackend, bytes: u64, pattern: &[u32]) -> Result<GpuBuffer, OpError> {
    let buffer = device.alloc_weights("bench", bytes)?;
    let piece: &[u8] = bytemuck::cast_slice(pattern);
    for start in (0..bytes).step_by(piece.len()) {
        let length = usize::try_from(bytes - start)
            .unwrap_or(usize::MAX)
            .min(piece.len());
        device.write(&buffer, start, &piece[..length / 4 * 4])?;
    }
    Ok(buffer)
}

fn rows_of(rows: u32) -> Rows {
    match rows {
        0..=64 => Rows::new(rows, 0),
        _ => Rows::new(0, rows),
    }
}

/// Calls `record` and waits, again and again; prints what a call takes.
fn measure(
    device: &mut GpuBackend,
    name: &str,
    (bytes, flops): (u64, u64),
    mut record: impl FnMut(&mut GpuBackend) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let (mut times, started) = (Vec::new(), Instant::now());
    while times.len() < 3 || started.elapsed() < BUDGET && times.len() < 50 {
        let before = Instant::now();
        record(device)?;
        device.read(&[], before + Duration::from_secs(60))?;
        times.push(before.elapsed());
    }
    times.sort();
    let per_second = |amount: u64| amount as f64 / times[0].as_secs_f64() / 1e9;
    println!(
        "{name}: least {:.2?}, median {:.2?}, {:.2} GB/s, {:.1} GFLOP/s",
        times[0],
        times[times.len() / 2],
        per_second(bytes),
        per_second(flops)
    );
    Ok(())
}

fn linear(device: &mut GpuBackend, format: WeightFormat, pattern: &[u32]) -> Result<(), OpError> {
    let bytes = format.row_bytes(ATTENDED) * u64::from(DIM);
    let limit = device.max_binding_bytes();
    let parts = split_rows(DIM, format.row_bytes(ATTENDED), 1, limit)?;
    let parts = parts
        .into_iter()
        .map(|rows| {
            let bytes = format.row_bytes(ATTENDED) * u64::from(rows.end - rows.start);
            let buffer = filled(device, bytes, pattern)?;
            Ok(MatrixPart {
                rows,
                buffer,
                offset: 0,
            })
        })
        .collect::<Result<Vec<_>, OpError>>()?;
    let scales = match format.scale_bytes(DIM, ATTENDED) {
        0 => None,
        bytes => Some(Scales {
            buffer: filled(device, bytes, pattern)?,
            offset: 0,
        }),
    };
    let weight = Matrix::new(DIM, ATTENDED, format, parts, scales)?;
    for rows in ROWS {
        let input = filled(device, u64::from(rows * ATTENDED) * 4, pattern)?;
        let output = device.alloc("bench", u64::from(rows * DIM) * 4)?;
        let op = Linear {
            input: &input,
            weight: &weight,
            output: &output,
            add: false,
            rows: rows_of(rows),
        };
        let flops = 2 * u64::from(rows) * u64::from(DIM) * u64::from(ATTENDED);
        let name = format!("linear {DIM} x {ATTENDED}, {format}, {rows} rows");
        measure(device, &name, (bytes, flops), |device| device.linear(&op))?;
    }
    Ok(())
}

fn experts(device: &mut GpuBackend, format: WeightFormat, pattern: &[u32]) -> Result<(), OpError> {
    let layout = ExpertLayout::new(DIM, HIDDEN, (format, format))?;
    let parts = layout.split(0..EXPERTS, device.max_binding_bytes())?;
    let parts = parts
        .into_iter()
        .map(|experts| {
            let bytes = layout.bytes * u64::from(experts.end - experts.start);
            let buffer = filled(device, bytes, pattern)?;
            Ok(BankPart {
                experts,
                buffer,
                offset: 0,
            })
        })
        .collect::<Result<Vec<_>, OpError>>()?;
    let bank = ExpertBank::new(layout, 0..EXPERTS, parts)?;
    for rows in ROWS {
        let pairs = rows * TOP_K;
        let input = filled(device, u64::from(rows * DIM) * 4, pattern)?;
        // Neighbouring experts, so that all have alike many rows.
        let ids: Vec<u32> = (0..pairs).map(|pair| pair % EXPERTS).collect();
        let id_buffer = device.alloc("bench", u64::from(pairs) * 4)?;
        device.write(&id_buffer, 0, bytemuck::cast_slice(&ids))?;
        let output = device.alloc("bench", u64::from(pairs * DIM) * 4)?;
        let plan = expert_plan_words(pairs.into(), EXPERTS.into()) * 4;
        let scratch = ExpertScratch {
            plan: device.alloc("bench", plan)?,
            hidden: device.alloc("bench", u64::from(pairs * HIDDEN) * 4)?,
        };
        let op = Experts {
            input: &input,
            ids: &id_buffer,
            top_k: TOP_K,
            bank: &bank,
            scratch: &scratch,
            output: &output,
            rows: rows_of(rows),
        };
        let active = u64::from(pairs.min(EXPERTS));
        let flops = 2 * 3 * u64::from(pairs) * u64::from(DIM) * u64::from(HIDDEN);
        let name = format!("{EXPERTS} experts of {HIDDEN} x {DIM}, {TOP_K} a row, {format}, {rows} rows");
        measure(device, &name, (active * layout.bytes, flops), |device| {
            device.experts(&op)
        })?;
    }
    Ok(())
}

/// Bytes copied in a second by two threads, in GB.
fn host_copy() -> f64 {
    const BYTES: usize = 1 << 30;
    let from = vec![1_u8; BYTES];
    let mut to = vec![2_u8; BYTES];
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for (to, from) in to.chunks_mut(BYTES / 2).zip(from.chunks(BYTES / 2)) {
                scope.spawn(|| to.copy_from_slice(from));
            }
        });
        best = best.min(started.elapsed());
    }
    BYTES as f64 / best.as_secs_f64() / 1e9
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("a copy by two threads: {:.1} GB/s", host_copy());
    let mut device = match std::env::var_os("GPU_KERNELS") {
        Some(_) => gpu::open_with_gpu_kernels(&DeviceConfig::default())?,
        None => gpu::open(&DeviceConfig::default())?,
    };
    println!("{}", device.info().kind);
    let pattern = pattern();
    for format in FORMATS {
        linear(&mut device, format, &pattern)?;
        // A device whose bindings are smaller than an expert has none.
        if let Err(error) = experts(&mut device, format, &pattern) {
            println!("experts, {format}: {error}");
        }
    }
    Ok(())
}
