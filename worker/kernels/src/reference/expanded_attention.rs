//! Twin of `shaders/expanded_attention.wgsl` and `expanded_attention_subgroup.wgsl`, with what they are given by
//! `expand_gather.wgsl`, `turn_queries.wgsl` and `linear.wgsl`: all keys and values at once, no tiles.

use super::latent::{metas, rotate};
use super::{CpuBuffer, cache, decode};
use crate::ops::{ExpandedAttention, PromptRows};

pub(super) fn run(op: &ExpandedAttention<'_, CpuBuffer>) {
    let wkv_b = decode::matrix(op.wkv_b);
    let cache = cache::values(op.cache);
    for piece in op.sequences {
        sequence(op, &wkv_b, &cache, piece);
    }
}

fn sequence(
    op: &ExpandedAttention<'_, CpuBuffer>,
    wkv_b: &decode::Decoded,
    cache: &[f32],
    piece: &PromptRows,
) {
    let (dims, shape) = (op.dims, op.cache.shape());
    let (heads, nope, rope) = (dims.heads as usize, dims.nope as usize, dims.rope as usize);
    let (latent, v, head_rows) = (dims.latent as usize, dims.v as usize, dims.head_rows() as usize);
    let block_tokens = shape.block_tokens as usize;
    let tables = op.tables.u32s(op.table_rows as usize * op.table_width as usize);
    let table = &tables[piece.table as usize * op.table_width as usize..];
    let tokens: Vec<&[f32]> = (0..piece.context() as usize)
        .map(|t| {
            let block = (table[t / block_tokens] as usize).min(shape.blocks as usize - 1);
            let start = (block * block_tokens + t % block_tokens) * (latent + rope);
            &cache[start..start + latent + rope]
        })
        .collect();
    let rows = (piece.first_row + piece.rows) as usize;
    let input = op.input.f32s(rows * heads * (nope + rope));
    let rotary = op.rotary.f32s(rows * rope);
    let metas = metas(op.meta, rows);
    for head in 0..heads {
        let expand = |token: &&[f32]| -> Vec<f64> {
            let each = head * head_rows..(head + 1) * head_rows;
            each.map(|row| wkv_b.dot(row, &token[..latent])).collect()
        };
        let expanded: Vec<Vec<f64>> = tokens.iter().map(expand).collect();
        for row in piece.first_row as usize..rows {
            let start = (row * heads + head) * (nope + rope);
            let q = &input[start..start + nope + rope];
            let turned = rotate(&q[nope..], &rotary[row * rope..(row + 1) * rope]);
            let seen = (piece.first_position as usize + row - piece.first_row as usize) + 1;
            let scale = f64::from(op.scale) * f64::from(metas[row].query_scale);
            let score = |t: usize| {
                let key = q[..nope].iter().zip(&expanded[t]).map(|(&q, k)| f64::from(q) * k);
                let rope = turned.iter().zip(&tokens[t][latent..]);
                let rope = rope.map(|(&q, &k)| f64::from(q) * f64::from(k));
                (key.sum::<f64>() + rope.sum::<f64>()) * scale
            };
            let scores: Vec<f64> = (0..seen).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let mut sum = 0.0;
            let mut output = vec![0.0; v];
            for (score, expanded) in scores.iter().zip(&expanded) {
                let share = (score - largest).exp();
                sum += share;
                for (out, value) in output.iter_mut().zip(&expanded[nope..]) {
                    *out += share * value;
                }
            }
            let values: Vec<f32> = output.iter().map(|value| (value / sum) as f32).collect();
            op.output.store((row * heads + head) * v, &values);
        }
    }
}
