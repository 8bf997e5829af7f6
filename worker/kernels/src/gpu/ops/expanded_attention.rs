//! Expanded attention: queries are turned; then, tile by tile of a sequence's context, latents are gathered from the cache,
//! expanded by the kernels of any linear layer, and attended to.

use tramontane_model::footprint::EXPANDED_TOKENS;

use super::matmul;
use crate::gpu::backend::GpuBackend;
use crate::gpu::kernel::Kernel;
use crate::gpu::memory::GpuBuffer;
use crate::gpu::tuning::Tuning;
use crate::ops::{ExpandedAttention, Linear, OpError, PromptRows, Rows};

/// Widest value that the kernels sum: four columns for each lane of `expanded_attention.wgsl`.
const MAX_VALUE: u32 = 512;

/// Immediates of `expanded_attention.wgsl` and `expanded_attention_subgroup.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct Params {
    heads: u32,
    nope: u32,
    rope: u32,
    value: u32,
    first_row: u32,
    rows: u32,
    first_position: u32,
    first_token: u32,
    tokens: u32,
    most_tokens: u32,
    first_rope: u32,
    scale: f32,
}

/// Immediates of `expand_gather.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct GatherParams {
    latent: u32,
    rope: u32,
    first_rope: u32,
    first_token: u32,
    table: u32,
    block_bits: u32,
    blocks: u32,
}

/// Immediates of `turn_queries.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct TurnParams {
    first_row: u32,
    width: u32,
    nope: u32,
    rope: u32,
}

pub(in crate::gpu) fn record(
    backend: &mut GpuBackend,
    op: &ExpandedAttention<'_, GpuBuffer>,
) -> Result<(), OpError> {
    op.check()?;
    let dims = &op.dims;
    if dims.v > MAX_VALUE {
        let detail = format!("values are {} wide, at most {MAX_VALUE} are supported", dims.v);
        return Err(OpError::shape("expanded_attention", detail));
    }
    for piece in op.sequences {
        turn(backend, op, piece)?;
        for first_token in (0..piece.context()).step_by(EXPANDED_TOKENS as usize) {
            let tokens = EXPANDED_TOKENS.min(piece.context() - first_token);
            gather(backend, op, piece, (first_token, tokens))?;
            matmul::linear(
                backend,
                &Linear {
                    input: &op.scratch.latents,
                    weight: op.wkv_b,
                    output: &op.scratch.keys_values,
                    add: false,
                    rows: Rows::new(0, tokens),
                },
            )?;
            attend(backend, op, piece, (first_token, tokens))?;
        }
    }
    Ok(())
}

fn turn(
    backend: &mut GpuBackend,
    op: &ExpandedAttention<'_, GpuBuffer>,
    piece: &PromptRows,
) -> Result<(), OpError> {
    let dims = &op.dims;
    let params = TurnParams {
        first_row: piece.first_row,
        width: dims.heads * (dims.nope + dims.rope) / 4,
        nope: dims.nope / 4,
        rope: dims.rope / 4,
    };
    let columns = params.width.div_ceil(backend.tuning().lanes_each);
    let buffers = [op.input, op.rotary, op.meta, op.queries];
    backend.dispatch(Kernel::TurnQueries, &buffers, &params, [columns, piece.rows, 1])
}

/// Where the keys' rotated parts begin in the expanded tile, in fours.
fn first_rope(op: &ExpandedAttention<'_, GpuBuffer>) -> u32 {
    EXPANDED_TOKENS * op.dims.heads * op.dims.head_rows() / 4
}

fn gather(
    backend: &mut GpuBackend,
    op: &ExpandedAttention<'_, GpuBuffer>,
    piece: &PromptRows,
    (first_token, tokens): (u32, u32),
) -> Result<(), OpError> {
    let shape = op.cache.shape();
    let params = GatherParams {
        latent: op.dims.latent / 4,
        rope: op.dims.rope / 4,
        first_rope: first_rope(op),
        first_token,
        table: piece.table * op.table_width,
        block_bits: shape.block_tokens.trailing_zeros(),
        blocks: shape.blocks,
    };
    let scratch = op.scratch;
    let buffers = [
        op.tables,
        op.cache.buffer(),
        &scratch.latents,
        &scratch.keys_values,
    ];
    let kernel = Kernel::ExpandGather { cached: shape.format };
    backend.dispatch(kernel, &buffers, &params, [tokens, 1, 1])
}

fn attend(
    backend: &mut GpuBackend,
    op: &ExpandedAttention<'_, GpuBuffer>,
    piece: &PromptRows,
    (first_token, tokens): (u32, u32),
) -> Result<(), OpError> {
    let (dims, tuning) = (&op.dims, *backend.tuning());
    let blocks = tuning.expanded_blocks(piece.rows);
    backend.check_rounds("expanded_attention", rounds(&tuning, op, blocks))?;
    let params = Params {
        heads: dims.heads,
        nope: dims.nope / 4,
        rope: dims.rope / 4,
        value: dims.v / 4,
        first_row: piece.first_row,
        rows: piece.rows,
        first_position: piece.first_position,
        first_token,
        tokens,
        most_tokens: EXPANDED_TOKENS,
        first_rope: first_rope(op),
        scale: op.scale,
    };
    let scratch = op.scratch;
    let buffers = [op.queries, &scratch.keys_values, op.output, &scratch.state];
    let groups = [dims.heads, piece.rows.div_ceil(4 * blocks), 1];
    backend.dispatch(Kernel::ExpandedAttention { blocks }, &buffers, &params, groups)
}

/// Rounds of the loops of a lane for a whole tile, if no loop is written out.
fn rounds(tuning: &Tuning, op: &ExpandedAttention<'_, GpuBuffer>, blocks: u32) -> u64 {
    let (dims, tokens) = (&op.dims, u64::from(EXPANDED_TOKENS));
    let key = u64::from((dims.nope + dims.rope) / 4);
    let value = u64::from(dims.v / 4);
    let (tile, chunk) = (tuning.attention_tile(blocks), tuning.attention_chunk(blocks));
    let (tile, chunk) = (u64::from(tile), u64::from(chunk));
    let (lanes, blocks) = (u64::from(tuning.lanes_attention), u64::from(blocks));
    if tuning.shares_loads {
        // As in attention.
        let score = tokens / 16 * (1 + blocks + key / 2 * (1 + blocks));
        let attend = tokens / 8 * (1 + 9 * blocks);
        return blocks + score + tokens / 8 * (1 + blocks) + value.div_ceil(16) * (1 + blocks + attend);
    }
    let of_chunk = 1 + (tile * chunk).div_ceil(lanes) + chunk;
    let of_tile = 5 + (key.div_ceil(chunk) + 1) * of_chunk + 16 + tile * (1 + blocks);
    tokens / tile * of_tile + 16 + blocks * (1 + lanes)
}
