//! Routed experts: pairs are grouped by expert on the device, then both halves run on the groups.
//!
//! Tiles are of one expert each. Dispatches are as many as tiles there could be.

use super::matmul::{Params, chunks, scale_strides, spans};
use super::units;
use crate::gpu::backend::GpuBackend;
use crate::gpu::memory::GpuBuffer;
use crate::gpu::pipelines::{Codes, Kernel, Variant};
use crate::gpu::tuning::Tuning;
use crate::ops::{BankPart, COLS_ALIGN, Experts, MAX_EXPERTS, OpError, WeightFormat};

/// Immediates of `group_experts.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct GroupParams {
    pairs: u32,
    first: u32,
    experts: u32,
    tile_rows: u32,
}

pub(in crate::gpu) fn record(backend: &mut GpuBackend, op: &Experts<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let (pairs, bank) = (op.pairs()?, op.bank);
    let experts = bank.experts().end - bank.experts().start;
    if experts > MAX_EXPERTS {
        let detail = format!("{experts} experts in one bank, at most {MAX_EXPERTS} can be");
        return Err(OpError::shape("experts", detail));
    }
    if pairs == 0 {
        return Ok(());
    }
    let tile_rows = backend.tuning().pair_rows(pairs, experts);
    let group = GroupParams {
        pairs,
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
    let variant = |format| Variant {
        codes: Codes::of(format),
        grouped: true,
        rows: tile_rows,
    };
    for part in bank.parts() {
        gate_up(backend, op, part, variant(bank.layout().up_format), pairs)?;
    }
    for part in bank.parts() {
        down(backend, op, part, variant(bank.layout().down_format), pairs)?;
    }
    Ok(())
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
fn tiles(pairs: u32, experts: u32, variant: Variant) -> u32 {
    match variant.rows {
        1 => pairs,
        rows => pairs / rows + experts.min(pairs),
    }
}

fn gate_up(
    backend: &mut GpuBackend,
    op: &Experts<'_, GpuBuffer>,
    part: &BankPart<GpuBuffer>,
    variant: Variant,
    pairs: u32,
) -> Result<(), OpError> {
    let (layout, outputs) = (op.bank.layout(), backend.tuning().gate_up_outputs());
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
            op.ids,
            &op.scratch.hidden,
        ];
        let groups = [
            tiles(pairs, op.bank.experts().len() as u32, variant),
            count.div_ceil(outputs),
            1,
        ];
        backend.dispatch(Kernel::GateUp(variant), &buffers, &params, groups)?;
    }
    Ok(())
}

fn down(
    backend: &mut GpuBackend,
    op: &Experts<'_, GpuBuffer>,
    part: &BankPart<GpuBuffer>,
    variant: Variant,
    pairs: u32,
) -> Result<(), OpError> {
    let (layout, outputs) = (op.bank.layout(), backend.tuning().linear_outputs());
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
            op.ids,
            op.output,
        ];
        let groups = [
            tiles(pairs, op.bank.experts().len() as u32, variant),
            count.div_ceil(outputs),
            1,
        ];
        backend.dispatch(Kernel::Linear(variant), &buffers, &params, groups)?;
    }
    Ok(())
}
