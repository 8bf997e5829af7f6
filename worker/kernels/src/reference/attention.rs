//! Twin of `shaders/attention.wgsl` and `attention_subgroup.wgsl`: two passes over the whole sequence, no tiles.

use super::latent::metas;
use super::{CpuBuffer, cache};
use crate::ops::Attention;

pub(super) fn run(op: &Attention<'_, CpuBuffer>) {
    let shape = op.cache.shape();
    let (key, value, heads) = (shape.key as usize, shape.value as usize, op.heads as usize);
    let (width, first_value) = (shape.width() as usize, shape.first_value() as usize);
    let group = heads / shape.heads as usize;
    let block_tokens = shape.block_tokens as usize;
    let rows = op.rows.total() as usize;
    let tables = op.tables.u32s(op.table_rows as usize * op.table_width as usize);
    let queries = op.queries.f32s(rows * heads * key);
    let cache = cache::values(op.cache);
    for (row, meta) in metas(op.meta, rows).into_iter().enumerate() {
        let table = (meta.table as usize).min(op.table_rows as usize - 1) * op.table_width as usize;
        let table = &tables[table..table + op.table_width as usize];
        let tokens = (meta.position as usize + 1).min(table.len() * block_tokens);
        let token = |t: usize| {
            let block = (table[t / block_tokens] as usize).min(shape.blocks as usize - 1);
            let start = (block * block_tokens + t % block_tokens) * width;
            &cache[start..start + width]
        };
        for head in 0..heads {
            let start = (row * heads + head) * key;
            let q = &queries[start..start + key];
            let shared = head / group;
            let score = |t: usize| {
                let dot: f64 = q
                    .iter()
                    .zip(&token(t)[shared * key..])
                    .map(|(&q, &k)| f64::from(q) * f64::from(k))
                    .sum();
                dot * f64::from(op.scale)
            };
            let scores: Vec<f64> = (0..tokens).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let mut sum = 0.0;
            let mut output = vec![0.0; value];
            for (t, score) in scores.iter().enumerate() {
                let p = (score - largest).exp();
                sum += p;
                for (out, &part) in output.iter_mut().zip(&token(t)[first_value + shared * value..]) {
                    *out += p * f64::from(part);
                }
            }
            let values: Vec<f32> = output.iter().map(|part| (part / sum) as f32).collect();
            op.output.store((row * heads + head) * value, &values);
        }
    }
}
