//! Twin of `shaders/gate_up.wgsl`.

use super::CpuBuffer;
use super::decode::{self, Decoded};
use crate::ops::GateUp;

/// `silu(w1 x) * (w3 x)`.
pub(super) fn gated(w1: &Decoded, w3: &Decoded, x: &[f32]) -> Vec<f32> {
    (0..w1.rows)
        .map(|row| {
            let gate = w1.dot(row, x);
            (gate / (1.0 + (-gate).exp()) * w3.dot(row, x)) as f32
        })
        .collect()
}

pub(super) fn run(op: &GateUp<'_, CpuBuffer>) {
    let (w1, w3) = (decode::matrix(op.w1), decode::matrix(op.w3));
    let input = op.input.f32s(op.rows.total() as usize * w1.cols);
    for (row, x) in input.chunks_exact(w1.cols).enumerate() {
        op.output.store(row * w1.rows, &gated(&w1, &w3, x));
    }
}
