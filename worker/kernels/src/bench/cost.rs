//! What an op must read, write and compute, from its operands: each byte once, whatever a kernel does.

use super::Seen;
use crate::ops::{
    Attention, Combine, DeviceBuffer, Embed, ExpandedAttention, Experts, GateUp, LatentWrite, Linear, Matrix,
    Queries, RmsNorm, RotateQkv, Route, Sample, SampleResult, Values, Vector,
};

/// Bytes of one value of a buffer.
const WORD: u64 = 4;
/// Words of a row's position, slot, table and query scale.
const META_WORDS: u64 = 4;

/// Bytes and operations of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// Bytes of cached keys and values that are read.
    pub cache_bytes: u64,
    /// Bytes of other operands.
    pub input_bytes: u64,
    /// Bytes that are written.
    pub output_bytes: u64,
    /// Operations of products, a multiply-add counted as two.
    pub flops: u64,
}

impl Cost {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            weight_bytes: self.weight_bytes + other.weight_bytes,
            cache_bytes: self.cache_bytes + other.cache_bytes,
            input_bytes: self.input_bytes + other.input_bytes,
            output_bytes: self.output_bytes + other.output_bytes,
            flops: self.flops + other.flops,
        }
    }
}

fn words(count: u64, width: u32) -> u64 {
    count * u64::from(width) * WORD
}

fn matrix<B: DeviceBuffer>(matrix: &Matrix<B>) -> u64 {
    let (rows, cols, format) = (matrix.rows(), matrix.cols(), matrix.format());
    u64::from(rows) * format.row_bytes(cols) + format.scale_bytes(rows, cols)
}

fn vector<B: DeviceBuffer>(vector: &Vector<B>) -> u64 {
    2 * u64::from(vector.len())
}

/// A matrix times so many rows.
fn product<B: DeviceBuffer>(rows: u64, weight: &Matrix<B>) -> Cost {
    Cost {
        weight_bytes: matrix(weight),
        input_bytes: words(rows, weight.cols()),
        output_bytes: words(rows, weight.rows()),
        flops: 2 * rows * u64::from(weight.rows()) * u64::from(weight.cols()),
        ..Cost::default()
    }
}

pub(super) fn embed<B: DeviceBuffer>(op: &Embed<'_, B>) -> Cost {
    let rows = u64::from(op.rows.total());
    Cost {
        weight_bytes: rows * op.table.format().row_bytes(op.table.cols()),
        input_bytes: words(rows, 1),
        output_bytes: words(rows, op.table.cols()),
        ..Cost::default()
    }
}

pub(super) fn rms_norm<B: DeviceBuffer>(op: &RmsNorm<'_, B>) -> Cost {
    let bytes = words(op.rows.total().into(), op.weight.len());
    Cost {
        weight_bytes: vector(op.weight),
        input_bytes: bytes,
        output_bytes: bytes,
        ..Cost::default()
    }
}

pub(super) fn linear<B: DeviceBuffer>(op: &Linear<'_, B>) -> Cost {
    let cost = product(op.rows.total().into(), op.weight);
    let residual = if op.add { cost.output_bytes } else { 0 };
    Cost {
        input_bytes: cost.input_bytes + residual,
        ..cost
    }
}

pub(super) fn gate_up<B: DeviceBuffer>(op: &GateUp<'_, B>) -> Cost {
    let one = product(op.rows.total().into(), op.w1);
    Cost {
        weight_bytes: one.weight_bytes + matrix(op.w3),
        flops: 2 * one.flops,
        ..one
    }
}

pub(super) fn latent_write<B: DeviceBuffer>(op: &LatentWrite<'_, B>) -> Cost {
    let (rows, shape) = (u64::from(op.rows.total()), op.cache.shape());
    Cost {
        weight_bytes: vector(op.norm),
        input_bytes: words(rows, shape.width()) + words(rows, op.rope()) + rows * META_WORDS * WORD,
        output_bytes: rows * token_bytes(op.cache),
        ..Cost::default()
    }
}

pub(super) fn queries<B: DeviceBuffer>(op: &Queries<'_, B>) -> Cost {
    let (rows, dims) = (u64::from(op.rows.total()), &op.dims);
    let heads = u64::from(dims.heads);
    Cost {
        weight_bytes: matrix(op.wkv_b) / u64::from(dims.head_rows()) * u64::from(dims.nope),
        input_bytes: words(rows * heads, dims.nope + dims.rope)
            + words(rows, dims.rope)
            + rows * META_WORDS * WORD,
        output_bytes: words(rows * heads, dims.absorbed()),
        flops: 2 * rows * heads * u64::from(dims.nope) * u64::from(dims.latent),
        ..Cost::default()
    }
}

pub(super) fn rotate_qkv<B: DeviceBuffer>(op: &RotateQkv<'_, B>) -> Cost {
    let (rows, shape) = (u64::from(op.rows.total()), op.cache.shape());
    let queries = words(rows * u64::from(op.heads), shape.key);
    Cost {
        input_bytes: queries + words(rows, shape.width()) + words(rows, shape.key) + rows * META_WORDS * WORD,
        output_bytes: queries + rows * token_bytes(op.cache),
        ..Cost::default()
    }
}

/// Bytes of a token's keys and values in the cache.
fn token_bytes<B: DeviceBuffer>(cache: &crate::ops::KvCache<B>) -> u64 {
    let shape = cache.shape();
    shape.block_bytes() / u64::from(shape.block_tokens)
}

pub(super) fn attention<B: DeviceBuffer>(op: &Attention<'_, B>, seen: &Seen) -> Cost {
    let (rows, shape) = (u64::from(op.rows.total()), op.cache.shape());
    let heads = u64::from(op.heads);
    Cost {
        cache_bytes: seen.cached_tokens * token_bytes(op.cache),
        input_bytes: words(rows * heads, shape.key)
            + rows * META_WORDS * WORD
            + words(op.table_rows.into(), op.table_width),
        output_bytes: words(rows * heads, shape.value),
        flops: 2 * seen.row_tokens * heads * u64::from(shape.key + shape.value),
        ..Cost::default()
    }
}

/// Latents count once; what they are expanded to stays within the op.
pub(super) fn expanded_attention<B: DeviceBuffer>(op: &ExpandedAttention<'_, B>) -> Cost {
    let (dims, heads) = (&op.dims, u64::from(op.dims.heads));
    let each = op.sequences.iter().map(|piece| {
        let (rows, context) = (u64::from(piece.rows), u64::from(piece.context()));
        let first = u64::from(piece.first_position);
        // Tokens that the rows see, all together.
        let row_tokens = rows * first + rows * (rows + 1) / 2;
        let expanding = context * heads * u64::from(dims.head_rows()) * u64::from(dims.latent);
        let attending = row_tokens * heads * u64::from(dims.nope + dims.rope + dims.v);
        Cost {
            cache_bytes: context * token_bytes(op.cache),
            input_bytes: words(rows * heads, dims.nope + dims.rope)
                + words(rows, dims.rope)
                + rows * META_WORDS * WORD,
            output_bytes: words(rows * heads, dims.v),
            flops: 2 * (expanding + attending),
            ..Cost::default()
        }
    });
    let weights = Cost {
        weight_bytes: matrix(op.wkv_b),
        ..Cost::default()
    };
    each.fold(weights, Cost::and)
}

pub(super) fn values<B: DeviceBuffer>(op: &Values<'_, B>) -> Cost {
    let (rows, dims) = (u64::from(op.rows.total()), &op.dims);
    let heads = u64::from(dims.heads);
    Cost {
        weight_bytes: matrix(op.wkv_b) / u64::from(dims.head_rows()) * u64::from(dims.v),
        input_bytes: words(rows * heads, dims.latent),
        output_bytes: words(rows * heads, dims.v),
        flops: 2 * rows * heads * u64::from(dims.v) * u64::from(dims.latent),
        ..Cost::default()
    }
}

pub(super) fn route<B: DeviceBuffer>(op: &Route<'_, B>) -> Cost {
    let rows = u64::from(op.rows.total());
    Cost {
        // Ids and weights; the logits stay within the op.
        output_bytes: 2 * words(rows, op.top_k),
        ..product(rows, op.gate)
    }
}

pub(super) fn experts<B: DeviceBuffer>(op: &Experts<'_, B>, seen: &Seen) -> Cost {
    let (rows, layout) = (u64::from(op.rows.total()), op.bank.layout());
    let pairs = rows * u64::from(op.top_k);
    Cost {
        weight_bytes: u64::from(seen.experts) * layout.bytes,
        input_bytes: words(rows, layout.dim) + words(rows, op.top_k),
        output_bytes: words(pairs, layout.dim),
        flops: 6 * pairs * u64::from(layout.dim) * u64::from(layout.hidden),
        ..Cost::default()
    }
}

pub(super) fn combine<B: DeviceBuffer>(op: &Combine<'_, B>) -> Cost {
    let rows = u64::from(op.rows.total());
    let row = words(rows, op.dim);
    Cost {
        input_bytes: u64::from(op.top_k) * row + words(rows, op.top_k) + 2 * row,
        output_bytes: row,
        ..Cost::default()
    }
}

pub(super) fn sample<B: DeviceBuffer>(op: &Sample<'_, B>) -> Cost {
    let rows = u64::from(op.rows);
    Cost {
        input_bytes: words(rows, op.vocab) + rows * size_of::<crate::ops::SampleParams>() as u64,
        output_bytes: SampleResult::bytes(op.rows),
        ..Cost::default()
    }
}
