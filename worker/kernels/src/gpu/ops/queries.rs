//! Rotation and absorption of queries: one dispatch per part of `wkv_b`, which holds whole heads.

use super::matmul::{chunks, scale_strides, scales};
use crate::gpu::backend::GpuBackend;
use crate::gpu::kernel::Kernel;
use crate::gpu::matrices::{Codes, Variant};
use crate::gpu::memory::GpuBuffer;
use crate::ops::{COLS_ALIGN, OpError, Queries};

/// Immediates of `queries.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct Params {
    rows: u32,
    heads: u32,
    nope: u32,
    rope: u32,
    latent: u32,
    first_head: u32,
    head_rows: u32,
    weight: u32,
    scale: u32,
    chunks: u32,
    scale_stride: u32,
    scale_step: u32,
}

pub(in crate::gpu) fn record(backend: &mut GpuBackend, op: &Queries<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let (rows, dims) = (op.rows.total(), &op.dims);
    let tile_rows = backend.tuning().tile_rows(rows);
    let format = op.wkv_b.format();
    let (scale_stride, scale_step) = scale_strides(format, dims.latent);
    let columns = dims.absorbed() / 4;
    for part in op.wkv_b.parts() {
        let (scale_buffer, scale) = scales(op.wkv_b, part);
        let params = Params {
            rows,
            heads: dims.heads,
            nope: dims.nope / 4,
            rope: dims.rope / 4,
            latent: dims.latent / 4,
            first_head: part.rows.start / dims.head_rows(),
            head_rows: dims.head_rows(),
            // A chunk is four times four columns.
            weight: chunks(format, part.offset) * 4,
            scale,
            chunks: dims.latent / COLS_ALIGN,
            scale_stride,
            scale_step,
        };
        let kernel = Kernel::Queries(Variant {
            codes: Codes::of(format),
            grouped: false,
            rows: tile_rows,
        });
        let heads = (part.rows.end - part.rows.start) / dims.head_rows();
        let groups = [
            columns.div_ceil(backend.tuning().lanes_query),
            heads,
            rows.div_ceil(tile_rows),
        ];
        let buffers = [
            op.input,
            &part.buffer,
            scale_buffer,
            op.rotary,
            op.meta,
            op.output,
        ];
        backend.dispatch(kernel, &buffers, &params, groups)?;
    }
    Ok(())
}
