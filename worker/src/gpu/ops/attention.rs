//! Absorbed latent attention: one workgroup per row and four heads, or eight with a small latent.

use crate::gpu::backend::GpuBackend;
use crate::gpu::memory::GpuBuffer;
use crate::gpu::pipelines::Kernel;
use crate::ops::{Attention, OpError};

/// Widest latent that the kernel's workgroup memory holds for four heads: 4 x `MAX_QUADS` of `attention.wgsl`.
const MAX_LATENT: u32 = 512;
/// Widest latent of the variant for small ones, of `attention_subgroup.wgsl`.
const SMALL_LATENT: u32 = 64;

/// Immediates of `attention.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct Params {
    heads: u32,
    latent: u32,
    width: u32,
    table_width: u32,
    table_rows: u32,
    block_bits: u32,
    blocks: u32,
    reach: u32,
    scale: f32,
}

pub(in crate::gpu) fn record(backend: &mut GpuBackend, op: &Attention<'_, GpuBuffer>) -> Result<(), OpError> {
    op.check()?;
    let shape = op.cache.shape();
    if shape.latent > MAX_LATENT {
        let detail = format!(
            "the latent is {} wide, at most {MAX_LATENT} are supported",
            shape.latent
        );
        return Err(OpError::shape("attention", detail));
    }
    let params = Params {
        heads: op.heads,
        latent: shape.latent / 4,
        width: shape.width() / 4,
        table_width: op.table_width,
        table_rows: op.table_rows,
        block_bits: shape.block_tokens.trailing_zeros(),
        blocks: shape.blocks,
        reach: op.table_width.saturating_mul(shape.block_tokens),
        scale: op.scale,
    };
    let buffers = [op.queries, op.meta, op.tables, op.cache.buffer(), op.output];
    let small = backend.tuning().shares_loads && shape.latent <= SMALL_LATENT;
    let heads = if small { 8 } else { 4 };
    let groups = [op.heads.div_ceil(heads), op.rows.total(), 1];
    backend.dispatch(Kernel::Attention { small }, &buffers, &params, groups)
}
