//! Twin of `shaders/linear.wgsl` with heads as groups.

use super::{CpuBuffer, decode};
use crate::ops::Values;

pub(super) fn run(op: &Values<'_, CpuBuffer>) {
    let dims = op.dims;
    let (heads, nope, v) = (dims.heads as usize, dims.nope as usize, dims.v as usize);
    let (latent, head_rows) = (dims.latent as usize, dims.head_rows() as usize);
    let rows = op.rows.total() as usize;
    let wkv_b = decode::matrix(op.wkv_b);
    let input = op.input.f32s(rows * heads * latent);
    for (index, ctx) in input.chunks_exact(latent).enumerate() {
        let first = (index % heads) * head_rows + nope;
        let values: Vec<f32> = (first..first + v).map(|row| wkv_b.dot(row, ctx) as f32).collect();
        op.output.store(index * v, &values);
    }
}
