//! Attention over sequences of several splits, and what it refuses.

use tramontane_kernels::gpu::GpuBackend;
use tramontane_kernels::ops::{Attention, Backend, KvCache, KvCacheShape, NO_ROW, RowMeta};

use tramontane_model::placement::KvFormat;

use super::attention::{BLOCK, partials};
use super::rig::{Case, Numbers, Rig, check, device, on_every_kernel, roles, stored};

/// Rows of one sequence whose cache is there already.
struct LongCase {
    shape: KvCacheShape,
    heads: u32,
    positions: Vec<u32>,
    queries: Vec<Vec<f32>>,
    cache: Vec<f32>,
    table: Vec<u32>,
}

impl LongCase {
    fn new(
        numbers: &mut Numbers,
        shape: impl Fn(u32) -> KvCacheShape,
        heads: u32,
        positions: &[u32],
    ) -> Self {
        let blocks = positions.iter().max().map_or(1, |last| last / BLOCK + 1);
        let shape = shape(blocks);
        Self {
            shape,
            heads,
            positions: positions.to_vec(),
            queries: numbers.rows(positions.len(), (heads * shape.key) as usize),
            cache: numbers.floats((shape.bytes() / shape.format.value_bytes()) as usize),
            table: (0..blocks).rev().collect(),
        }
    }
}

impl Case for LongCase {
    fn rows(&self) -> usize {
        self.positions.len()
    }

    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>, order: &[usize], in_parts: bool) -> Vec<Vec<u32>> {
        let cache = KvCache::new(self.shape, rig.words(&stored(&self.cache, self.shape.format)));
        let cache = cache.expect("well formed");
        let meta = order.iter().map(|&row| RowMeta {
            position: self.positions[row],
            slot: NO_ROW,
            table: 0,
            query_scale: 1.0,
        });
        // As long as the longest of these rows needs it.
        let last = order.iter().map(|&row| self.positions[row]).max().unwrap_or(0);
        let table = &self.table[..(last / BLOCK + 1) as usize];
        let width = (self.heads * self.shape.value) as usize;
        let output = rig.zeros(order.len() * width);
        let op = Attention {
            queries: &rig.picked(&self.queries, order),
            meta: &rig.words(&meta.collect::<Vec<_>>()),
            tables: &rig.words(table),
            table_rows: 1,
            table_width: table.len() as u32,
            cache: &cache,
            heads: self.heads,
            scale: 0.2,
            partials: &partials(rig, &self.shape, table.len() as u32 * BLOCK, in_parts),
            output: &output,
            rows: roles(order.len()),
        };
        rig.0.attention(&op).expect("valid");
        rig.rows(&output, order.len(), width)
    }
}

#[test]
fn attention_over_long_sequences_of_latents() {
    let numbers = &mut Numbers::new(16);
    for (format, heads, positions) in [
        // Mistral Large 3's heads; then some that fill no workgroup evenly.
        (
            KvFormat::F32,
            128,
            &[0, 1022, 255, 1023, 256, 1024, 5999, 19_999][..],
        ),
        (KvFormat::F16, 128, &[255, 1024, 5999][..]),
        (KvFormat::F32, 5, &[1024, 0, 5999][..]),
        (KvFormat::F16, 5, &[1024, 0, 19_999][..]),
    ] {
        let shape = |blocks| KvCacheShape::latent(blocks, BLOCK, 512, 64, format);
        let case = LongCase::new(numbers, shape, heads, positions);
        check(&format!("long sequences in {format}, {heads} heads"), &case, 5e-5);
    }
}

#[test]
fn attention_over_long_sequences_of_grouped_queries() {
    let numbers = &mut Numbers::new(17);
    for (head_dim, kv_heads, heads, positions) in [
        // Ministral 3's heads.
        (128, 8, 32, &[0, 1022, 255, 1023, 512, 1024][..]),
        (64, 1, 11, &[1024, 0, 5999][..]),
        (48, 2, 6, &[1024, 0, 19_999][..]),
    ] {
        for format in KvFormat::ALL {
            let shape = |blocks| KvCacheShape::grouped(blocks, BLOCK, kv_heads, head_dim, format);
            let case = LongCase::new(numbers, shape, heads, positions);
            let name = format!("long sequences of {head_dim} in {format}, {heads} heads over {kv_heads}");
            check(&name, &case, 5e-5);
        }
    }
}

/// One row over `tokens` tokens of a cache of two blocks that take turns.
fn attend_in_turns<B: Backend>(rig: &mut Rig<'_, B>, tokens: u32) -> Vec<f32> {
    let shape = KvCacheShape::latent(2, BLOCK, 512, 64, KvFormat::F32);
    let numbers = &mut Numbers::new(18);
    let cache = KvCache::new(shape, rig.words(&numbers.floats((shape.bytes() / 4) as usize)));
    let cache = cache.expect("well formed");
    let heads = 4;
    let output = rig.zeros((heads * shape.value) as usize);
    let table: Vec<u32> = (0..tokens / BLOCK).map(|block| block % 2).collect();
    let meta = RowMeta {
        position: tokens - 1,
        slot: NO_ROW,
        table: 0,
        query_scale: 1.0,
    };
    let op = Attention {
        queries: &rig.words(&numbers.floats((heads * shape.key) as usize)),
        meta: &rig.words(&[meta]),
        tables: &rig.words(&table),
        table_rows: 1,
        table_width: table.len() as u32,
        cache: &cache,
        heads,
        scale: 0.2,
        partials: &partials(rig, &shape, tokens, true),
        output: &output,
        rows: roles(1),
    };
    rig.0.attention(&op).expect("valid");
    rig.read(&output).into_iter().map(f32::from_bits).collect()
}

fn check_in_turns(device: &mut GpuBackend, tokens: u32) {
    let rig = &mut Rig(device);
    let short = attend_in_turns(rig, 32);
    let long = attend_in_turns(rig, tokens);
    for (column, (&found, &expected)) in long.iter().zip(&short).enumerate() {
        assert!(
            (found - expected).abs() <= 5e-5 * (1.0 + expected.abs()),
            "{tokens} tokens, column {column}: {found}, {expected} over each token once"
        );
    }
}

#[test]
fn a_sequence_of_256k_tokens_is_attended_whole() {
    check_in_turns(&mut device(), 1 << 18);
    // Those of real GPUs are slow on an emulated one.
    on_every_kernel(|device| check_in_turns(device, 1 << 15));
}

#[test]
fn what_the_device_would_leave_half_done_and_scratch_that_is_too_small_are_refused() {
    let rig = &mut Rig(&mut *device());
    let mut attend = |rope: u32, blocks: u32, partials: usize| {
        let shape = KvCacheShape::latent(2, BLOCK, 512, rope, KvFormat::F32);
        let buffer = rig.zeros((shape.bytes() / 4) as usize);
        let cache = KvCache::new(shape, buffer).expect("well formed");
        let heads = 4;
        let op = Attention {
            queries: &rig.zeros((heads * shape.key) as usize),
            meta: &rig.zeros(4),
            tables: &rig.zeros(blocks as usize),
            table_rows: 1,
            table_width: blocks,
            cache: &cache,
            heads,
            scale: 1.0,
            partials: &rig.zeros(partials),
            output: &rig.zeros((heads * shape.value) as usize),
            rows: roles(1),
        };
        (rig.0.attention(&op), rig.0.info().is_cpu)
    };
    let (wide, is_cpu) = attend(1 << 14, 1, 4);
    if is_cpu {
        let said = wide.expect_err("refused").to_string();
        assert!(said.contains("rounds") && said.contains("65535"), "{said}");
    } else {
        wide.expect("attended");
    }
    let (cramped, _) = attend(64, 256, 4);
    let said = cramped.expect_err("refused").to_string();
    assert!(said.contains("partials"), "{said}");
}
