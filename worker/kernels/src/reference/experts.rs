//! Twin of `shaders/group_experts.wgsl`, and of `gate_up.wgsl` and `linear.wgsl` on grouped rows.

use super::gate_up::gated;
use super::{CpuBuffer, decode};
use crate::ops::Experts;

pub(super) fn run(op: &Experts<'_, CpuBuffer>) {
    let layout = op.bank.layout();
    let (dim, hidden) = (layout.dim as usize, layout.hidden as usize);
    let (rows, top_k) = (op.rows.total() as usize, op.top_k as usize);
    let ids = op.ids.u32s(rows * top_k);
    let input = op.input.f32s(rows * dim);
    for expert in op.bank.experts() {
        let Some([w1, w3, w2]) = decode::expert(op.bank, expert) else {
            continue;
        };
        let pairs = ids.iter().enumerate().filter(|&(_, &id)| id == expert);
        for (pair, _) in pairs {
            let row = pair / top_k;
            let middle = gated(&w1, &w3, &input[row * dim..(row + 1) * dim]);
            let result: Vec<f32> = (0..dim).map(|n| w2.dot(n, &middle) as f32).collect();
            op.scratch.hidden.store(pair * hidden, &middle);
            op.output.store(pair * dim, &result);
        }
    }
}
