//! Measures a device's kernels: every op of a model's layers as the executor records it, and whole layers, against what
//! the device can do at most.
//!
//! Weights are random and made on the device. What does not fit, or would take longer than there is time, is told with
//! the reason; nothing is allocated before it is known to fit.

mod cases;
mod ceilings;
mod clock;
mod cost;
mod det_cost;
mod ends;
mod measure;
mod options;
mod probe;
mod report;
mod step;
mod weights;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tramontane_model::placement::KvFormat;
use tramontane_model::spec::{ModelSpec, SpecError};

use crate::figures::{Device, KernelFigures, Model, Part, Role, VERSION};
use crate::gpu::{self, DeviceConfig};
use crate::ops::{Backend, OpError};
use crate::reference::{CpuBackend, CpuBuffer};
use crate::synthetic::{Format, ParamsError};
use ceilings::Flush;
use clock::Stopwatch;
pub use cost::Cost;
use measure::Bench;
pub use options::{CacheFormat, Counts, Options, Source};
pub use probe::{Probe, Recorded};
use report::Table;
use step::{Layers, Step};
use weights::Maker;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// An option that cannot be.
    #[error("{0}")]
    Option(String),
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Parameters that cannot be changed as was asked.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// A model that is not served.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] OpError),
    /// The table cannot be written.
    #[error("the table cannot be written: {0}")]
    Output(#[from] std::io::Error),
}

/// What ops of a step see that their operands do not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Tokens in the cache that attention reads, over all sequences.
    pub cached_tokens: u64,
    /// Tokens that each row attends to, over all rows.
    pub row_tokens: u64,
    /// Different experts that the rows chose.
    pub experts: u32,
}

/// Rows and what they follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    role: Role,
    rows: u32,
    /// Tokens of each sequence, the last row included.
    context: u32,
    /// How the cache stores its values.
    cached: KvFormat,
}

/// How much time there is.
#[derive(Clone, Copy, Debug)]
struct Budget {
    started: Instant,
    limit: Duration,
}

impl Budget {
    fn left_s(&self) -> f64 {
        self.limit.saturating_sub(self.started.elapsed()).as_secs_f64()
    }
}

/// What is recorded of a whole layer of a kind, for so many generated rows: nothing is computed, on no device.
pub fn ops_of_layer(
    spec: &ModelSpec,
    part: Part,
    rows: u32,
    context: u32,
) -> Result<Vec<Recorded<CpuBuffer>>, String> {
    let mut device = Probe::new(CpuBackend::new(u64::MAX, u64::MAX));
    let mut maker = Maker::new(&mut device, spec);
    let layers = Layers::new(&mut maker, part, 1)?;
    let role = Role::Generated;
    let case = Case {
        role,
        rows,
        context,
        cached: KvFormat::F32,
    };
    let step = Step::new(&mut maker, &layers, case)?;
    let listed = device.list(step.seen, |device| layers.record(device, spec, &step, 0));
    listed.map_err(|error| error.to_string())
}

/// Measures, tells `out` what it finds as it goes, and writes the file that was asked for.
pub fn run(options: &Options, out: &mut dyn Write) -> Result<KernelFigures, BenchError> {
    let to_stdout = options.json.as_deref() == Some(Path::new("-"));
    let figures = match to_stdout {
        true => measured(options, &mut std::io::sink())?,
        false => measured(options, out)?,
    };
    let text = |figures| serde_json::to_string_pretty(figures).map_err(std::io::Error::from);
    match &options.json {
        None => {}
        Some(_) if to_stdout => writeln!(out, "{}", text(&figures)?)?,
        Some(path) => {
            let written = text(&figures).and_then(|text| std::fs::write(path, text + "\n"));
            written.map_err(|source| BenchError::File {
                path: path.clone(),
                source,
            })?;
        }
    }
    Ok(figures)
}

fn measured(options: &Options, out: &mut dyn Write) -> Result<KernelFigures, BenchError> {
    let started = Instant::now();
    let budget = Budget {
        started,
        limit: Duration::from_secs(options.budget),
    };
    let spec = options.model()?;
    let config = DeviceConfig {
        adapter: options.adapter.clone(),
        memory_bytes: options.memory_bytes,
        cooperative_matrix: None,
    };
    let opened = match options.gpu_kernels {
        true => gpu::open_with_gpu_kernels(&config)?,
        false => gpu::open(&config)?,
    };
    let mut device = Probe::new(opened);
    let flush = Flush::new(&mut device)?;
    let watch = Stopwatch::new(&mut device, &mut |device| {
        flush.record(device);
        Ok(())
    })?;
    let ceilings = ceilings::measure(&mut device, &watch)?;
    let info = device.info();
    let figures = KernelFigures {
        version: VERSION,
        device: Device {
            name: info.name.clone(),
            driver: info.driver.clone(),
            kind: info.kind.clone(),
            is_cpu: info.is_cpu,
            memory_bytes: info.memory_bytes,
        },
        model: described(options, &spec, info.is_cpu),
        clock: watch.clock(),
        ceilings,
        lines: Vec::new(),
        missing: Vec::new(),
        run_seconds: 0.0,
    };
    let mut table = Table::new(out);
    table.begin(&figures, &watch.finding)?;
    let mut bench = Bench::new(options, &spec, device, (watch, flush, budget), figures, table);
    for part in [Part::MoeLayer, Part::DenseLayer, Part::Ends] {
        match part {
            _ if !options.parts.contains(&part) => {}
            Part::MoeLayer | Part::DenseLayer => bench.layers(part)?,
            Part::Ends => bench.ends()?,
        }
    }
    let mut figures = bench.end()?;
    figures.run_seconds = started.elapsed().as_secs_f64();
    Ok(figures)
}

fn described(options: &Options, spec: &ModelSpec, is_cpu: bool) -> Model {
    Model {
        shape: options.shape.name(),
        format: Format::of(spec.quantization).name().to_owned(),
        experts: spec.n_experts(),
        experts_per_row: spec.moe.as_ref().map_or(0, |moe| moe.n_experts_per_token),
        layers: options.layers,
        cache_format: options.cached(is_cpu).name().to_owned(),
    }
}
