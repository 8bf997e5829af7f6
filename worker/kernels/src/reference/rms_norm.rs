//! Twin of `shaders/rms_norm.wgsl`.

use super::{CpuBuffer, decode};
use crate::ops::RmsNorm;

/// `x * w / sqrt(mean(x^2) + eps)`.
pub(super) fn norm(x: &[f32], weight: &[f64], eps: f32) -> Vec<f32> {
    let square: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let scale = 1.0 / (square / x.len() as f64 + f64::from(eps)).sqrt();
    x.iter()
        .zip(weight)
        .map(|(&x, w)| (f64::from(x) * scale * w) as f32)
        .collect()
}

pub(super) fn run(op: &RmsNorm<'_, CpuBuffer>) {
    let weight = decode::vector(op.weight);
    let (rows, width) = (op.rows.total() as usize, weight.len());
    let input = op.input.f32s(usize::MAX);
    let pick = op.pick.map(|pick| pick.u32s(rows));
    for row in 0..rows {
        let source = pick.as_ref().map_or(row, |pick| pick[row] as usize);
        if let Some(x) = input.get(source * width..(source + 1) * width) {
            op.output.store(row * width, &norm(x, &weight, op.eps));
        }
    }
}
