//! Twin of `shaders/linear.wgsl`.

use super::{CpuBuffer, decode};
use crate::ops::Linear;

pub(super) fn run(op: &Linear<'_, CpuBuffer>) {
    let weight = decode::matrix(op.weight);
    let rows = op.rows.total() as usize;
    let input = op.input.f32s(rows * weight.cols);
    let before = op.output.f32s(rows * weight.rows);
    let mut output = Vec::with_capacity(rows * weight.rows);
    for x in input.chunks_exact(weight.cols) {
        for n in 0..weight.rows {
            let residual = if op.add {
                f64::from(before[output.len()])
            } else {
                0.0
            };
            output.push((residual + weight.dot(n, x)) as f32);
        }
    }
    op.output.store(0, &output);
}
