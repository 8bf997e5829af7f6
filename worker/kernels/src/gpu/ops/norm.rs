//! Root-mean-square norm, and the cache write that norms the latent: one workgroup per row.

use super::units;
use crate::gpu::backend::GpuBackend;
use crate::gpu::kernel::Kernel;
use crate::gpu::memory::GpuBuffer;
use crate::ops::{DeviceBuffer, LatentWrite, OpError, RmsNorm};

/// Immediates of `rms_norm.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct Params {
    quads: u32,
    weight: u32,
    eps: f32,
    picked: u32,
}

/// Immediates of `latent_write.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct LatentParams {
    latent: u32,
    rope: u32,
    weight: u32,
    eps: f32,
    slots: u32,
}

pub(in crate::gpu) fn rms_norm(backend: &mut GpuBackend, op: &RmsNorm<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let width = op.weight.len();
    let params = Params {
        quads: width / 4,
        weight: units(op.weight.offset(), 4),
        eps: op.eps,
        picked: op
            .pick
            .map_or(0, |_| units(op.input.bytes(), u64::from(width) * 4)),
    };
    let pick = op.pick.unwrap_or(op.input);
    let buffers = [op.input, pick, op.weight.buffer(), op.output];
    backend.dispatch(Kernel::RmsNorm, &buffers, &params, [op.rows.total(), 1, 1])
}

pub(in crate::gpu) fn latent_write(
    backend: &mut GpuBackend,
    op: &LatentWrite<'_, GpuBuffer>,
) -> Result<(), OpError> {
    op.check()?;
    let shape = op.cache.shape();
    let params = LatentParams {
        latent: shape.value / 4,
        rope: op.rope() / 4,
        weight: units(op.norm.offset(), 4),
        eps: op.eps,
        slots: shape.slots(),
    };
    let buffers = [op.input, op.norm.buffer(), op.rotary, op.meta, op.cache.buffer()];
    let kernel = Kernel::LatentWrite { cached: shape.format };
    backend.dispatch(kernel, &buffers, &params, [op.rows.total(), 1, 1])
}
