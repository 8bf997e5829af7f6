//! Routed experts: pairs are grouped by expert on the device, then both halves run on the groups.
//!
//! Tiles are of one expert each. Dispatches are as many as tiles there could be.

use super::matmul::{Params, spans};
use super::units;
use crate::gpu::backend::GpuBackend;
use crate::gpu::memory::GpuBuffer;
use crate::gpu::pipelines::{Kernel, Variant};
use crate::ops::{BankPart, Experts, MAX_EXPERTS, OpError};

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
    let variant = Variant {
        format: bank.layout().format,
        grouped: true,
        rows: tile_rows,
    };
    for part in bank.parts() {
        gate_up(backend, op, part, variant, pairs)?;
    }
    for part in bank.parts() {
        down(backend, op, part, variant, pairs)?;
    }
    Ok(())
}

/// What both halves have in common.
fn params(op: &Experts<'_, GpuBuffer>, part: &BankPart<GpuBuffer>, pairs: u32) -> Params {
    let bank = op.bank.experts();
    Params {
        rows: pairs,
        record: units(op.bank.layout().bytes, 16),
        bank_first: bank.start,
        part_first: part.experts.start,
        part_end: part.experts.end,
        experts: bank.end - bank.start,
        ..Params::default()
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
    let row_bytes = layout.format.row_bytes(layout.dim);
    for (start, count) in spans(layout.hidden, outputs) {
        let skipped = part.offset + u64::from(start) * row_bytes;
        let params = Params {
            chunks: layout.dim / 16,
            in_stride: layout.dim / 4,
            out_stride: layout.hidden,
            out_first: start,
            count,
            first: start,
            weight: units(layout.w1 + skipped, 16),
            scale: units(part.offset + layout.s1, 4),
            weight2: units(layout.w3 + skipped, 16),
            scale2: units(part.offset + layout.s3, 4),
            pairs_per_row: op.top_k,
            ..params(op, part, pairs)
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
    let row_bytes = layout.format.row_bytes(layout.hidden);
    for (start, count) in spans(layout.dim, outputs) {
        let params = Params {
            chunks: layout.hidden / 16,
            in_stride: layout.hidden / 4,
            out_stride: layout.dim,
            out_first: start,
            count,
            first: start,
            weight: units(part.offset + layout.w2 + u64::from(start) * row_bytes, 16),
            scale: units(part.offset + layout.s2, 4),
            pairs_per_row: 1,
            ..params(op, part, pairs)
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
