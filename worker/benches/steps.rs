//! Times of whole steps on the best Vulkan adapter: decode of some batch sizes, prefill.
//!
//! `cargo bench --profile release -p tramontane-worker --bench steps [-- MODEL]` prints one line per shape, of the miniature
//! model unless another is named: the least and the median time, and the processor time, which tells more about an emulated
//! GPU on a machine that others use too.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tramontane_kernels::gpu::DeviceConfig;
use tramontane_kernels::gpu::{self, GpuBackend};
use tramontane_kernels::ops::Backend;
use tramontane_model::ids::{
    DeviceIndex, DeviceRef, Fence, Generation, Origin, ReplicaId, SequenceId, StepId, WorkerId,
};
use tramontane_model::placement::{ExpertGroup, ExpertRange, KvFormat, KvShape, LayerRange, Replica, Stage};
use tramontane_model::sampling::SamplingParams;
use tramontane_model::step::{Opening, RowRole, SequenceChunk, StepBatch, StepBounds};
use tramontane_worker::executor::{AllExpertsHere, Executor, ExecutorOptions, StageInput};
use tramontane_worker::weights::{DeviceSlices, LoadProgress, LoadWatch, ModelFiles};

const BLOCK_TOKENS: u32 = 16;
const BLOCKS_PER_SEQUENCE: u32 = 16;
const SEQUENCES: u32 = 32;
const REPEATS: usize = 15;
/// No step is repeated for longer.
const LONGEST: Duration = Duration::from_secs(10);

fn replica(layers: u32, experts: u32) -> Result<(Replica, DeviceRef), Box<dyn Error>> {
    let device = DeviceRef {
        worker: WorkerId::new("bench")?,
        device: DeviceIndex(0),
    };
    let groups = vec![ExpertGroup {
        experts: ExpertRange::new(0, experts).ok_or("no experts")?,
        holder: device.clone(),
    }];
    let replica = Replica {
        id: ReplicaId(1),
        generation: Generation(1),
        stages: vec![Stage {
            layers: LayerRange::new(0, layers).ok_or("no layers")?,
            owner: device.clone(),
            groups,
        }],
        kv: KvShape {
            block_tokens: BLOCK_TOKENS,
            blocks: SEQUENCES * BLOCKS_PER_SEQUENCE,
            format: KvFormat::F32,
        },
        steps: StepBounds {
            max_sequences: 64,
            ..StepBounds::default()
        },
    };
    Ok((replica, device))
}

/// `rows` rows for each of the first sequences, from `position` on.
fn batch(fence: Fence, sequences: u32, rows: u32, position: u32, role: RowRole) -> StepBatch {
    let chunk = |sequence: u32| SequenceChunk {
        sequence: SequenceId(sequence.into()),
        open: Some(Opening::new(Origin::NOBODY, &SamplingParams::GREEDY, &[], 0, 0)),
        first_position: position,
        tokens: (0..rows).map(|row| 100 + 37 * sequence + row).collect(),
        role,
        sample: true,
        scored: vec![],
        block_table: (0..BLOCKS_PER_SEQUENCE)
            .map(|block| sequence * BLOCKS_PER_SEQUENCE + block)
            .collect(),
    };
    StepBatch {
        fence,
        step: StepId(1),
        chunks: (0..sequences).map(chunk).collect(),
        closed: Vec::new(),
    }
}

fn measure(executor: &mut Executor<GpuBackend>, name: &str, batch: &StepBatch) -> Result<(), Box<dyn Error>> {
    let mut times = Vec::with_capacity(REPEATS);
    let (before, first) = (processor_time(), Instant::now());
    while times.len() < REPEATS && (times.is_empty() || first.elapsed() < LONGEST) {
        let started = Instant::now();
        executor.run(
            batch,
            StageInput::Embed,
            &mut AllExpertsHere,
            started + Duration::from_secs(60),
        )?;
        times.push(started.elapsed());
    }
    times.sort();
    let used = processor_time().saturating_sub(before) / times.len() as u32;
    let (least, median) = (times[0], times[times.len() / 2]);
    println!("{name}: least {least:.1?}, median {median:.1?}, processor {used:.1?}");
    Ok(())
}

/// What all threads of this process have used, from `/proc/self/stat`; nothing where there is none.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The fields after the name, which ends with the last parenthesis: user and system time, in hundredths of a second.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    Duration::from_millis(10 * ticks)
}

fn main() -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let backend = gpu::open(&DeviceConfig::default())?;
    println!("{}: opened in {:.1?}", backend.info().kind, started.elapsed());
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/mini-large-3");
    let named = std::env::args_os().skip(1).find(|argument| argument != "--bench");
    let dir = named.map_or(small, PathBuf::from);
    let model = Arc::new(ModelFiles::open(&dir)?);
    let spec = model.spec.clone();
    let experts = spec.moe_at(spec.n_layers - 1).map_or(1, |moe| moe.n_experts);
    let (replica, device) = replica(spec.n_layers, experts)?;
    let options = ExecutorOptions {
        timeout: Duration::from_secs(60),
    };
    let mut executor = Executor::new(backend, model, options);
    let slices = DeviceSlices::of(&replica, &device, &spec).ok_or("no slices")?;
    let (progress, started) = (LoadProgress::default(), Instant::now());
    let watch = LoadWatch {
        progress: &progress,
        cancelled: &|| false,
    };
    let fence = replica.fence();
    executor.load(fence, &slices, &watch)?;
    println!(
        "loaded {} bytes in {:.1?}",
        progress.loaded_bytes(),
        started.elapsed()
    );
    for rows in [1, 2, 4, 8, 16, 32] {
        let step = batch(fence, rows, 1, 100, RowRole::Generated);
        measure(
            &mut executor,
            &format!("decode, {rows} rows at position 100"),
            &step,
        )?;
    }
    for rows in [16, 128, 250] {
        let step = batch(fence, 1, rows, 0, RowRole::Given);
        measure(&mut executor, &format!("prefill, {rows} rows"), &step)?;
    }
    Ok(())
}
