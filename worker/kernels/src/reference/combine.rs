//! Twin of `shaders/combine.wgsl`.

use super::CpuBuffer;
use crate::ops::Combine;

pub(super) fn run(op: &Combine<'_, CpuBuffer>) {
    let (rows, top_k, dim) = (op.rows.total() as usize, op.top_k as usize, op.dim as usize);
    let results = op.results.f32s(rows * top_k * dim);
    let weights = op.weights.f32s(rows * top_k);
    let shared = op.shared.f32s(rows * dim);
    let mut output = op.output.f32s(rows * dim);
    for (index, out) in output.iter_mut().enumerate() {
        let (row, column) = (index / dim, index % dim);
        let routed: f64 = (row * top_k..(row + 1) * top_k)
            .map(|pair| f64::from(weights[pair]) * f64::from(results[pair * dim + column]))
            .sum();
        *out = (f64::from(*out) + f64::from(shared[index]) + routed) as f32;
    }
    op.output.store(0, &output);
}
