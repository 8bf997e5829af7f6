//! Matrix times rows: linear layers, the gated half of a feed-forward, the value half of latent attention.
//!
//! Rows of one role go through one kernel. Tiles hold as many of them as fit what there is; a row's sum is the same in all.

use super::shares::{Share, Way, shares};
use super::{row_factors, units};
use crate::gpu::backend::{GpuBackend, MAX_WORKGROUPS};
use crate::gpu::memory::GpuBuffer;
use crate::ops::{COLS_ALIGN, FP8_BLOCK, GateUp, Linear, Matrix, MatrixPart, OpError, Values, WeightFormat};

/// Immediates of the matrix kernels, as in `shared/matrix_params.wgsl`.
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

/// Ranges of `count` outputs that one dispatch can take, at so many a workgroup: start and length.
pub(super) fn spans(count: u32, outputs: u32) -> impl Iterator<Item = (u32, u32)> {
    // Outputs that begin within a tile take one workgroup more.
    let step = (MAX_WORKGROUPS - 1).saturating_mul(outputs);
    let starts = (0..count).step_by(step as usize);
    starts.map(move |start| (start, step.min(count - start)))
}

/// The factors of a share's rows of plain input, where they are rounded; else any buffer, which is not read.
fn factors(
    backend: &mut GpuBackend,
    way: Way,
    input: &GpuBuffer,
    cols: u32,
    share: Share,
) -> Result<GpuBuffer, OpError> {
    match way.rounds_rows() {
        true => row_factors::record(backend, input, cols, (share.first, share.rows), 0),
        false => Ok(input.clone()),
    }
}

pub(in crate::gpu) fn linear(backend: &mut GpuBackend, op: &Linear<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    for share in shares(backend.tuning(), op.rows) {
        let way = share.plain(backend.tuning(), op.weight.format(), op.weight.rows());
        let factors = factors(backend, way, op.input, op.weight.cols(), share)?;
        linear_share(backend, op, (share, way), &factors)?;
    }
    Ok(())
}

fn linear_share(
    backend: &mut GpuBackend,
    op: &Linear<'_, GpuBuffer>,
    (share, way): (Share, Way),
    factors: &GpuBuffer,
) -> Result<(), OpError> {
    let (matrix, outputs) = (op.weight, way.linear_outputs(backend.tuning()));
    let (scale_stride, scale_step) = scale_strides(matrix.format(), matrix.cols());
    for part in matrix.parts() {
        let (scale_buffer, scale) = scales(matrix, part);
        for (start, count) in spans(part.rows.end - part.rows.start, outputs) {
            let first = part.rows.start + start;
            let params = Params {
                rows: share.rows,
                chunks: matrix.cols() / COLS_ALIGN,
                run: backend.tuning().run_chunks(matrix.format(), matrix.cols()),
                in_stride: matrix.cols() / 4,
                in_first: share.first * (matrix.cols() / 4),
                out_stride: matrix.rows(),
                out_first: share.first * matrix.rows() + first,
                count,
                first,
                weight: row_chunks(matrix, part, start),
                scale,
                scale_stride,
                scale_step,
                add: op.add.into(),
                ..Params::default()
            };
            let last = way.last_read(op.input, factors);
            let buffers = [op.input, &part.buffer, scale_buffer, op.input, last, op.output];
            let columns = way.columns(first, 0, count, outputs);
            let groups = [share.rows.div_ceil(way.rows()), columns, 1];
            backend.dispatch(way.linear(), &buffers, &params, groups)?;
        }
    }
    Ok(())
}

pub(in crate::gpu) fn gate_up(backend: &mut GpuBackend, op: &GateUp<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    for share in shares(backend.tuning(), op.rows) {
        let way = share.plain(backend.tuning(), op.w1.format(), 2 * op.w1.rows());
        let factors = factors(backend, way, op.input, op.w1.cols(), share)?;
        gate_up_share(backend, op, (share, way), &factors)?;
    }
    Ok(())
}

fn gate_up_share(
    backend: &mut GpuBackend,
    op: &GateUp<'_, GpuBuffer>,
    (share, way): (Share, Way),
    factors: &GpuBuffer,
) -> Result<(), OpError> {
    let outputs = way.gate_up_outputs(backend.tuning());
    let (scale_stride, scale_step) = scale_strides(op.w1.format(), op.w1.cols());
    for (gate, up) in op.w1.parts().iter().zip(op.w3.parts()) {
        let (gate_scales, scale) = scales(op.w1, gate);
        let (up_scales, scale2) = scales(op.w3, up);
        for (start, count) in spans(gate.rows.end - gate.rows.start, outputs) {
            let first = gate.rows.start + start;
            let params = Params {
                rows: share.rows,
                chunks: op.w1.cols() / COLS_ALIGN,
                run: backend.tuning().run_chunks(op.w1.format(), op.w1.cols()),
                in_stride: op.w1.cols() / 4,
                in_first: share.first * (op.w1.cols() / 4),
                out_stride: op.w1.rows(),
                out_first: share.first * op.w1.rows() + first,
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
                way.last_read(op.input, factors),
                op.output,
            ];
            let columns = way.columns(first, 0, count, outputs);
            let groups = [share.rows.div_ceil(way.rows()), columns, 1];
            backend.dispatch(way.gate_up(), &buffers, &params, groups)?;
        }
    }
    Ok(())
}

pub(in crate::gpu) fn values(backend: &mut GpuBackend, op: &Values<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    for share in shares(backend.tuning(), op.rows) {
        let way = share.plain(backend.tuning(), op.wkv_b.format(), op.dims.heads * op.dims.v);
        let cols = op.dims.heads * op.dims.latent;
        let factors = factors(backend, way, op.input, cols, share)?;
        values_share(backend, op, (share, way), &factors)?;
    }
    Ok(())
}

fn values_share(
    backend: &mut GpuBackend,
    op: &Values<'_, GpuBuffer>,
    (share, way): (Share, Way),
    factors: &GpuBuffer,
) -> Result<(), OpError> {
    let (dims, matrix) = (&op.dims, op.wkv_b);
    let outputs = way.linear_outputs(backend.tuning());
    let (scale_stride, scale_step) = scale_strides(matrix.format(), matrix.cols());
    let (in_row, out_row) = (dims.heads * dims.latent / 4, dims.heads * dims.v);
    for part in matrix.parts() {
        let (scale_buffer, scale) = scales(matrix, part);
        let head = part.rows.start / dims.head_rows();
        // A part may end within a head only where it is the last; the matrix has whole heads.
        let heads = (part.rows.end - part.rows.start) / dims.head_rows();
        for (start, count) in spans(dims.v, outputs) {
            let first = part.rows.start + dims.nope + start;
            let params = Params {
                rows: share.rows,
                chunks: dims.latent / COLS_ALIGN,
                run: backend.tuning().run_chunks(matrix.format(), dims.latent),
                in_stride: in_row,
                in_group: dims.latent / 4,
                in_first: share.first * in_row + head * dims.latent / 4,
                weight_group: dims.head_rows(),
                out_group: dims.v,
                out_stride: out_row,
                out_first: share.first * out_row + head * dims.v + start,
                count,
                first,
                weight: row_chunks(matrix, part, dims.nope + start),
                scale,
                scale_stride,
                scale_step,
                ..Params::default()
            };
            let last = way.last_read(op.input, factors);
            let buffers = [op.input, &part.buffer, scale_buffer, op.input, last, op.output];
            let columns = way.columns(first, dims.head_rows(), count, outputs);
            let groups = [share.rows.div_ceil(way.rows()), columns, heads];
            backend.dispatch(way.linear(), &buffers, &params, groups)?;
        }
    }
    Ok(())
}
