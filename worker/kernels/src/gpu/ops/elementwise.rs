//! The embedding gather and the combination of expert results: one lane per 4 columns of a row.

use super::units;
use crate::gpu::backend::GpuBackend;
use crate::gpu::kernel::Kernel;
use crate::gpu::memory::GpuBuffer;
use crate::ops::{Combine, Embed, OpError};

/// Immediates of `embed.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct EmbedParams {
    quads: u32,
    first: u32,
    count: u32,
    base: u32,
}

/// Immediates of `combine.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct CombineParams {
    quads: u32,
    top_k: u32,
}

pub(in crate::gpu) fn embed(backend: &mut GpuBackend, op: &Embed<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let quads = op.table.cols() / 4;
    let groups = [quads.div_ceil(backend.tuning().lanes_each), op.rows.total(), 1];
    for part in op.table.parts() {
        let params = EmbedParams {
            quads,
            first: part.rows.start,
            count: part.rows.end - part.rows.start,
            base: units(part.offset, 8),
        };
        let buffers = [op.tokens, &part.buffer, op.output];
        backend.dispatch(Kernel::Embed, &buffers, &params, groups)?;
    }
    Ok(())
}

pub(in crate::gpu) fn combine(backend: &mut GpuBackend, op: &Combine<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let params = CombineParams {
        quads: op.dim / 4,
        top_k: op.top_k,
    };
    let groups = [
        params.quads.div_ceil(backend.tuning().lanes_each),
        op.rows.total(),
        1,
    ];
    let buffers = [op.results, op.weights, op.shared, op.output];
    backend.dispatch(Kernel::Combine, &buffers, &params, groups)
}
