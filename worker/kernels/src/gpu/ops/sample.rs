//! Sampler: one workgroup per row of logits.

use crate::gpu::backend::GpuBackend;
use crate::gpu::kernel::Kernel;
use crate::gpu::memory::GpuBuffer;
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
    let lanes = lanes(backend, op.vocab);
    backend.check_rounds("sample", rounds(op.vocab, lanes))?;
    let params = Params {
        vocab: op.vocab,
        logit_rows: op.logit_rows(),
    };
    let buffers = [op.logits, op.params, op.output];
    backend.dispatch(Kernel::Sample { lanes }, &buffers, &params, [op.rows, 1, 1])
}

/// Rounds of the kernel's loops with so many lanes a row.
fn rounds(vocab: u32, lanes: u32) -> u64 {
    PASSES * u64::from(vocab.div_ceil(lanes) + TREE_ROUNDS)
}

/// The fewest lanes with which the device does not end the loops before they are done; else the most.
fn lanes(backend: &GpuBackend, vocab: u32) -> u32 {
    let possible = backend.tuning().lanes_sample;
    let enough = possible
        .iter()
        .find(|&&lanes| backend.check_rounds("sample", rounds(vocab, lanes)).is_ok());
    enough.or(possible.last()).copied().unwrap_or(1)
}
