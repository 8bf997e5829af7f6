//! One device for all tests of ops, test data, and the comparison that every op goes through.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use half::f16;
use tramontane_kernels::gpu::DeviceConfig;
use tramontane_kernels::gpu::{self, GpuBackend};
use tramontane_kernels::ops::{
    Backend, BankPart, DeviceBuffer, ExpertBank, ExpertLayout, Matrix, MatrixPart, PART_ALIGN, ReadRange,
    Rows, Scales, Vector, WeightFormat,
};
use tramontane_kernels::reference::CpuBackend;
use tramontane_model::placement::KvFormat;

/// Bytes before everything that may start at an offset: a multiple of 32, and of nothing larger.
const PADDING: u64 = 96;

fn config(memory_bytes: u64) -> DeviceConfig {
    DeviceConfig {
        memory_bytes: Some(memory_bytes),
        ..DeviceConfig::default()
    }
}

pub(crate) fn open(memory_bytes: u64) -> GpuBackend {
    gpu::open(&config(memory_bytes)).expect("a Vulkan adapter")
}

/// The device that the tests of ops share.
pub(crate) fn device() -> MutexGuard<'static, GpuBackend> {
    static DEVICE: OnceLock<Mutex<GpuBackend>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| Mutex::new(open(1 << 30)));
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same adapter with the kernels of real GPUs.
pub(super) fn device_with_gpu_kernels() -> MutexGuard<'static, GpuBackend> {
    static DEVICE: OnceLock<Mutex<GpuBackend>> = OnceLock::new();
    let device = DEVICE
        .get_or_init(|| Mutex::new(gpu::open_with_gpu_kernels(&config(1 << 30)).expect("a Vulkan adapter")));
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same with given rows rounded to f16, as cooperative matrices need them.
pub(super) fn device_with_given_rows_in_f16() -> MutexGuard<'static, GpuBackend> {
    static DEVICE: OnceLock<Mutex<GpuBackend>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| {
        Mutex::new(gpu::open_with_given_rows_in_f16(&config(1 << 30)).expect("a Vulkan adapter"))
    });
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a test on the device with its own kernels, and again with those of real GPUs where its own are others.
pub(crate) fn on_every_kernel(mut test: impl FnMut(&mut GpuBackend)) {
    let own = {
        let mut device = device();
        test(&mut device);
        device.info().kind.clone()
    };
    let mut other = device_with_gpu_kernels();
    if other.info().kind != own {
        test(&mut other);
    }
}

pub(crate) fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// In [-1, 1).
    pub(crate) fn float(&mut self) -> f32 {
        self.bits() as f32 / (1u32 << 30) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    /// `rows` rows of `width` values.
    pub(crate) fn rows(&mut self, rows: usize, width: usize) -> Vec<Vec<f32>> {
        (0..rows).map(|_| self.floats(width)).collect()
    }

    pub(crate) fn bf16s(&mut self, count: usize) -> Vec<u8> {
        let codes = (0..count).map(|_| (self.float().to_bits() >> 16) as u16);
        codes.flat_map(u16::to_le_bytes).collect()
    }
}

/// Values as the words of a cache.
pub(crate) fn stored(values: &[f32], format: KvFormat) -> Vec<u32> {
    let half = |&value: &f32| u32::from(f16::from_f32(value).to_bits());
    match format {
        KvFormat::F32 => values.iter().map(|value| value.to_bits()).collect(),
        KvFormat::F16 => {
            let pairs = values.chunks_exact(2);
            pairs.map(|pair| half(&pair[0]) | half(&pair[1]) << 16).collect()
        }
    }
}

/// The values of a cache's words, as bits of f32.
pub(crate) fn cached(words: &[u32], format: KvFormat) -> Vec<u32> {
    let value = |half: u32| f16::from_bits(half as u16).to_f32().to_bits();
    match format {
        KvFormat::F32 => words.to_vec(),
        KvFormat::F16 => {
            let pairs = words.iter().flat_map(|&word| [value(word), value(word >> 16)]);
            pairs.collect()
        }
    }
}

/// A matrix's bytes, before they are anywhere.
pub(crate) struct Weights {
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    pub(crate) format: WeightFormat,
    pub(crate) bytes: Vec<u8>,
    /// The section of scales, as on the device.
    pub(crate) scales: Vec<u8>,
}

impl Weights {
    pub(crate) fn new(numbers: &mut Numbers, rows: u32, cols: u32, format: WeightFormat) -> Self {
        let count = rows as usize * cols as usize;
        let bytes = match format {
            WeightFormat::Bf16 => numbers.bf16s(count),
            // Every code but those of NaN, subnormals among them.
            WeightFormat::Fp8Block | WeightFormat::Fp8Tensor => (0..count)
                .map(|_| numbers.bits() as u8)
                .map(|code| if code & 0x7f == 0x7f { code ^ 1 } else { code })
                .collect(),
            WeightFormat::Nvfp4 => (0..count / 2).map(|_| numbers.bits() as u8).collect(),
        };
        let scale_bytes = format.scale_bytes(rows, cols) as usize;
        let mut multipliers = |count: usize| -> Vec<u8> {
            let scales = (0..count).map(|_| 0.002 + 0.001 * numbers.float());
            scales.flat_map(f32::to_le_bytes).collect()
        };
        let scales = match format {
            WeightFormat::Bf16 | WeightFormat::Fp8Block | WeightFormat::Fp8Tensor => {
                multipliers(scale_bytes / 4)
            }
            WeightFormat::Nvfp4 => {
                let mut section = multipliers(1);
                section.resize(PART_ALIGN as usize, 0);
                // Zero, subnormals, and numbers up to 30.
                section.extend((section.len()..scale_bytes).map(|_| numbers.bits() as u8 % 0x60));
                section
            }
        };
        Self {
            rows,
            cols,
            format,
            bytes,
            scales,
        }
    }
}

/// The first half of the rows generated, the others given: of ops that have one kernel for both.
pub(crate) fn roles(count: usize) -> Rows {
    let count = count as u32;
    Rows::new(count / 2, count - count / 2)
}

/// Shorthands over a backend.
pub(crate) struct Rig<'a, B: Backend>(pub(crate) &'a mut B);

impl<B: Backend> Rig<'_, B> {
    pub(crate) fn bytes(&mut self, bytes: &[u8], padding: u64) -> B::Buffer {
        let buffer = self.0.alloc("test", padding + bytes.len() as u64).expect("room");
        let mut words = bytes.to_vec();
        words.resize(bytes.len().next_multiple_of(4), 0);
        self.0.write(&buffer, padding, &words).expect("fits");
        buffer
    }

    pub(crate) fn words<T: bytemuck::Pod>(&mut self, words: &[T]) -> B::Buffer {
        self.bytes(bytemuck::cast_slice(words), 0)
    }

    /// The rows that `order` names.
    pub(crate) fn picked(&mut self, rows: &[Vec<f32>], order: &[usize]) -> B::Buffer {
        let picked: Vec<f32> = order.iter().flat_map(|&row| rows[row].iter().copied()).collect();
        self.words(&picked)
    }

    pub(crate) fn zeros(&mut self, words: usize) -> B::Buffer {
        self.0.alloc("test", words as u64 * 4).expect("room")
    }

    pub(crate) fn vector(&mut self, bf16s: &[u8]) -> Vector<B::Buffer> {
        let buffer = self.bytes(bf16s, PADDING);
        Vector::new(bf16s.len() as u32 / 2, buffer, PADDING).expect("fits")
    }

    /// A matrix in parts of at most `step` rows.
    pub(crate) fn matrix(&mut self, weights: &Weights, step: u32) -> Matrix<B::Buffer> {
        let row_bytes = weights.format.row_bytes(weights.cols) as usize;
        let starts = (0..weights.rows).step_by(step as usize);
        let parts: Vec<MatrixPart<B::Buffer>> = starts
            .map(|start| {
                let rows = start..start.saturating_add(step).min(weights.rows);
                let bytes = &weights.bytes[rows.start as usize * row_bytes..rows.end as usize * row_bytes];
                MatrixPart {
                    rows,
                    buffer: self.bytes(bytes, PADDING),
                    offset: PADDING,
                }
            })
            .collect();
        let scales = (!weights.scales.is_empty()).then(|| Scales {
            buffer: self.bytes(&weights.scales, PADDING),
            offset: PADDING,
        });
        Matrix::new(weights.rows, weights.cols, weights.format, parts, scales).expect("well formed")
    }

    /// Experts `range` of those whose `[w1, w3, w2]` are given, in parts of at most `step`.
    pub(crate) fn bank(
        &mut self,
        layout: ExpertLayout,
        experts: &[[Weights; 3]],
        range: Range<u32>,
        step: u32,
    ) -> ExpertBank<B::Buffer> {
        let starts = range.clone().step_by(step as usize);
        let parts = starts.map(|start| {
            let ids = start..start.saturating_add(step).min(range.end);
            let mut bytes = vec![0; (layout.bytes * u64::from(ids.end - ids.start)) as usize];
            for (record, id) in bytes.chunks_exact_mut(layout.bytes as usize).zip(ids.clone()) {
                let offsets = [
                    (layout.w1, layout.s1),
                    (layout.w3, layout.s3),
                    (layout.w2, layout.s2),
                ];
                for (weights, (values, scales)) in experts[id as usize].iter().zip(offsets) {
                    record[values as usize..][..weights.bytes.len()].copy_from_slice(&weights.bytes);
                    record[scales as usize..][..weights.scales.len()].copy_from_slice(&weights.scales);
                }
            }
            BankPart {
                experts: ids,
                buffer: self.bytes(&bytes, PADDING),
                offset: PADDING,
            }
        });
        let parts = parts.collect();
        ExpertBank::new(layout, range, parts).expect("well formed")
    }

    pub(crate) fn read(&mut self, buffer: &B::Buffer) -> Vec<u32> {
        let range = ReadRange {
            buffer: buffer.clone(),
            offset: 0,
            bytes: buffer.bytes(),
        };
        let read = self.0.read(&[range], deadline()).expect("runs");
        bytemuck::pod_collect_to_vec(&read[0])
    }

    /// The first `rows` rows of a buffer.
    pub(crate) fn rows(&mut self, buffer: &B::Buffer, rows: usize, width: usize) -> Vec<Vec<u32>> {
        let words = self.read(buffer);
        words.chunks(width).take(rows).map(<[u32]>::to_vec).collect()
    }
}

/// An op on rows of test data.
pub(crate) trait Case {
    /// Rows there are.
    fn rows(&self) -> usize;

    /// Runs the op on the rows that `order` names; gives the bits of each one's output. `split`: weights in parts.
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>, order: &[usize], split: bool) -> Vec<Vec<u32>>;

    /// The first rows that there are, which are generated ones; all others are given. An order begins with generated rows.
    fn generated(&self) -> usize {
        self.rows() / 2
    }

    /// Whether given rows have kernels of their own on GPUs.
    fn has_own_kernels(&self) -> bool {
        false
    }

    /// The roles of the rows that `order` names.
    fn roles(&self, order: &[usize]) -> Rows {
        let generated = order.iter().filter(|&&row| row < self.generated()).count();
        Rows::new(generated as u32, (order.len() - generated) as u32)
    }
}

/// Compares the kernels that given rows have on GPUs with the twin: with sums in f32, and with rows rounded to f16, by which
/// results may differ more. Then with themselves on other rows (DET-1).
pub(crate) fn check_given<C: Case>(name: &str, case: &C, tolerance: f32, rounded: f32) {
    let order: Vec<usize> = (0..case.rows()).collect();
    let mut reference = CpuBackend::new(1 << 30, 1 << 30);
    let expected = case.run(&mut Rig(&mut reference), &order, false);
    compare(name, case, tolerance, &expected, &mut device_with_gpu_kernels());
    compare(
        name,
        case,
        rounded,
        &expected,
        &mut device_with_given_rows_in_f16(),
    );
}

/// Cuts given rows after `cuts` of them, behind the generated ones: what comes out must be the same (DET-1).
pub(crate) fn check_cuts<C: Case>(name: &str, case: &C, cuts: &[usize]) {
    let order: Vec<usize> = (0..case.rows()).collect();
    for mut device in [device_with_gpu_kernels(), device_with_given_rows_in_f16()] {
        let rig = &mut Rig(&mut *device);
        let found = case.run(rig, &order, false);
        for cut in cuts {
            let (first, second) = order.split_at(case.generated() + cut);
            for piece in [first, second] {
                let again = case.run(rig, piece, false);
                let expected = &found[piece[0]..=piece[piece.len() - 1]];
                assert!(again == expected, "{name}: cut after {cut} given rows");
            }
        }
    }
}

/// Compares an op with its twin, and with itself on other rows (DET-1).
pub(crate) fn check<C: Case>(name: &str, case: &C, tolerance: f32) {
    let order: Vec<usize> = (0..case.rows()).collect();
    let mut reference = CpuBackend::new(1 << 30, 1 << 30);
    let expected = case.run(&mut Rig(&mut reference), &order, false);
    on_every_kernel(|device| compare(name, case, tolerance, &expected, device));
}

fn compare<C: Case>(name: &str, case: &C, tolerance: f32, expected: &[Vec<u32>], device: &mut GpuBackend) {
    let name = format!("{}: {name}", device.info().kind);
    let order: Vec<usize> = (0..case.rows()).collect();
    let rig = &mut Rig(device);
    let found = case.run(rig, &order, false);
    for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len(), "{name}: row {row}");
        for (column, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let (found, expected) = (f32::from_bits(found), f32::from_bits(expected));
            assert!(
                (found - expected).abs() <= tolerance * (1.0 + expected.abs()),
                "{name}: row {row} of {}, column {column}: {found}, the twin has {expected}",
                case.rows()
            );
        }
    }
    assert_eq!(case.run(rig, &order, true), found, "{name}: in parts");
    // Each role's rows from the last to the first.
    let (generated, given) = order.split_at(case.generated());
    let reversed: Vec<usize> = generated
        .iter()
        .rev()
        .chain(given.iter().rev())
        .copied()
        .collect();
    let again = case.run(rig, &reversed, false);
    for (row, again) in reversed.iter().zip(again) {
        assert_eq!(again, found[*row], "{name}: row {row} in another order");
    }
    // Where both roles have the same kernels a row has the same bits in either.
    if !case.has_own_kernels() || rig.0.info().kind.ends_with("given rows as generated ones") {
        let reversed: Vec<usize> = order.iter().rev().copied().collect();
        let mut again = case.run(rig, &reversed, false);
        again.reverse();
        assert_eq!(again, found, "{name}: rows of the other role");
    }
    for row in [0, case.rows() / 2, case.rows() - 1] {
        assert_eq!(
            case.run(rig, &[row], false),
            [found[row].clone()],
            "{name}: row {row} alone"
        );
    }
}
