//! Routed experts: pairs are grouped by expert on the device, then both halves run on the groups.
//!
//! Tiles are of one expert each, and of one role where given rows have kernels of their own: the plan is then made twice.
//! Dispatches are as many as tiles there could be.

use super::matmul::{Params, chunks, scale_strides, spans};
use super::shares::{Share, Way, shares};
use super::{row_factors, units};
use crate::gpu::backend::GpuBackend;
use crate::gpu::kernel::Kernel;
use crate::gpu::memory::GpuBuffer;
use crate::gpu::tuning::Tuning;
use crate::ops::{BankPart, COLS_ALIGN, Experts, MAX_EXPERTS, OpError, WeightFormat};

/// Immediates of `group_experts.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct GroupParams {
    pairs: u32,
    first_pair: u32,
    first: u32,
    experts: u32,
    tile_rows: u32,
}

pub(in crate::gpu) fn record(backend: &mut GpuBackend, op: &Experts<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    // Fewer than 2^32, as `check` has seen.
    op.pairs()?;
    let experts = op.bank.experts().end - op.bank.experts().start;
    if experts > MAX_EXPERTS {
        let detail = format!("{experts} experts in one bank, at most {MAX_EXPERTS} can be");
        return Err(OpError::shape("experts", detail));
    }
    for rows in shares(backend.tuning(), op.rows) {
        record_share(backend, op, rows, experts)?;
    }
    Ok(())
}

/// The pairs of some rows.
fn record_share(
    backend: &mut GpuBackend,
    op: &Experts<'_, GpuBuffer>,
    rows: Share,
    experts: u32,
) -> Result<(), OpError> {
    let (bank, layout, pairs) = (op.bank, op.bank.layout(), rows.times(op.top_k));
    let tile_rows = pairs.pair_rows(backend.tuning(), experts, layout.dim.min(2 * layout.hidden));
    let group = GroupParams {
        pairs: pairs.rows,
        first_pair: pairs.first,
        first: bank.experts().start,
        experts,
        tile_rows,
    };
    backend.dispatch(
        Kernel::GroupExperts,
        &[op.ids, &op.scratch.plan],
        &group,
        [1, 1, 1],
    )?;
    let way = pairs.grouped(backend.tuning(), layout.up_format, tile_rows);
    let factors = factors(backend, way, op.input, layout.dim, rows)?;
    for part in bank.parts() {
        gate_up(backend, op, part, (way, pairs.rows), &factors)?;
    }
    let way = pairs.grouped(backend.tuning(), layout.down_format, tile_rows);
    let factors = self::factors(backend, way, &op.scratch.hidden, layout.hidden, pairs)?;
    for part in bank.parts() {
        down(backend, op, part, (way, pairs.rows), &factors)?;
    }
    Ok(())
}

/// The factors of a share's rows of the input, at the places of the rows, where they are rounded; else any buffer, which is
/// not read.
fn factors(
    backend: &mut GpuBackend,
    way: Way,
    input: &GpuBuffer,
    cols: u32,
    rows: Share,
) -> Result<GpuBuffer, OpError> {
    match way.rounds_rows() {
        true => row_factors::record(backend, input, cols, (rows.first, rows.rows), rows.first),
        false => Ok(input.clone()),
    }
}

/// What both halves have in common: of one or two matrices of `[.., cols]` in this format.
fn params(
    tuning: &Tuning,
    op: &Experts<'_, GpuBuffer>,
    part: &BankPart<GpuBuffer>,
    pairs: u32,
    format: WeightFormat,
    cols: u32,
) -> Params {
    let (bank, record) = (op.bank.experts(), op.bank.layout().bytes);
    let (scale_stride, scale_step) = scale_strides(format, cols);
    Params {
        rows: pairs,
        chunks: cols / COLS_ALIGN,
        run: tuning.run_chunks(format, cols),
        in_stride: cols / 4,
        scale_stride,
        scale_step,
        record: chunks(format, record),
        record_words: scale_words(format, record),
        bank_first: bank.start,
        part_first: part.experts.start,
        part_end: part.experts.end,
        experts: bank.end - bank.start,
        ..Params::default()
    }
}

/// A byte offset of scales, in words; 0 for formats without them, whose kernels read a word that they do not use.
fn scale_words(format: WeightFormat, offset: u64) -> u32 {
    match format.scale_bytes(1, COLS_ALIGN) {
        0 => 0,
        _ => units(offset, 4),
    }
}

/// Most tiles that there can be: an expert's last one may not be full. Beyond those there are, workgroups end at once.
fn tiles(pairs: u32, experts: u32, way: Way) -> u32 {
    match way.rows() {
        1 => pairs,
        rows => pairs / rows + experts.min(pairs),
    }
}

fn gate_up(
    backend: &mut GpuBackend,
    op: &Experts<'_, GpuBuffer>,
    part: &BankPart<GpuBuffer>,
    (way, pairs): (Way, u32),
    factors: &GpuBuffer,
) -> Result<(), OpError> {
    let (layout, outputs) = (op.bank.layout(), way.gate_up_outputs(backend.tuning()));
    let format = layout.up_format;
    let row_bytes = format.row_bytes(layout.dim);
    for (start, count) in spans(layout.hidden, outputs) {
        let skipped = part.offset + u64::from(start) * row_bytes;
        let params = Params {
            out_stride: layout.hidden,
            out_first: start,
            count,
            first: start,
            weight: chunks(format, layout.w1 + skipped),
            scale: scale_words(format, part.offset + layout.s1),
            weight2: chunks(format, layout.w3 + skipped),
            scale2: scale_words(format, part.offset + layout.s3),
            pairs_per_row: op.top_k,
            ..params(backend.tuning(), op, part, pairs, format, layout.dim)
        };
        let weights = &part.buffer;
        let buffers = [
            op.input,
            weights,
            weights,
            weights,
            weights,
            &op.scratch.plan,
            way.last_read(op.ids, factors),
            &op.scratch.hidden,
        ];
        let groups = [
            tiles(pairs, op.bank.experts().len() as u32, way),
            way.columns(start, 0, count, outputs),
            1,
        ];
        backend.dispatch(way.gate_up(), &buffers, &params, groups)?;
    }
    Ok(())
}

fn down(
    backend: &mut GpuBackend,
    op: &Experts<'_, GpuBuffer>,
    part: &BankPart<GpuBuffer>,
    (way, pairs): (Way, u32),
    factors: &GpuBuffer,
) -> Result<(), OpError> {
    let (layout, outputs) = (op.bank.layout(), way.linear_outputs(backend.tuning()));
    let format = layout.down_format;
    let row_bytes = format.row_bytes(layout.hidden);
    for (start, count) in spans(layout.dim, outputs) {
        let params = Params {
            out_stride: layout.dim,
            out_first: start,
            count,
            first: start,
            weight: chunks(format, part.offset + layout.w2 + u64::from(start) * row_bytes),
            scale: scale_words(format, part.offset + layout.s2),
            pairs_per_row: 1,
            ..params(backend.tuning(), op, part, pairs, format, layout.hidden)
        };
        let buffers = [
            &op.scratch.hidden,
            &part.buffer,
            &part.buffer,
            &op.scratch.plan,
            way.last_read(op.ids, factors),
            op.output,
        ];
        let groups = [
            tiles(pairs, op.bank.experts().len() as u32, way),
            way.columns(start, 0, count, outputs),
            1,
        ];
        backend.dispatch(way.linear(), &buffers, &params, groups)?;
    }
    Ok(())
}
