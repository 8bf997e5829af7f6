//! Adjusted copies of logits: one workgroup per copy.

use super::units;
use crate::gpu::backend::GpuBackend;
use crate::gpu::kernel::Kernel;
use crate::gpu::memory::GpuBuffer;
use crate::ops::{Adjust, DeviceBuffer, OpError};

/// Immediates of `adjust.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct Params {
    vocab: u32,
    logit_rows: u32,
    adjustments: u32,
    mask_rows: u32,
}

pub(in crate::gpu) fn record(backend: &mut GpuBackend, op: &Adjust<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let params = Params {
        vocab: op.vocab,
        logit_rows: op.logit_rows(),
        adjustments: units(op.adjustments.bytes(), 16),
        mask_rows: op.mask_rows(),
    };
    let buffers = [op.rows, op.adjustments, op.masks, op.logits];
    backend.dispatch(Kernel::Adjust, &buffers, &params, [op.count, 1, 1])
}
