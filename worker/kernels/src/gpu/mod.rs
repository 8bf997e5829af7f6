//! [`crate::ops::Backend`] on wgpu, over Vulkan: the device of real workers, and of tests on Mesa's lavapipe.
//!
//! An op becomes dispatches of a few pipelines, all compiled when the device is opened. What is recorded is plain data
//! until it is submitted: writes are copies from mapped staging memory, in order with the dispatches, but for weights where
//! the memory is the host's too, which are written to where they stay before any command has them. Shapes travel in
//! immediates and offsets with them: buffers are bound whole, so that the adapter's offset alignment does not matter.
//!
//! No readback but [`crate::ops::Backend::read`]. No bounds checks in the shaders: every op checks its operands before
//! it is recorded, and values read on the device (tokens, slots, blocks, experts) are clamped or skipped there.

mod adapter;
mod backend;
mod bindings;
mod cache;
mod choice;
mod commands;
mod device;
mod direct;
mod faults;
mod halves;
mod kernel;
mod matrices;
mod measure;
mod memory;
mod ops;
mod pipelines;
mod readback;
mod rounding;
mod staging;
mod trial;
mod tuning;

pub use adapter::GPU_MEMORY_PERCENT;
pub use backend::GpuBackend;
pub use measure::{Marks, PLAIN_TILES, PlainProduct, PlainTile};
pub use memory::GpuBuffer;
pub use trial::{Concerns, Kernels, Trial};

use std::path::Path;

use choice::Asked;
use serde::Deserialize;

use crate::ops::OpError;

/// Version of the shaders, part of the device kind: raised whenever a change may change a bit of a result (DET-1).
pub const KERNEL_SET: u32 = 6;

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// A part of the adapter's name; absent: the best adapter. Several devices may share one adapter.
    pub adapter: Option<String>,
    /// Bytes that may be used; absent: what the adapter is known or estimated to have.
    pub memory_bytes: Option<u64>,
    /// Whether given rows may be rounded to f16 and computed by cooperative matrices; absent: where the adapter has them.
    pub cooperative_matrix: Option<bool>,
}

/// Opens the adapter that the configuration names, or the best one, and compiles all pipelines.
///
/// Fails when no adapter matches, with the names of those there are, and when there is none at all.
pub fn open(config: &DeviceConfig) -> Result<GpuBackend, OpError> {
    open_with_cache(config, None)
}

/// As [`open`], but what the driver makes of the shaders is kept in a folder, and taken from there the next time.
pub fn open_with_cache(config: &DeviceConfig, cache_dir: Option<&Path>) -> Result<GpuBackend, OpError> {
    choice::open(
        config,
        &Asked {
            cache_dir,
            ..Asked::default()
        },
    )
}

/// As [`open`], but an emulated GPU gets the kernels of real ones: so that they can be tested where there is none.
pub fn open_with_gpu_kernels(config: &DeviceConfig) -> Result<GpuBackend, OpError> {
    let class = Some(device::Class::Gpu);
    choice::open(
        config,
        &Asked {
            class,
            ..Asked::default()
        },
    )
}

/// As [`open_with_gpu_kernels`], but given rows are computed as with cooperative matrices, by plain arithmetic: so that all
/// but these can be tested where there are none.
pub fn open_with_given_rows_in_f16(config: &DeviceConfig) -> Result<GpuBackend, OpError> {
    let class = Some(device::Class::Gpu);
    let given = Some(matrices::Given::Halves);
    choice::open(
        config,
        &Asked {
            class,
            given,
            ..Asked::default()
        },
    )
}

/// As [`open`], but weights are decoded as on devices whose conversion of f16 is not exact.
pub fn open_without_halves(config: &DeviceConfig) -> Result<GpuBackend, OpError> {
    choice::open(
        config,
        &Asked {
            without_halves: true,
            ..Asked::default()
        },
    )
}
