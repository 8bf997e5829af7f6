//! Router: the gate as a linear layer, then softmax and choice, one workgroup per row.

use super::matmul;
use crate::gpu::backend::GpuBackend;
use crate::gpu::kernel::Kernel;
use crate::gpu::memory::GpuBuffer;
use crate::ops::{Linear, OpError, Route};

/// Immediates of `route.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct Params {
    experts: u32,
    top_k: u32,
    routed_scale: f32,
}

pub(in crate::gpu) fn record(backend: &mut GpuBackend, op: &Route<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let gate = Linear {
        input: op.input,
        weight: op.gate,
        output: op.logits,
        add: false,
        rows: op.rows,
    };
    matmul::linear(backend, &gate)?;
    let params = Params {
        experts: op.gate.rows(),
        top_k: op.top_k,
        routed_scale: op.routed_scale,
    };
    let buffers = [op.logits, op.ids, op.weights];
    backend.dispatch(Kernel::Route, &buffers, &params, [op.rows.total(), 1, 1])
}
