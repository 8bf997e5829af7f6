//! Attention: splits of the sequences first, then, where a sequence has several, their merging.
//!
//! Partials of splits lie in memory of a fixed size: rows, and where one row has too many splits its heads, are taken in
//! pieces. No piece changes what a row's result is made of.

use std::ops::Range;

use crate::gpu::backend::GpuBackend;
use crate::gpu::kernel::Kernel;
use crate::gpu::memory::GpuBuffer;
use crate::gpu::tuning::Tuning;
use crate::ops::{Attention, OpError};

/// Widest value that the kernels sum: four columns for each lane of `attention.wgsl`.
const MAX_VALUE: u32 = 512;

/// Immediates of `attention.wgsl`, `attention_subgroup.wgsl` and `attention_merge.wgsl`.
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
    split: u32,
    first_row: u32,
    first_tile: u32,
    first_head: u32,
    piece_heads: u32,
    splits: u32,
}

/// Rows and tiles of heads whose splits are in memory together.
struct Piece {
    rows: Range<u32>,
    tiles: Range<u32>,
}

pub(in crate::gpu) fn record(backend: &mut GpuBackend, op: &Attention<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let (shape, tuning) = (op.cache.shape(), *backend.tuning());
    if shape.value > MAX_VALUE {
        let detail = format!(
            "values are {} wide, at most {MAX_VALUE} are supported",
            shape.value
        );
        return Err(OpError::shape("attention", detail));
    }
    let group = op.heads / shape.heads;
    let blocks = Tuning::attention_blocks(group);
    let kernel = Kernel::Attention {
        blocks,
        cached: shape.format,
    };
    let tiles = group.div_ceil(4 * blocks);
    let reach = op.table_width.saturating_mul(shape.block_tokens);
    let split = tuning.attention_split(blocks);
    let splits = reach.div_ceil(split);
    backend.check_rounds("attention", rounds(&tuning, op, blocks))?;
    backend.check_rounds("attention", merge_rounds(&tuning, op, splits))?;
    let all = Params {
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
        reach,
        scale: op.scale,
        split,
        first_row: 0,
        first_tile: 0,
        first_head: 0,
        piece_heads: op.heads,
        splits,
    };
    // Where the heads of a tile begin; after the last tile, their number.
    let head = |tile: u32| tile / tiles * group + tile % tiles * 4 * blocks;
    for piece in pieces(op, shape.heads * tiles, 4 * blocks, splits)? {
        let first_head = head(piece.tiles.start);
        let params = Params {
            first_row: piece.rows.start,
            first_tile: piece.tiles.start,
            first_head,
            piece_heads: head(piece.tiles.end) - first_head,
            ..all
        };
        let rows = piece.rows.end - piece.rows.start;
        let inputs = [op.queries, op.meta, op.tables, op.cache.buffer()];
        let buffers = [inputs[0], inputs[1], inputs[2], inputs[3], op.output, op.partials];
        let groups = [piece.tiles.end - piece.tiles.start, rows, splits];
        backend.dispatch(kernel, &buffers, &params, groups)?;
        if splits > 1 {
            let buffers = [op.meta, op.partials, op.output];
            backend.dispatch(
                Kernel::AttentionMerge,
                &buffers,
                &params,
                [params.piece_heads, rows, 1],
            )?;
        }
    }
    Ok(())
}

/// Cuts the call so that the partials of a piece fit: all rows and heads where no row has several splits.
fn pieces(
    op: &Attention<'_, GpuBuffer>,
    tiles: u32,
    tile_heads: u32,
    splits: u32,
) -> Result<Vec<Piece>, OpError> {
    let rows = op.rows.total();
    if splits == 1 {
        let (rows, tiles) = (0..rows, 0..tiles);
        return Ok(vec![Piece { rows, tiles }]);
    }
    let held = op.partials_held();
    let of_row = u64::from(splits) * u64::from(op.heads);
    if held >= of_row {
        let step = u32::try_from(held / of_row).unwrap_or(u32::MAX);
        let starts = (0..rows).step_by(step as usize);
        let piece = |start: u32| Piece {
            rows: start..rows.min(start.saturating_add(step)),
            tiles: 0..tiles,
        };
        return Ok(starts.map(piece).collect());
    }
    let of_tile = u64::from(splits) * u64::from(tile_heads);
    let step = u32::try_from(held / of_tile).unwrap_or(u32::MAX);
    if step == 0 {
        return Err(op.too_few_partials(of_tile));
    }
    let pieces = (0..rows).flat_map(|row| {
        let starts = (0..tiles).step_by(step as usize);
        starts.map(move |start| Piece {
            rows: row..row + 1,
            tiles: start..tiles.min(start.saturating_add(step)),
        })
    });
    Ok(pieces.collect())
}

/// Rounds of the loops of a lane for a whole split, if no loop is written out.
fn rounds(tuning: &Tuning, op: &Attention<'_, GpuBuffer>, blocks: u32) -> u64 {
    let shape = op.cache.shape();
    let (key, value) = (u64::from(shape.key / 4), u64::from(shape.value / 4));
    let split = u64::from(tuning.attention_split(blocks));
    if tuning.shares_loads {
        let blocks = u64::from(blocks);
        // Tokens in sixteens, groups of columns in twos; then tokens in eights, and so for every sixteen groups of columns,
        // eight tokens one after the other.
        let score = split / 16 * (1 + blocks + key / 2 * (1 + blocks));
        let attend = split / 8 * (1 + 9 * blocks);
        return blocks + score + split / 8 * (1 + blocks) + value.div_ceil(16) * (1 + blocks + attend);
    }
    let tile = u64::from(tuning.attention_tile(blocks));
    let chunk = u64::from(tuning.attention_chunk(blocks));
    let blocks = u64::from(blocks);
    let lanes = u64::from(tuning.lanes_attention);
    let of_chunk = 1 + (tile * chunk).div_ceil(lanes) + chunk;
    let of_tile = 1 + key.div_ceil(chunk) * of_chunk + 16 + tile * (1 + blocks);
    split / tile * of_tile + 16 + blocks * (1 + lanes)
}

/// As [`rounds`], of the merging.
fn merge_rounds(tuning: &Tuning, op: &Attention<'_, GpuBuffer>, splits: u32) -> u64 {
    let quads = u64::from(op.cache.shape().value / 4);
    u64::from(splits) * (1 + quads.div_ceil(tuning.lanes_attention.into()))
}
