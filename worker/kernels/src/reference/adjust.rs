//! Twin of `shaders/adjust.wgsl`.

use super::CpuBuffer;
use crate::ops::{Adjust, AdjustedRow, Adjustment, HELD_BACK, mask_words};

pub(super) fn run(op: &Adjust<'_, CpuBuffer>) {
    let (vocab, count) = (op.vocab as usize, op.count as usize);
    let logit_rows = op.logit_rows() as usize;
    let rows: Vec<AdjustedRow> = bytemuck::pod_collect_to_vec(&op.rows.u32s(count * 8));
    let words = op.adjustments.words().len() / 4 * 4;
    let adjustments: Vec<Adjustment> = bytemuck::pod_collect_to_vec(&op.adjustments.u32s(words));
    let width = mask_words(op.vocab) as usize;
    let masks = op.masks.u32s(op.mask_rows() as usize * width);
    for row in rows {
        let place = |row: u32| (row as usize).min(logit_rows - 1) * vocab;
        let mut logits = op.logits.f32s(logit_rows * vocab)[place(row.from)..][..vocab].to_vec();
        let list = adjustments.iter().skip(row.first as usize);
        for entry in list.take(row.count as usize) {
            if let Some(logit) = logits.get_mut(entry.token as usize) {
                *logit = adjusted(*logit, entry);
            }
        }
        if let Some(mask) = masks.chunks_exact(width).nth(row.mask as usize) {
            let is_allowed = |token: usize| mask[token / 32] >> (token % 32) & 1 == 1;
            for (token, logit) in logits.iter_mut().enumerate() {
                if !is_allowed(token) {
                    *logit = HELD_BACK;
                }
            }
        }
        op.logits.store(place(row.to), &logits);
    }
}

fn adjusted(logit: f32, entry: &Adjustment) -> f32 {
    let biased = f64::from(logit) + f64::from(entry.bias);
    let repetition = f64::from(entry.repetition);
    let repeated = if biased > 0.0 {
        biased / repetition
    } else {
        biased * repetition
    };
    (repeated - f64::from(entry.penalty)) as f32
}
