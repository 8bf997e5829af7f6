//! Which adapter: the best there is, or the first whose name holds the configured text; and how much memory it has.

use wgpu::{Adapter, Backends, DeviceType, Instance, InstanceDescriptor, InstanceFlags};

use crate::ops::OpError;

/// Share of a GPU's memory that is used where none is configured, in percent: the driver and others need some.
pub const GPU_MEMORY_PERCENT: u64 = 90;
/// Share of the machine's memory that is used on an emulated GPU.
const CPU_MEMORY_PERCENT: u64 = 50;
/// What is assumed where the memory cannot be found out.
const UNKNOWN_MEMORY_BYTES: u64 = 4 << 30;
/// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
const DEVICE_LOCAL: u32 = 1;

/// Finds the adapter.
pub(super) fn choose(name: Option<&str>) -> Result<Adapter, OpError> {
    let instance = Instance::new(InstanceDescriptor {
        backends: Backends::VULKAN,
        flags: InstanceFlags::empty(),
        ..InstanceDescriptor::new_without_display_handle()
    });
    let mut adapters = pollster::block_on(instance.enumerate_adapters(Backends::VULKAN));
    adapters.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    let names: Vec<String> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
    let matches = |adapter: &Adapter| name.is_none_or(|part| adapter.get_info().name.contains(part));
    let found = adapters.into_iter().find(matches);
    found.ok_or_else(|| no_adapter(name, &names))
}

/// Discrete GPUs first, emulated ones last.
fn rank(kind: DeviceType) -> u32 {
    match kind {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    }
}

fn no_adapter(name: Option<&str>, names: &[String]) -> OpError {
    let reason = if names.is_empty() {
        "there is no Vulkan driver; install the GPU's, or mesa-vulkan-drivers (the Debian and Ubuntu package), which \
         also runs without a GPU"
            .to_owned()
    } else {
        format!("no adapter's name contains it; there are: {}", names.join(", "))
    };
    OpError::Refused {
        device: name.unwrap_or("Vulkan").to_owned(),
        reason,
    }
}

/// Bytes that buffers may use together, where nothing is configured.
pub(super) fn memory_bytes(adapter: &Adapter) -> u64 {
    let (memory, percent) = match adapter.get_info().device_type {
        DeviceType::Cpu => (machine_memory(), CPU_MEMORY_PERCENT),
        DeviceType::DiscreteGpu | DeviceType::IntegratedGpu | DeviceType::VirtualGpu | DeviceType::Other => {
            (local_heap(adapter), GPU_MEMORY_PERCENT)
        }
    };
    memory.map_or(UNKNOWN_MEMORY_BYTES, |bytes| bytes / 100 * percent)
}

/// The largest device-local heap.
fn local_heap(adapter: &Adapter) -> Option<u64> {
    #[expect(
        unsafe_code,
        reason = "wgpu does not tell memory sizes; the Vulkan handles are only read"
    )]
    // SAFETY: the handles are those of a live adapter and are used for one query that changes nothing.
    let properties = unsafe {
        let adapter = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(adapter.raw_physical_device())
    };
    let heaps = properties
        .memory_heaps
        .iter()
        .take(properties.memory_heap_count as usize);
    heaps
        .filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0)
        .map(|heap| heap.size)
        .max()
}

/// `MemTotal` of `/proc/meminfo`, which is in KiB.
fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}
