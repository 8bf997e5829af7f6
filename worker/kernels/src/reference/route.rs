//! Twin of `shaders/route.wgsl`, and of `linear.wgsl` for the gate.

use super::{CpuBuffer, decode};
use crate::ops::Route;

pub(super) fn run(op: &Route<'_, CpuBuffer>) {
    let gate = decode::matrix(op.gate);
    let (rows, top_k) = (op.rows.total() as usize, op.top_k as usize);
    let input = op.input.f32s(rows * gate.cols);
    for (row, x) in input.chunks_exact(gate.cols).enumerate() {
        let logits: Vec<f64> = (0..gate.rows).map(|expert| gate.dot(expert, x)).collect();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exps: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
        let total: f64 = exps.iter().sum();
        let mut order: Vec<usize> = (0..gate.rows).collect();
        order.sort_by(|&a, &b| exps[b].total_cmp(&exps[a]).then(a.cmp(&b)));
        let mut chosen = order[..top_k].to_vec();
        chosen.sort_unstable();
        let mass: f64 = chosen.iter().map(|&expert| exps[expert] / total).sum();
        let weight = |expert: usize| exps[expert] / total / mass * f64::from(op.routed_scale);
        let stored: Vec<f32> = logits.iter().map(|&logit| logit as f32).collect();
        op.logits.store(row * gate.rows, &stored);
        let weights: Vec<f32> = chosen.iter().map(|&expert| weight(expert) as f32).collect();
        op.weights.store(row * top_k, &weights);
        for (word, &expert) in op.ids.words()[row * top_k..].iter_mut().zip(&chosen) {
            *word = expert as u32;
        }
    }
}
