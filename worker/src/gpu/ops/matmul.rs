//! Matrix times rows: linear layers, the gated half of a feed-forward, the value half of latent attention.
//!
//! Rows of both roles go through the same kernel. Tiles hold one row where there is one row only, else several; a row's
//! sum is the same in both.

use super::units;
use crate::gpu::backend::{GpuBackend, MAX_WORKGROUPS};
use crate::gpu::memory::GpuBuffer;
use crate::gpu::pipelines::{Kernel, Variant};
use crate::ops::{GateUp, Linear, Matrix, MatrixPart, OpError, Values};

/// Immediates of the matrix kernels, as in `shared/tile.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct Params {
    pub(super) rows: u32,
    pub(super) chunks: u32,
    pub(super) in_stride: u32,
    pub(super) in_group: u32,
    pub(super) in_first: u32,
    pub(super) weight_group: u32,
    pub(super) out_group: u32,
    pub(super) out_stride: u32,
    pub(super) out_first: u32,
    pub(super) count: u32,
    pub(super) first: u32,
    pub(super) weight: u32,
    pub(super) scale: u32,
    pub(super) weight2: u32,
    pub(super) scale2: u32,
    pub(super) add: u32,
    pub(super) record: u32,
    pub(super) bank_first: u32,
    pub(super) part_first: u32,
    pub(super) part_end: u32,
    pub(super) experts: u32,
    pub(super) pairs_per_row: u32,
}

/// Columns of a chunk, and 16-byte units of one row.
const CHUNK_COLS: u32 = 16;

/// 16-byte units to a row of a part.
fn row_units(matrix: &Matrix<GpuBuffer>, part: &MatrixPart<GpuBuffer>, row: u32) -> u32 {
    let row_bytes = matrix.format().row_bytes(matrix.cols());
    units(part.offset + u64::from(row) * row_bytes, 16)
}

/// The buffer and word offset of a scale table. For formats without one any buffer will do: it is not read.
fn scales<'a>(matrix: &'a Matrix<GpuBuffer>, part: &'a MatrixPart<GpuBuffer>) -> (&'a GpuBuffer, u32) {
    match matrix.scales() {
        Some(scales) => (&scales.buffer, units(scales.offset, 4)),
        None => (&part.buffer, 0),
    }
}

/// The kernel for so many rows.
fn variant(backend: &GpuBackend, matrix: &Matrix<GpuBuffer>, rows: u32) -> Variant {
    Variant {
        format: matrix.format(),
        grouped: false,
        rows: backend.tuning().tile_rows(rows),
    }
}

/// Ranges of `count` outputs that one dispatch can take, at so many a workgroup: start and length.
pub(super) fn spans(count: u32, outputs: u32) -> impl Iterator<Item = (u32, u32)> {
    let step = MAX_WORKGROUPS.saturating_mul(outputs);
    let starts = (0..count).step_by(step as usize);
    starts.map(move |start| (start, step.min(count - start)))
}

pub(in crate::gpu) fn linear(backend: &mut GpuBackend, op: &Linear<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let (rows, matrix) = (op.rows.total(), op.weight);
    let variant = variant(backend, matrix, rows);
    let outputs = backend.tuning().linear_outputs();
    for part in matrix.parts() {
        let (scale_buffer, scale) = scales(matrix, part);
        for (start, count) in spans(part.rows.end - part.rows.start, outputs) {
            let first = part.rows.start + start;
            let params = Params {
                rows,
                chunks: matrix.cols() / CHUNK_COLS,
                in_stride: matrix.cols() / 4,
                out_stride: matrix.rows(),
                out_first: first,
                count,
                first,
                weight: row_units(matrix, part, start),
                scale,
                add: op.add.into(),
                ..Params::default()
            };
            let buffers = [
                op.input,
                &part.buffer,
                scale_buffer,
                op.input,
                op.input,
                op.output,
            ];
            let kernel = Kernel::Linear(variant);
            let groups = [rows.div_ceil(variant.rows), count.div_ceil(outputs), 1];
            backend.dispatch(kernel, &buffers, &params, groups)?;
        }
    }
    Ok(())
}

pub(in crate::gpu) fn gate_up(backend: &mut GpuBackend, op: &GateUp<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let (rows, outputs) = (op.rows.total(), backend.tuning().gate_up_outputs());
    let variant = variant(backend, op.w1, rows);
    for (gate, up) in op.w1.parts().iter().zip(op.w3.parts()) {
        let (gate_scales, scale) = scales(op.w1, gate);
        let (up_scales, scale2) = scales(op.w3, up);
        for (start, count) in spans(gate.rows.end - gate.rows.start, outputs) {
            let first = gate.rows.start + start;
            let params = Params {
                rows,
                chunks: op.w1.cols() / CHUNK_COLS,
                in_stride: op.w1.cols() / 4,
                out_stride: op.w1.rows(),
                out_first: first,
                count,
                first,
                weight: row_units(op.w1, gate, start),
                scale,
                weight2: row_units(op.w3, up, start),
                scale2,
                ..Params::default()
            };
            let buffers = [
                op.input,
                &gate.buffer,
                &up.buffer,
                gate_scales,
                up_scales,
                op.input,
                op.input,
                op.output,
            ];
            let kernel = Kernel::GateUp(variant);
            let groups = [rows.div_ceil(variant.rows), count.div_ceil(outputs), 1];
            backend.dispatch(kernel, &buffers, &params, groups)?;
        }
    }
    Ok(())
}

pub(in crate::gpu) fn values(backend: &mut GpuBackend, op: &Values<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let (rows, dims, matrix) = (op.rows.total(), &op.dims, op.wkv_b);
    let variant = variant(backend, matrix, rows);
    let outputs = backend.tuning().linear_outputs();
    for part in matrix.parts() {
        let (scale_buffer, scale) = scales(matrix, part);
        let head = part.rows.start / dims.head_rows();
        // A part may end within a head only where it is the last; the matrix has whole heads.
        let heads = (part.rows.end - part.rows.start) / dims.head_rows();
        for (start, count) in spans(dims.v, outputs) {
            let params = Params {
                rows,
                chunks: dims.latent / CHUNK_COLS,
                in_stride: dims.heads * dims.latent / 4,
                in_group: dims.latent / 4,
                in_first: head * dims.latent / 4,
                weight_group: dims.head_rows(),
                out_group: dims.v,
                out_stride: dims.heads * dims.v,
                out_first: head * dims.v + start,
                count,
                first: part.rows.start + dims.nope + start,
                weight: row_units(matrix, part, dims.nope + start),
                scale,
                ..Params::default()
            };
            let buffers = [
                op.input,
                &part.buffer,
                scale_buffer,
                op.input,
                op.input,
                op.output,
            ];
            let kernel = Kernel::Linear(variant);
            let groups = [rows.div_ceil(variant.rows), count.div_ceil(outputs), heads];
            backend.dispatch(kernel, &buffers, &params, groups)?;
        }
    }
    Ok(())
}
