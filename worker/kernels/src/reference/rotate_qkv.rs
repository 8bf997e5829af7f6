//! Twin of `shaders/rotate_qkv.wgsl`.

use super::latent::{metas, rotate};
use super::{CpuBuffer, cache};
use crate::ops::RotateQkv;

pub(super) fn run(op: &RotateQkv<'_, CpuBuffer>) {
    let shape = op.cache.shape();
    let (head_dim, heads, shared) = (shape.key as usize, op.heads as usize, shape.heads as usize);
    let rows = op.rows.total() as usize;
    let queries = op.queries.f32s(rows * heads * head_dim);
    let keys = op.keys.f32s(rows * shared * head_dim);
    let values = op.values.f32s(rows * shared * head_dim);
    let rotary = op.rotary.f32s(rows * head_dim);
    for (row, meta) in metas(op.meta, rows).into_iter().enumerate() {
        let turn = &rotary[row * head_dim..][..head_dim];
        let turned = |all: &[f32], heads: usize| -> Vec<f32> {
            let heads = all[row * heads * head_dim..][..heads * head_dim].chunks_exact(head_dim);
            heads.flat_map(|head| rotate(head, turn)).collect()
        };
        let scaled: Vec<f32> = turned(&queries, heads)
            .into_iter()
            .map(|value| value * meta.query_scale)
            .collect();
        op.output.store(row * heads * head_dim, &scaled);
        if meta.slot < shape.slots() {
            let place = meta.slot as usize * shape.width() as usize;
            cache::store(op.cache, place, &turned(&keys, shared));
            let width = shared * head_dim;
            cache::store(op.cache, place + width, &values[row * width..][..width]);
        }
    }
}
