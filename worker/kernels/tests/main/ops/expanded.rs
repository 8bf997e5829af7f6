//! Expanded attention of prompts' rows: its twin, the absorbed form, and equal bits however rows are cut into calls.

use std::ops::Range;

use tramontane_kernels::gpu::GpuBackend;
use tramontane_kernels::ops::{
    Attention, Backend, ExpandedAttention, ExpandedScratch, KvCache, KvCacheShape, MlaDims, NO_ROW,
    PromptRows, Queries, RowMeta, Rows, Values, WeightFormat,
};
use tramontane_kernels::reference::CpuBackend;
use tramontane_model::footprint::{EXPANDED_STATE_WORDS, EXPANDED_TOKENS};
use tramontane_model::placement::KvFormat;

use super::attention::partials;
use super::rig::{Numbers, Rig, Weights, device, device_with_given_rows_in_f16, on_every_kernel, stored};

/// First position and rows of sequences: at the start, across the ends of tiles, at and after them.
const SEQUENCES: [(u32, u32); 6] = [(0, 37), (505, 21), (1020, 9), (511, 1), (512, 1), (3, 2)];

/// Rows of sequences whose whole context is in the cache.
struct Prompts {
    dims: MlaDims,
    weights: Weights,
    shape: KvCacheShape,
    cache: Vec<f32>,
    tables: Vec<Vec<u32>>,
    sequences: Vec<(u32, u32)>,
    inputs: Vec<Vec<f32>>,
    rotary: Vec<Vec<f32>>,
}

/// Rows of a sequence that are in a call.
type Piece = (usize, Range<u32>);

impl Prompts {
    fn new(dims: MlaDims, format: WeightFormat, cached: KvFormat, block_tokens: u32) -> Self {
        Self::of(&SEQUENCES, dims, format, cached, block_tokens)
    }

    fn of(
        sequences: &[(u32, u32)],
        dims: MlaDims,
        format: WeightFormat,
        cached: KvFormat,
        block_tokens: u32,
    ) -> Self {
        let numbers = &mut Numbers::new(23);
        let sequences = sequences.to_vec();
        let longest = sequences.iter().map(|&(first, rows)| first + rows).max();
        let per_sequence = longest.unwrap_or(1).div_ceil(block_tokens);
        let count = sequences.len() as u32;
        let shape = KvCacheShape::latent(count * per_sequence, block_tokens, dims.latent, dims.rope, cached);
        // Blocks of a sequence are scattered over the cache.
        let table = |sequence: u32| {
            let blocks = 0..per_sequence;
            blocks
                .map(|block| block * count + (sequence + block) % count)
                .collect()
        };
        let rows = sequences.iter().map(|&(_, rows)| rows as usize).sum();
        let query = dims.heads * (dims.nope + dims.rope);
        Self {
            dims,
            weights: Weights::new(numbers, dims.heads * dims.head_rows(), dims.latent, format),
            shape,
            cache: numbers.floats((shape.bytes() / shape.format.value_bytes()) as usize),
            tables: (0..count).map(table).collect(),
            sequences,
            inputs: numbers.rows(rows, query as usize),
            rotary: numbers.rows(rows, dims.rope as usize),
        }
    }

    /// Number of a row among all.
    fn row(&self, sequence: usize, row: u32) -> usize {
        let before: u32 = self.sequences[..sequence].iter().map(|&(_, rows)| rows).sum();
        (before + row) as usize
    }

    /// Every sequence whole.
    fn all(&self) -> Vec<Piece> {
        let each = self.sequences.iter().enumerate();
        each.map(|(sequence, &(_, rows))| (sequence, 0..rows)).collect()
    }

    /// The rows' bits, in the order of the pieces; `unused` rows of the step come before them. `absorbed`: by the other form.
    fn run<B: Backend>(
        &self,
        rig: &mut Rig<'_, B>,
        pieces: &[Piece],
        unused: u32,
        absorbed: bool,
    ) -> Vec<(usize, Vec<u32>)> {
        let dims = self.dims;
        let each = pieces
            .iter()
            .flat_map(|(sequence, rows)| rows.clone().map(|row| (*sequence, row)));
        let each: Vec<(usize, u32)> = each.collect();
        let mut order: Vec<usize> = vec![0; unused as usize];
        order.extend(each.iter().map(|&(sequence, row)| self.row(sequence, row)));
        let nobody = RowMeta {
            position: 0,
            slot: NO_ROW,
            table: 0,
            query_scale: 9.0,
        };
        let mut meta = vec![nobody; unused as usize];
        meta.extend(each.iter().map(|&(sequence, row)| RowMeta {
            position: self.sequences[sequence].0 + row,
            slot: NO_ROW,
            table: sequence as u32,
            query_scale: 1.0 + self.row(sequence, row) as f32 / 64.0,
        }));
        let mut next = unused;
        let sequences: Vec<PromptRows> = pieces
            .iter()
            .map(|(sequence, rows)| {
                let first_row = next;
                next += rows.end - rows.start;
                PromptRows {
                    first_row,
                    rows: rows.end - rows.start,
                    first_position: self.sequences[*sequence].0 + rows.start,
                    table: *sequence as u32,
                }
            })
            .collect();
        let buffer = rig.words(&stored(&self.cache, self.shape.format));
        let cache = KvCache::new(self.shape, buffer).expect("well formed");
        let wkv_b = rig.matrix(&self.weights, 2 * dims.head_rows());
        let tables = rig.words(&self.tables.concat());
        let (input, rotary, meta) = (
            rig.picked(&self.inputs, &order),
            rig.picked(&self.rotary, &order),
            rig.words(&meta),
        );
        let rows = order.len();
        let words = |width: u32| rows * width as usize;
        let queries = rig.zeros(words(dims.heads * dims.absorbed().max(dims.nope + dims.rope)));
        let output = rig.zeros(words(dims.heads * dims.v));
        let (table_rows, table_width) = (self.tables.len() as u32, self.tables[0].len() as u32);
        let scale = 0.05;
        if absorbed {
            let rows = Rows::new(0, rows as u32);
            let context = rig.zeros(words(dims.heads * dims.latent));
            rig.0
                .queries(&Queries {
                    input: &input,
                    wkv_b: &wkv_b,
                    dims,
                    rotary: &rotary,
                    meta: &meta,
                    output: &queries,
                    rows,
                })
                .expect("valid");
            let partials = partials(rig, &self.shape, table_width * self.shape.block_tokens, false);
            rig.0
                .attention(&Attention {
                    queries: &queries,
                    meta: &meta,
                    tables: &tables,
                    table_rows,
                    table_width,
                    cache: &cache,
                    heads: dims.heads,
                    scale,
                    partials: &partials,
                    output: &context,
                    rows,
                })
                .expect("valid");
            rig.0
                .values(&Values {
                    input: &context,
                    wkv_b: &wkv_b,
                    dims,
                    output: &output,
                    rows,
                })
                .expect("valid");
        } else {
            let tokens = EXPANDED_TOKENS as usize;
            let width = dims.heads * dims.head_rows() + dims.rope;
            let scratch = ExpandedScratch {
                latents: rig.zeros(tokens * dims.latent as usize),
                keys_values: rig.zeros(tokens * width as usize),
                state: rig.zeros(words(dims.heads * EXPANDED_STATE_WORDS)),
            };
            rig.0
                .expanded_attention(&ExpandedAttention {
                    input: &input,
                    queries: &queries,
                    wkv_b: &wkv_b,
                    dims,
                    rotary: &rotary,
                    meta: &meta,
                    tables: &tables,
                    table_rows,
                    table_width,
                    cache: &cache,
                    scale,
                    scratch: &scratch,
                    output: &output,
                    sequences: &sequences,
                })
                .expect("valid");
        }
        let found = rig.rows(&output, rows, (dims.heads * dims.v) as usize);
        let used = order.into_iter().zip(found).skip(unused as usize);
        used.collect()
    }

    fn compare(&self, device: &mut GpuBackend, expected: &[(usize, Vec<u32>)], tolerance: f32) {
        let name = format!(
            "{}: {:?} of {}",
            device.info().kind,
            self.dims,
            self.weights.format
        );
        let rig = &mut Rig(device);
        let found = self.run(rig, &self.all(), 0, false);
        is_near(&name, &found, expected, tolerance);
        // Rows of a sequence in calls of their own and together with others, in another order and after other rows.
        let cut = |sequence: usize, cuts: &[u32]| -> Vec<Piece> {
            let rows = self.sequences[sequence].1;
            let ends = cuts.iter().copied().chain([rows]);
            let starts = [0].into_iter().chain(cuts.iter().copied());
            starts
                .zip(ends)
                .map(|(start, end)| (sequence, start..end))
                .collect()
        };
        let mut calls: Vec<Vec<Piece>> = self.all().into_iter().rev().map(|piece| vec![piece]).collect();
        calls.extend(cut(0, &[1, 4, 12, 31]).into_iter().map(|piece| vec![piece]));
        calls.push(cut(1, &[7, 8, 20]));
        calls.push([cut(2, &[3]), cut(0, &[16])].concat());
        for (index, pieces) in calls.iter().enumerate() {
            for (row, bits) in self.run(rig, pieces, index as u32 % 3, false) {
                assert!(bits == found[row].1, "{name}: row {row} in {pieces:?}");
            }
        }
    }
}

fn is_near(name: &str, found: &[(usize, Vec<u32>)], expected: &[(usize, Vec<u32>)], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for ((row, found), (_, expected)) in found.iter().zip(expected) {
        for (column, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let (found, expected) = (f32::from_bits(found), f32::from_bits(expected));
            assert!(
                (found - expected).abs() <= tolerance * (1.0 + expected.abs()),
                "{name}: row {row}, column {column}: {found}, expected {expected}"
            );
        }
    }
}

fn dims(heads: u32, nope: u32, rope: u32, v: u32, latent: u32) -> MlaDims {
    MlaDims {
        heads,
        nope,
        rope,
        v,
        latent,
    }
}

fn check(prompts: &Prompts) {
    let mut reference = CpuBackend::new(1 << 30, 1 << 30);
    let rig = &mut Rig(&mut reference);
    let expected = prompts.run(rig, &prompts.all(), 0, false);
    let absorbed = prompts.run(rig, &prompts.all(), 0, true);
    is_near("the twins of both forms", &expected, &absorbed, 1e-5);
    on_every_kernel(|device| prompts.compare(device, &expected, 1e-4));
    prompts.compare(&mut device_with_given_rows_in_f16(), &expected, 1e-2);
}

#[test]
fn expanded_attention_at_real_widths() {
    // Those of Mistral Large 3, with a few of its heads.
    let dims = dims(3, 128, 64, 128, 512);
    check(&Prompts::new(dims, WeightFormat::Fp8Block, KvFormat::F32, 16));
    check(&Prompts::new(dims, WeightFormat::Bf16, KvFormat::F16, 64));
}

#[test]
fn expanded_attention_with_all_heads() {
    // Those of Mistral Large 3: a row in its second tile, and the first rows of a prompt.
    let dims = dims(128, 128, 64, 128, 512);
    let sequences = [(512, 1), (0, 5)];
    let prompts = Prompts::of(&sequences, dims, WeightFormat::Fp8Block, KvFormat::F16, 16);
    let mut reference = CpuBackend::new(1 << 30, 1 << 30);
    let expected = prompts.run(&mut Rig(&mut reference), &prompts.all(), 0, false);
    let mut device = device();
    let rig = &mut Rig(&mut *device);
    let found = prompts.run(rig, &prompts.all(), 0, false);
    is_near("all heads", &found, &expected, 1e-4);
    for (row, bits) in prompts.run(rig, &[(1, 0..2), (1, 2..5)], 1, false) {
        assert!(bits == found[row].1, "all heads: row {row}");
    }
}

#[test]
fn expanded_attention_at_awkward_widths() {
    let cases = [
        (dims(8, 32, 16, 32, 64), WeightFormat::Fp8Block, KvFormat::F32, 16),
        (dims(1, 16, 32, 48, 80), WeightFormat::Nvfp4, KvFormat::F16, 1),
        (
            dims(5, 48, 16, 16, 144),
            WeightFormat::Fp8Tensor,
            KvFormat::F32,
            1024,
        ),
        (dims(2, 64, 16, 272, 32), WeightFormat::Bf16, KvFormat::F16, 2),
    ];
    for (dims, format, cached, block_tokens) in cases {
        check(&Prompts::new(dims, format, cached, block_tokens));
    }
}

#[test]
fn operands_of_expanded_attention_that_do_not_fit_together_are_refused() {
    let mut device = device();
    let rig = &mut Rig(&mut *device);
    let dims = dims(2, 16, 16, 16, 32);
    let buffer = rig.zeros(65_536);
    let weights = Weights::new(&mut Numbers::new(5), 64, 32, WeightFormat::Bf16);
    let wkv_b = rig.matrix(&weights, 64);
    let shape = KvCacheShape::latent(4, 16, 32, 16, KvFormat::F32);
    let cache = KvCache::new(shape, buffer.clone()).expect("well formed");
    let other = KvCacheShape::latent(4, 16, 16, 16, KvFormat::F32);
    let other = KvCache::new(other, buffer.clone()).expect("well formed");
    let small = rig.zeros(16);
    let scratch = ExpandedScratch {
        latents: rig.zeros(65_536),
        keys_values: rig.zeros(65_536),
        state: rig.zeros(65_536),
    };
    let (queries, output) = (rig.zeros(65_536), rig.zeros(65_536));
    let without = [
        (
            "latents",
            ExpandedScratch {
                latents: small.clone(),
                ..scratch.clone()
            },
        ),
        (
            "keys_values",
            ExpandedScratch {
                keys_values: small.clone(),
                ..scratch.clone()
            },
        ),
        (
            "state",
            ExpandedScratch {
                state: small.clone(),
                ..scratch.clone()
            },
        ),
    ];
    let piece = PromptRows {
        first_row: 0,
        rows: 4,
        first_position: 28,
        table: 0,
    };
    let mut refused = |cache, scratch, piece: PromptRows| {
        let op = ExpandedAttention {
            input: &buffer,
            queries: &queries,
            wkv_b: &wkv_b,
            dims,
            rotary: &buffer,
            meta: &buffer,
            tables: &buffer,
            table_rows: 1,
            table_width: 2,
            cache,
            scale: 1.0,
            scratch,
            output: &output,
            sequences: &[piece],
        };
        match rig.0.expanded_attention(&op) {
            Ok(()) => "taken".to_owned(),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(refused(&cache, &scratch, piece), "taken");
    assert!(refused(&other, &scratch, piece).contains("must hold latents"));
    for wrong in [
        PromptRows { rows: 0, ..piece },
        PromptRows { rows: 5, ..piece },
        PromptRows { table: 1, ..piece },
        PromptRows {
            first_position: u32::MAX,
            ..piece
        },
    ] {
        let error = refused(&cache, &scratch, wrong);
        assert!(error.contains("which reach 32 tokens"), "{error}");
    }
    let many = PromptRows {
        first_row: u32::MAX - 3,
        ..piece
    };
    assert!(refused(&cache, &scratch, many).contains("input"));
    for (operand, scratch) in &without {
        let error = refused(&cache, scratch, piece);
        assert!(error.contains(operand), "{error}");
    }
}
