//! Rotation of queries and keys, and the cache write of grouped-query attention: one lane per 4 columns of a row.

use crate::gpu::backend::GpuBackend;
use crate::gpu::kernel::Kernel;
use crate::gpu::memory::GpuBuffer;
use crate::ops::{OpError, RotateQkv};

/// Immediates of `rotate_qkv.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct Params {
    head: u32,
    queries: u32,
    keys: u32,
    slots: u32,
}

pub(in crate::gpu) fn record(backend: &mut GpuBackend, op: &RotateQkv<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let shape = op.cache.shape();
    let params = Params {
        head: shape.key / 4,
        queries: op.heads * shape.key / 4,
        keys: shape.heads * shape.key / 4,
        slots: shape.slots(),
    };
    let columns = params.queries + 2 * params.keys;
    let groups = [columns.div_ceil(backend.tuning().lanes_each), op.rows.total(), 1];
    let buffers = [
        op.queries,
        op.keys,
        op.values,
        op.rotary,
        op.meta,
        op.output,
        op.cache.buffer(),
    ];
    let cached = shape.format;
    backend.dispatch(Kernel::RotateQkv { cached }, &buffers, &params, groups)
}
