//! Cache writes and attention, of both kinds: each row is the last of a sequence of its own.

use half::f16;
use tramontane_kernels::ops::{
    Attention, Backend, KvCache, KvCacheShape, LatentWrite, NO_ROW, OpError, RotateQkv, RowMeta, Rows,
};
use tramontane_model::footprint::{LEAST_ATTENTION_SPLIT, MOST_TILE_HEADS, attention_partial_words};
use tramontane_model::placement::KvFormat;

use super::rig::{Case, Numbers, Rig, cached, check, device, on_every_kernel, roles, stored};

/// Tokens of a block.
pub(super) const BLOCK: u32 = 16;
/// Room for the splits of all rows of a test at once, in words.
const AMPLE: usize = 4 << 20;

/// Scratch for the splits of all rows at once, or for those of a few heads of one row.
pub(super) fn partials<B: Backend>(
    rig: &mut Rig<'_, B>,
    shape: &KvCacheShape,
    tokens: u32,
    few: bool,
) -> B::Buffer {
    let splits = tokens.div_ceil(LEAST_ATTENTION_SPLIT) as usize;
    let least = splits * MOST_TILE_HEADS as usize * attention_partial_words(shape.value) as usize;
    rig.zeros(if few { least } else { AMPLE })
}

/// Writes rows to the cache, then attends from them.
struct AttentionCase {
    shape: KvCacheShape,
    heads: u32,
    positions: Vec<u32>,
    rotary: Vec<Vec<f32>>,
    queries: Vec<Vec<f32>>,
    written: Written,
    cache: Vec<f32>,
    tables: Vec<Vec<u32>>,
}

/// What the rows write.
enum Written {
    Latent {
        latents: Vec<Vec<f32>>,
        norm: Vec<u8>,
    },
    Grouped {
        keys: Vec<Vec<f32>>,
        values: Vec<Vec<f32>>,
    },
}

impl AttentionCase {
    fn new(
        numbers: &mut Numbers,
        shape: impl Fn(u32) -> KvCacheShape,
        heads: u32,
        positions: &[u32],
    ) -> Self {
        let per_row = positions.iter().max().map_or(1, |last| last / BLOCK + 1);
        let rows = positions.len();
        let shape = shape(rows as u32 * per_row);
        // Blocks of a sequence are scattered over the cache.
        let table = |row: u32| {
            (0..per_row)
                .map(|block| block * rows as u32 + (row + block) % rows as u32)
                .collect()
        };
        let written = match shape.value_in_key {
            true => Written::Latent {
                latents: numbers.rows(rows, shape.width() as usize),
                norm: numbers.bf16s(shape.value as usize),
            },
            false => Written::Grouped {
                keys: numbers.rows(rows, (shape.heads * shape.key) as usize),
                values: numbers.rows(rows, (shape.heads * shape.value) as usize),
            },
        };
        let turned = match shape.value_in_key {
            true => shape.key - shape.value,
            false => shape.key,
        };
        Self {
            shape,
            heads,
            positions: positions.to_vec(),
            rotary: numbers.rows(rows, turned as usize),
            queries: numbers.rows(rows, (heads * shape.key) as usize),
            written,
            cache: numbers.floats((shape.bytes() / shape.format.value_bytes()) as usize),
            tables: (0..rows as u32).map(table).collect(),
        }
    }

    fn slot(&self, row: usize) -> u32 {
        let position = self.positions[row];
        self.tables[row][(position / BLOCK) as usize] * BLOCK + position % BLOCK
    }

    fn meta(&self, table: usize, row: usize) -> RowMeta {
        RowMeta {
            position: self.positions[row],
            // One row writes nothing.
            slot: if row == 1 { NO_ROW } else { self.slot(row) },
            table: table as u32,
            query_scale: 1.0 + row as f32 / 8.0,
        }
    }
}

impl Case for AttentionCase {
    fn rows(&self) -> usize {
        self.positions.len()
    }

    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>, order: &[usize], in_parts: bool) -> Vec<Vec<u32>> {
        let shape = self.shape;
        let buffer = rig.words(&stored(&self.cache, shape.format));
        let cache = KvCache::new(shape, buffer).expect("well formed");
        let meta = order.iter().enumerate();
        let meta: Vec<RowMeta> = meta.map(|(table, &row)| self.meta(table, row)).collect();
        let meta = rig.words(&meta);
        let tables: Vec<u32> = order.iter().flat_map(|&row| self.tables[row].clone()).collect();
        let tables = rig.words(&tables);
        let rotary = rig.picked(&self.rotary, order);
        let mut queries = rig.picked(&self.queries, order);
        let rows = roles(order.len());
        match &self.written {
            Written::Latent { latents, norm } => {
                let op = LatentWrite {
                    input: &rig.picked(latents, order),
                    norm: &rig.vector(norm),
                    eps: 1e-6,
                    rotary: &rotary,
                    meta: &meta,
                    cache: &cache,
                    rows,
                };
                rig.0.latent_write(&op).expect("valid");
            }
            Written::Grouped { keys, values } => {
                let turned = rig.zeros(order.len() * self.queries[0].len());
                let op = RotateQkv {
                    queries: &queries,
                    keys: &rig.picked(keys, order),
                    values: &rig.picked(values, order),
                    heads: self.heads,
                    rotary: &rotary,
                    meta: &meta,
                    cache: &cache,
                    output: &turned,
                    rows,
                };
                rig.0.rotate_qkv(&op).expect("valid");
                queries = turned;
            }
        }
        let width = (self.heads * shape.value) as usize;
        let output = rig.zeros(order.len() * width);
        let op = Attention {
            queries: &queries,
            meta: &meta,
            tables: &tables,
            table_rows: order.len() as u32,
            table_width: self.tables[0].len() as u32,
            cache: &cache,
            heads: self.heads,
            scale: 0.3,
            partials: &partials(rig, &shape, self.tables[0].len() as u32 * BLOCK, in_parts),
            output: &output,
            rows,
        };
        rig.0.attention(&op).expect("valid");
        let slots = cached(&rig.read(cache.buffer()), shape.format);
        let slots: Vec<&[u32]> = slots.chunks(shape.width() as usize).collect();
        let queries = rig.rows(&queries, order.len(), self.queries[0].len());
        let attended = rig.rows(&output, order.len(), width).into_iter().zip(queries);
        let of_row = |((attended, query), &row): ((Vec<u32>, Vec<u32>), &usize)| {
            [&attended, &query, slots[self.slot(row) as usize]].concat()
        };
        attended.zip(order).map(of_row).collect()
    }
}

/// Formats of the cache, and how far a device and its twin may differ: where a value is near the middle between two halves
/// they may take one each.
const FORMATS: [(KvFormat, f32); 2] = [(KvFormat::F32, 5e-5), (KvFormat::F16, 1e-3)];
const POSITIONS: [u32; 12] = [0, 15, 16, 31, 32, 33, 63, 64, 65, 127, 129, 600];

#[test]
fn latent_write_and_attention() {
    let numbers = &mut Numbers::new(12);
    for (latent, rope, heads) in [(64, 16, 8), (144, 32, 3), (512, 64, 5)] {
        for (format, tolerance) in FORMATS {
            let shape = |blocks| KvCacheShape::latent(blocks, BLOCK, latent, rope, format);
            let case = AttentionCase::new(numbers, shape, heads, &POSITIONS);
            let name = format!("attention {latent} + {rope} in {format}, {heads} heads");
            check(&name, &case, tolerance);
        }
    }
}

#[test]
fn rotate_qkv_and_attention() {
    let numbers = &mut Numbers::new(15);
    // Ministral 3's heads; groups of one head, of more than fill a workgroup, and of a number that fills none evenly.
    for (head_dim, kv_heads, heads) in [
        (128, 8, 32),
        (32, 2, 4),
        (16, 3, 3),
        (48, 2, 18),
        (64, 1, 11),
        (272, 3, 15),
    ] {
        for (format, tolerance) in FORMATS {
            let shape = |blocks| KvCacheShape::grouped(blocks, BLOCK, kv_heads, head_dim, format);
            let case = AttentionCase::new(numbers, shape, heads, &POSITIONS);
            let name = format!("attention {head_dim} in {format}, {heads} heads over {kv_heads}");
            check(&name, &case, tolerance);
        }
    }
}

/// Values that f16 has, lies between, cannot reach, or counts as nearly nothing.
fn awkward_values() -> Vec<f32> {
    let numbers = &mut Numbers::new(19);
    let unit = 2f32.powi(-24);
    let ends = [
        0.0,
        unit / 2.0,
        unit,
        1.5 * unit,
        2f32.powi(-14),
        2f32.powi(-14) - unit / 2.0,
        65_504.0,
    ];
    let beyond = [65_519.9, 65_520.0, 1e6, f32::MAX, 1e-30];
    // The middles between neighbours, of which the even one is to be taken, and their nearest numbers.
    let middles = (0..200).flat_map(|_| {
        let below = f16::from_bits(numbers.bits() as u16 % 0x7bff);
        let above = f16::from_bits(below.to_bits() + 1);
        let middle = f32::midpoint(below.to_f32(), above.to_f32());
        [below.to_f32(), middle.next_down(), middle, middle.next_up()]
    });
    let middles: Vec<f32> = middles.collect();
    let all = ends.into_iter().chain(beyond).chain(middles);
    let mut all: Vec<f32> = all.flat_map(|value| [value, -value]).collect();
    all.resize(all.len().next_multiple_of(16), 1.0);
    all
}

#[test]
fn values_are_cached_as_the_nearest_half_and_attended_as_that() {
    let values = awkward_values();
    let nearest = |&value: &f32| f16::from_f32(value.clamp(-65_504.0, 65_504.0));
    let nearest: Vec<f16> = values.iter().map(nearest).collect();
    on_every_kernel(|device| {
        let rig = &mut Rig(device);
        let width = 16;
        let rows = values.len() as u32 / width;
        let shape = KvCacheShape::grouped(rows, 1, 1, width, KvFormat::F16);
        let buffer = rig.zeros((shape.bytes() / 4) as usize);
        let cache = KvCache::new(shape, buffer).expect("well formed");
        // Each row sees the token that it writes, and no other.
        let meta: Vec<RowMeta> = (0..rows)
            .map(|row| RowMeta {
                position: 0,
                slot: row,
                table: row,
                query_scale: 1.0,
            })
            .collect();
        let meta = rig.words(&meta);
        let (zeros, turned) = (rig.zeros(values.len()), rig.zeros(values.len()));
        let write = RotateQkv {
            queries: &zeros,
            keys: &zeros,
            values: &rig.words(&values),
            heads: 1,
            rotary: &zeros,
            meta: &meta,
            cache: &cache,
            output: &turned,
            rows: Rows::new(0, rows),
        };
        rig.0.rotate_qkv(&write).expect("valid");
        let found = rig.read(cache.buffer());
        let tokens = found.chunks_exact(width as usize);
        let halves = tokens.flat_map(|token| cached(&token[token.len() / 2..], KvFormat::F16));
        for ((value, nearest), found) in values.iter().zip(&nearest).zip(halves) {
            assert_eq!(
                found,
                nearest.to_f32().to_bits(),
                "{value} became {}",
                f32::from_bits(found)
            );
        }
        let output = rig.zeros(values.len());
        let attend = Attention {
            queries: &turned,
            meta: &meta,
            tables: &rig.words(&(0..rows).collect::<Vec<u32>>()),
            table_rows: rows,
            table_width: 1,
            cache: &cache,
            heads: 1,
            scale: 1.0,
            partials: &rig.zeros(AMPLE),
            output: &output,
            rows: Rows::new(0, rows),
        };
        rig.0.attention(&attend).expect("valid");
        for (nearest, found) in nearest.iter().zip(rig.read(&output)) {
            let (nearest, found) = (nearest.to_f32(), f32::from_bits(found));
            // A device may take subnormal halves for zero, and need not divide by one exactly.
            let unit = if rig.0.info().is_cpu { 0.0 } else { 2f32.powi(-14) };
            assert!(
                (found - nearest).abs() <= unit + nearest.abs() * 1e-6,
                "{nearest}: {found}"
            );
        }
    });
}

#[test]
fn caches_and_heads_that_do_not_fit_together_are_refused() {
    let mut device = device();
    let rig = &mut Rig(&mut *device);
    let buffer = rig.zeros(4096);
    let grouped = KvCacheShape::grouped(2, BLOCK, 2, 16, KvFormat::F32);
    for (shape, expected) in [
        (KvCacheShape { heads: 0, ..grouped }, "heads is 0"),
        (KvCacheShape { key: 24, ..grouped }, "key is 24"),
        (
            KvCacheShape {
                value_in_key: true,
                ..grouped
            },
            "no value is part of a key",
        ),
        (
            KvCacheShape {
                block_tokens: 12,
                ..grouped
            },
            "a power of two",
        ),
        (
            KvCacheShape {
                blocks: 1 << 16,
                ..grouped
            },
            "bytes",
        ),
    ] {
        let error = KvCache::new(shape, buffer.clone())
            .expect_err("refused")
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
    let grouped = KvCache::new(grouped, buffer.clone()).expect("well formed");
    let latent = KvCacheShape::latent(2, BLOCK, 32, 16, KvFormat::F16);
    let latent = KvCache::new(latent, buffer.clone()).expect("well formed");
    let rows = Rows::new(0, 1);
    let rotate = |cache, heads| RotateQkv {
        queries: &buffer,
        keys: &buffer,
        values: &buffer,
        heads,
        rotary: &buffer,
        meta: &buffer,
        cache,
        output: &buffer,
        rows,
    };
    for op in [rotate(&latent, 4), rotate(&grouped, 0)] {
        let error = rig.0.rotate_qkv(&op).expect_err("refused");
        assert!(matches!(error, OpError::Shape { .. }), "{error}");
    }
    let attention = Attention {
        queries: &buffer,
        meta: &buffer,
        tables: &buffer,
        table_rows: 1,
        table_width: 1,
        cache: &grouped,
        heads: 3,
        scale: 1.0,
        partials: &buffer,
        output: &buffer,
        rows,
    };
    let error = rig.0.attention(&attention).expect_err("refused").to_string();
    assert!(error.contains("3 heads over 2"), "{error}");
    let norm = rig.vector(&[0; 64]);
    let write = LatentWrite {
        input: &buffer,
        norm: &norm,
        eps: 1e-6,
        rotary: &buffer,
        meta: &buffer,
        cache: &grouped,
        rows,
    };
    let error = rig.0.latent_write(&write).expect_err("refused").to_string();
    assert!(error.contains("its value must be the latent"), "{error}");
}
