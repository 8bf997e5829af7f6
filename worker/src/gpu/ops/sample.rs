//! Sampler: one workgroup per row of logits.

use crate::gpu::backend::GpuBackend;
use crate::gpu::memory::GpuBuffer;
use crate::gpu::pipelines::Kernel;
use crate::ops::{OpError, Sample};

/// Immediates of `sample.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct Params {
    vocab: u32,
    logit_rows: u32,
}

pub(in crate::gpu) fn record(backend: &mut GpuBackend, op: &Sample<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let params = Params {
        vocab: op.vocab,
        logit_rows: op.logit_rows(),
    };
    let buffers = [op.logits, op.params, op.output];
    backend.dispatch(Kernel::Sample, &buffers, &params, [op.rows, 1, 1])
}
