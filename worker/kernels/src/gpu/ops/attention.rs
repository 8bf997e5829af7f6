//! Attention: one workgroup per row and four heads that share keys and values, or eight where values are small.

use crate::gpu::backend::GpuBackend;
use crate::gpu::memory::GpuBuffer;
use crate::gpu::pipelines::Kernel;
use crate::gpu::tuning::Tuning;
use crate::ops::{Attention, OpError};

/// Widest value that the kernel's workgroup memory holds for four heads: 4 x `MAX_QUADS` of `attention.wgsl`.
const MAX_VALUE: u32 = 512;
/// Widest value of the variant for small ones, of `attention_subgroup.wgsl`.
const SMALL_VALUE: u32 = 64;

/// Immediates of `attention.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct Params {
    heads: u32,
    group: u32,
    tiles: u32,
    key: u32,
    value: u32,
    width: u32,
    first_value: u32,
    table_width: u32,
    table_rows: u32,
    block_bits: u32,
    blocks: u32,
    reach: u32,
    scale: f32,
}

pub(in crate::gpu) fn record(backend: &mut GpuBackend, op: &Attention<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let shape = op.cache.shape();
    if shape.value > MAX_VALUE {
        let detail = format!(
            "values are {} wide, at most {MAX_VALUE} are supported",
            shape.value
        );
        return Err(OpError::shape("attention", detail));
    }
    let group = op.heads / shape.heads;
    let small = backend.tuning().shares_loads && shape.value <= SMALL_VALUE && group > 4;
    backend.check_rounds("attention", rounds(backend.tuning(), op))?;
    let tiles = group.div_ceil(if small { 8 } else { 4 });
    let params = Params {
        heads: op.heads,
        group,
        tiles,
        key: shape.key / 4,
        value: shape.value / 4,
        width: shape.width() / 4,
        first_value: shape.first_value() / 4,
        table_width: op.table_width,
        table_rows: op.table_rows,
        block_bits: shape.block_tokens.trailing_zeros(),
        blocks: shape.blocks,
        reach: op.table_width.saturating_mul(shape.block_tokens),
        scale: op.scale,
    };
    let buffers = [op.queries, op.meta, op.tables, op.cache.buffer(), op.output];
    let groups = [shape.heads * tiles, op.rows.total(), 1];
    backend.dispatch(Kernel::Attention { small }, &buffers, &params, groups)
}

/// Rounds of the loops of a lane for the longest sequence that the tables of the call can hold.
fn rounds(tuning: &Tuning, op: &Attention<'_, GpuBuffer>) -> u64 {
    let shape = op.cache.shape();
    let tokens = u64::from(op.table_width) * u64::from(shape.block_tokens);
    let (lanes, key, value) = (
        u64::from(tuning.lanes_attention),
        u64::from(shape.key / 4),
        u64::from(shape.value / 4),
    );
    let values = value.div_ceil(lanes);
    let of_tile = match tuning.shares_loads {
        // Two groups of columns at a time; the tokens of a tile are written out.
        true => 1 + key / 2 + values,
        false => 1 + key + 2 * lanes + values * (1 + lanes),
    };
    tokens.div_ceil(lanes) * of_tile + 4 * values
}
