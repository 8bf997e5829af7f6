//! Twin of `shaders/embed.wgsl`.

use super::{CpuBuffer, decode};
use crate::ops::Embed;

pub(super) fn run(op: &Embed<'_, CpuBuffer>) {
    let table = decode::matrix(op.table);
    for (row, token) in op.tokens.u32s(op.rows.total() as usize).into_iter().enumerate() {
        if (token as usize) < table.rows {
            let values: Vec<f32> = table
                .row(token as usize)
                .iter()
                .map(|&value| value as f32)
                .collect();
            op.output.store(row * table.cols, &values);
        }
    }
}
