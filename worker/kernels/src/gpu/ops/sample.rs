//! Sampler: one workgroup per row of logits.

use crate::gpu::backend::GpuBackend;
use crate::gpu::memory::GpuBuffer;
use crate::gpu::pipelines::Kernel;
use crate::ops::{MAX_TOP, OpError, Sample};

/// Most times that the kernel goes over a row of logits: the best, the sum, the best that is adjusted, 32 bits of each
/// threshold, the sum below the first of them, the draw, and the further alternatives.
const PASSES: u64 = 3 + 2 * 32 + 1 + 2 + MAX_TOP as u64 - 1;
/// Rounds of a pass beside those over the logits: the tree over the lanes.
const TREE_ROUNDS: u32 = 16;

/// Immediates of `sample.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct Params {
    vocab: u32,
    logit_rows: u32,
}

pub(in crate::gpu) fn record(backend: &mut GpuBackend, op: &Sample<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let of_pass = op.vocab.div_ceil(backend.tuning().lanes_sample) + TREE_ROUNDS;
    backend.check_rounds("sample", PASSES * u64::from(of_pass))?;
    let params = Params {
        vocab: op.vocab,
        logit_rows: op.logit_rows(),
    };
    let buffers = [op.logits, op.params, op.output];
    backend.dispatch(Kernel::Sample, &buffers, &params, [op.rows, 1, 1])
}
