//! Twin of `shaders/latent_write.wgsl`.

use super::rms_norm::norm;
use super::{CpuBuffer, cache, decode};
use crate::ops::{LatentWrite, RowMeta};

/// Interleaved rotation: pairs `(2i, 2i + 1)` by `rotary = cos 0, sin 0, cos 1, ..`.
pub(super) fn rotate(x: &[f32], rotary: &[f32]) -> Vec<f32> {
    x.chunks_exact(2)
        .zip(rotary.chunks_exact(2))
        .flat_map(|(pair, turn)| {
            let (a, b) = (f64::from(pair[0]), f64::from(pair[1]));
            let (cos, sin) = (f64::from(turn[0]), f64::from(turn[1]));
            [(a * cos - b * sin) as f32, (a * sin + b * cos) as f32]
        })
        .collect()
}

/// The first `rows` row records of a buffer.
pub(super) fn metas(buffer: &CpuBuffer, rows: usize) -> Vec<RowMeta> {
    buffer
        .u32s(rows * 4)
        .chunks_exact(4)
        .map(|words| RowMeta {
            position: words[0],
            slot: words[1],
            table: words[2],
            query_scale: f32::from_bits(words[3]),
        })
        .collect()
}

pub(super) fn run(op: &LatentWrite<'_, CpuBuffer>) {
    let shape = op.cache.shape();
    let (latent, rope) = (shape.value as usize, op.rope() as usize);
    let width = latent + rope;
    let rows = op.rows.total() as usize;
    let weight = decode::vector(op.norm);
    let input = op.input.f32s(rows * width);
    let rotary = op.rotary.f32s(rows * rope);
    let slots = shape.slots();
    for (row, meta) in metas(op.meta, rows).into_iter().enumerate() {
        if meta.slot >= slots {
            continue;
        }
        let x = &input[row * width..(row + 1) * width];
        let start = meta.slot as usize * width;
        cache::store(op.cache, start, &norm(&x[..latent], &weight, op.eps));
        let turned = rotate(&x[latent..], &rotary[row * rope..(row + 1) * rope]);
        cache::store(op.cache, start + latent, &turned);
    }
}
