//! What rows are multiplied with before they are rounded to f16.

use crate::gpu::backend::{GpuBackend, MAX_WORKGROUPS};
use crate::gpu::kernel::Kernel;
use crate::gpu::memory::GpuBuffer;
use crate::ops::OpError;

/// Immediates of `row_factors.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::gpu) struct Params {
    quads: u32,
    first: u32,
    place: u32,
}

/// Writes the factors of `count` rows of `cols` values from row `first` on, those of the first one at `place` of the buffer
/// that is returned.
pub(super) fn record(
    backend: &mut GpuBackend,
    input: &GpuBuffer,
    cols: u32,
    (first, count): (u32, u32),
    place: u32,
) -> Result<GpuBuffer, OpError> {
    let factors = backend.row_factors(place + count)?;
    for start in (0..count).step_by(MAX_WORKGROUPS as usize) {
        let params = Params {
            quads: cols / 4,
            first: first + start,
            place: place + start,
        };
        let rows = MAX_WORKGROUPS.min(count - start);
        backend.dispatch(Kernel::RowFactors, &[input, &factors], &params, [rows, 1, 1])?;
    }
    Ok(factors)
}
