//! Opens a logical device on an adapter: features, limits, what it is called and how much memory it may use.

use std::path::Path;

use wgpu::{
    Adapter, DeviceDescriptor, DeviceType, ExperimentalFeatures, Features, Limits, MemoryHints, Trace,
};

use super::DeviceConfig;
use super::cache::PipelineCache;
use super::faults::Faults;
use super::matrices::Given;
use super::measure::CLOCK_FEATURES;
use super::{KERNEL_SET, adapter};
use crate::ops::{DeviceInfo, OpError};

/// Bytes of immediates that the shaders use at most: what Vulkan guarantees.
pub(super) const IMMEDIATE_BYTES: u32 = 128;

/// What the kernels need that read memory together: on emulated GPUs, where a load costs as much as many sums.
const SHARING_FEATURES: Features = Features::SUBGROUP.union(Features::SHADER_INT64);

/// What the kernels' sizes, and for some their source, depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A GPU.
    Gpu,
    /// An emulated GPU.
    Emulated,
    /// An emulated GPU whose subgroups always have 8 lanes, and that has what [`SHARING_FEATURES`] says.
    EmulatedSharingLoads,
}

impl Class {
    pub(super) fn of(adapter: &Adapter) -> Self {
        let info = adapter.get_info();
        let has_subgroups_of_8 = (info.subgroup_min_size, info.subgroup_max_size) == (8, 8);
        match info.device_type {
            DeviceType::DiscreteGpu
            | DeviceType::IntegratedGpu
            | DeviceType::VirtualGpu
            | DeviceType::Other => Self::Gpu,
            DeviceType::Cpu if has_subgroups_of_8 && adapter.features().contains(SHARING_FEATURES) => {
                Self::EmulatedSharingLoads
            }
            DeviceType::Cpu => Self::Emulated,
        }
    }

    fn features(self) -> Features {
        match self {
            Self::Gpu | Self::Emulated => Features::IMMEDIATES,
            Self::EmulatedSharingLoads => Features::IMMEDIATES | SHARING_FEATURES,
        }
    }

    /// Part of the device kind.
    fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Emulated => "emulated",
            Self::EmulatedSharingLoads => "emulated sharing loads",
        }
    }
}

/// An open device.
#[derive(Debug)]
pub(super) struct OpenDevice {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) info: DeviceInfo,
    pub(super) faults: Faults,
    /// Largest buffer that can be bound whole.
    pub(super) max_binding_bytes: u64,
    pub(super) class: Class,
    pub(super) given: Given,
    pub(super) memory: Memory,
    /// Where its pipelines are kept, if anywhere.
    pub(super) cache: Option<PipelineCache>,
}

/// Where the device's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// On the device: the host writes to it through staging memory.
    Own,
    /// It is the host's as well.
    Shared,
}

impl Memory {
    fn of(kind: DeviceType) -> Self {
        match kind {
            DeviceType::Cpu | DeviceType::IntegratedGpu => Self::Shared,
            DeviceType::DiscreteGpu | DeviceType::VirtualGpu | DeviceType::Other => Self::Own,
        }
    }
}

/// Opens an adapter for the kernels of `class`, with these for given rows.
pub(super) fn open(
    adapter: &Adapter,
    config: &DeviceConfig,
    (class, given): (Class, Given),
    cache_dir: Option<&Path>,
) -> Result<OpenDevice, OpError> {
    let memory = config
        .memory_bytes
        .unwrap_or_else(|| adapter::memory_bytes(adapter));
    let info = describe(adapter, class, given, memory);
    let refused = |reason: String| OpError::Refused {
        device: info.name.clone(),
        reason,
    };
    if !adapter.features().contains(Features::IMMEDIATES) {
        return Err(refused("it has no immediates (push constants)".to_owned()));
    }
    let limits = limits(&adapter.limits());
    let experimental_features = match given {
        #[expect(
            unsafe_code,
            reason = "cooperative matrices are an experimental feature of wgpu"
        )]
        // SAFETY: the shaders that use it are fixed, and validated as all others are.
        Given::Cooperative => unsafe { ExperimentalFeatures::enabled() },
        Given::AsGenerated | Given::Tiled | Given::Halves => ExperimentalFeatures::disabled(),
    };
    let descriptor = DeviceDescriptor {
        label: Some("tramontane"),
        // What the device may be asked beside what the kernels need: to keep pipelines, and to read its clock.
        required_features: class.features()
            | given.features()
            | (adapter.features() & (Features::PIPELINE_CACHE | CLOCK_FEATURES)),
        required_limits: limits.clone(),
        experimental_features,
        memory_hints: MemoryHints::Performance,
        trace: Trace::Off,
    };
    let opened = pollster::block_on(adapter.request_device(&descriptor));
    let (device, queue) = opened.map_err(|error| refused(error.to_string()))?;
    let faults = Faults::watch(&device);
    let cache = cache_dir.and_then(|dir| PipelineCache::open(&device, &adapter.get_info(), dir));
    let max_binding_bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
    Ok(OpenDevice {
        device,
        queue,
        info,
        faults,
        // Buffers are rounded up to multiples of 16.
        max_binding_bytes: max_binding_bytes / 16 * 16,
        class,
        given,
        memory: Memory::of(adapter.get_info().device_type),
        cache,
    })
}

/// All that the adapter offers of what large buffers and the kernels' workgroups need.
fn limits(offered: &Limits) -> Limits {
    let defaults = Limits::default();
    Limits {
        max_buffer_size: offered.max_buffer_size,
        max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
        max_storage_buffers_per_shader_stage: offered.max_storage_buffers_per_shader_stage,
        max_compute_workgroup_storage_size: offered.max_compute_workgroup_storage_size,
        max_immediate_size: IMMEDIATE_BYTES,
        ..defaults
    }
}

fn describe(adapter: &Adapter, class: Class, given: Given, memory_bytes: u64) -> DeviceInfo {
    let info = adapter.get_info();
    let driver = format!("{} {}", info.driver, info.driver_info);
    DeviceInfo {
        kind: format!(
            "{}, {driver}, {} kernels {KERNEL_SET}, given rows {}",
            info.name,
            class.name(),
            given.name()
        ),
        is_cpu: info.device_type == DeviceType::Cpu,
        name: info.name,
        driver,
        memory_bytes,
    }
}
