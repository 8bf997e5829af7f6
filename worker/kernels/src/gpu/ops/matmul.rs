//! Matrix times rows: linear layers, the gated half of a feed-forward, the value half of latent attention.
//!
//! Rows of both roles go through the same kernel. Tiles hold one row where there is one row only, else several; a row's
//! sum is the same in both.

use super::units;
use crate::gpu::backend::{GpuBackend, MAX_WORKGROUPS};
use crate::gpu::memory::GpuBuffer;
use crate::gpu::pipelines::{Codes, Kernel, Variant};
use crate::ops::{COLS_ALIGN, FP8_BLOCK, GateUp, Linear, Matrix, MatrixPart, OpError, Values, WeightFormat};

/// Immediates of the matrix kernels, as in `shared/tile.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct Params {
    pub(super) rows: u32,
    pub(super) chunks: u32,
    pub(super) run: u32,
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
    pub(super) scale_stride: u32,
    pub(super) scale_step: u32,
    pub(super) add: u32,
    pub(super) record: u32,
    pub(super) record_words: u32,
    pub(super) bank_first: u32,
    pub(super) part_first: u32,
    pub(super) part_end: u32,
    pub(super) experts: u32,
    pub(super) pairs_per_row: u32,
}

/// Chunks to a row of a part.
fn row_chunks(matrix: &Matrix<GpuBuffer>, part: &MatrixPart<GpuBuffer>, row: u32) -> u32 {
    let row_bytes = matrix.format().row_bytes(matrix.cols());
    chunks(matrix.format(), part.offset + u64::from(row) * row_bytes)
}

/// The buffer and word offset of a matrix's scales. For formats without them any buffer will do: it is not read.
pub(super) fn scales<'a>(
    matrix: &'a Matrix<GpuBuffer>,
    part: &'a MatrixPart<GpuBuffer>,
) -> (&'a GpuBuffer, u32) {
    match matrix.scales() {
        Some(scales) => (&scales.buffer, units(scales.offset, 4)),
        None => (&part.buffer, 0),
    }
}

/// From the scale of a block to those of the next rows and of the next columns, of a matrix of so many columns.
pub(super) fn scale_strides(format: WeightFormat, cols: u32) -> (u32, u32) {
    match format {
        WeightFormat::Fp8Block => (cols.div_ceil(FP8_BLOCK), 1),
        WeightFormat::Bf16 | WeightFormat::Fp8Tensor | WeightFormat::Nvfp4 => (0, 0),
    }
}

/// A byte offset of codes, in chunks.
pub(super) fn chunks(format: WeightFormat, bytes: u64) -> u32 {
    units(bytes, format.chunk_bytes())
}

/// The kernel for so many rows.
fn variant(backend: &GpuBackend, matrix: &Matrix<GpuBuffer>, rows: u32) -> Variant {
    Variant {
        codes: Codes::of(matrix.format()),
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
    let (scale_stride, scale_step) = scale_strides(matrix.format(), matrix.cols());
    for part in matrix.parts() {
        let (scale_buffer, scale) = scales(matrix, part);
        for (start, count) in spans(part.rows.end - part.rows.start, outputs) {
            let first = part.rows.start + start;
            let params = Params {
                rows,
                chunks: matrix.cols() / COLS_ALIGN,
                run: backend.tuning().run_chunks(matrix.format(), matrix.cols()),
                in_stride: matrix.cols() / 4,
                out_stride: matrix.rows(),
                out_first: first,
                count,
                first,
                weight: row_chunks(matrix, part, start),
                scale,
                scale_stride,
                scale_step,
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
    let (scale_stride, scale_step) = scale_strides(op.w1.format(), op.w1.cols());
    for (gate, up) in op.w1.parts().iter().zip(op.w3.parts()) {
        let (gate_scales, scale) = scales(op.w1, gate);
        let (up_scales, scale2) = scales(op.w3, up);
        for (start, count) in spans(gate.rows.end - gate.rows.start, outputs) {
            let first = gate.rows.start + start;
            let params = Params {
                rows,
                chunks: op.w1.cols() / COLS_ALIGN,
                run: backend.tuning().run_chunks(op.w1.format(), op.w1.cols()),
                in_stride: op.w1.cols() / 4,
                out_stride: op.w1.rows(),
                out_first: first,
                count,
                first,
                weight: row_chunks(op.w1, gate, start),
                scale,
                weight2: row_chunks(op.w3, up, start),
                scale2,
                scale_stride,
                scale_step,
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
    let (scale_stride, scale_step) = scale_strides(matrix.format(), matrix.cols());
    for part in matrix.parts() {
        let (scale_buffer, scale) = scales(matrix, part);
        let head = part.rows.start / dims.head_rows();
        // A part may end within a head only where it is the last; the matrix has whole heads.
        let heads = (part.rows.end - part.rows.start) / dims.head_rows();
        for (start, count) in spans(dims.v, outputs) {
            let params = Params {
                rows,
                chunks: dims.latent / COLS_ALIGN,
                run: backend.tuning().run_chunks(matrix.format(), dims.latent),
                in_stride: dims.heads * dims.latent / 4,
                in_group: dims.latent / 4,
                in_first: head * dims.latent / 4,
                weight_group: dims.head_rows(),
                out_group: dims.v,
                out_stride: dims.heads * dims.v,
                out_first: head * dims.v + start,
                count,
                first: part.rows.start + dims.nope + start,
                weight: row_chunks(matrix, part, dims.nope + start),
                scale,
                scale_stride,
                scale_step,
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
