//! Twin of `shaders/queries.wgsl`.

use super::latent::{metas, rotate};
use super::{CpuBuffer, decode};
use crate::ops::Queries;

pub(super) fn run(op: &Queries<'_, CpuBuffer>) {
    let dims = op.dims;
    let (heads, nope, rope) = (dims.heads as usize, dims.nope as usize, dims.rope as usize);
    let (latent, head_rows) = (dims.latent as usize, dims.head_rows() as usize);
    let rows = op.rows.total() as usize;
    let wkv_b = decode::matrix(op.wkv_b);
    let input = op.input.f32s(rows * heads * (nope + rope));
    let rotary = op.rotary.f32s(rows * rope);
    for (row, meta) in metas(op.meta, rows).into_iter().enumerate() {
        let scale = f64::from(meta.query_scale);
        for head in 0..heads {
            let start = (row * heads + head) * (nope + rope);
            let q = &input[start..start + nope + rope];
            let mut output = vec![0.0; latent];
            for (n, &q) in q[..nope].iter().enumerate() {
                for (sum, w) in output.iter_mut().zip(wkv_b.row(head * head_rows + n)) {
                    *sum += f64::from(q) * w;
                }
            }
            let turned = rotate(&q[nope..], &rotary[row * rope..(row + 1) * rope]);
            output.extend(turned.into_iter().map(f64::from));
            let scaled: Vec<f32> = output.iter().map(|value| (value * scale) as f32).collect();
            op.output.store((row * heads + head) * (latent + rope), &scaled);
        }
    }
}
