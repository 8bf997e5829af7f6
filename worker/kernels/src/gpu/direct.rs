//! Buffers in memory that the host shares with the device: bytes are written to where they stay, not through staging.
//!
//! Such a buffer is fresh until the device first hears of it. So long the host writes to it as it likes; what it did not
//! write is zeroed then, and from then on the buffer is like any other.

use std::mem::MaybeUninit;
use std::num::NonZero;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;

use wgpu::BufferUses;
use wgpu::hal::api::Vulkan;
use wgpu::hal::{self, Device as _};

use super::memory::USAGE;

/// What the driver is told that the buffer is for: what wgpu is told, and the host's writes.
const USES: BufferUses = BufferUses::STORAGE_READ_ONLY
    .union(BufferUses::STORAGE_READ_WRITE)
    .union(BufferUses::COPY_SRC)
    .union(BufferUses::COPY_DST)
    .union(BufferUses::MAP_WRITE);

/// Most threads that write at once.
const MAX_THREADS: usize = 4;
/// What systems map at least.
#[cfg(target_os = "linux")]
const PAGE_BYTES: usize = 4096;
/// What a thread writes at once: less is not worth another.
const PART_BYTES: usize = 1 << 20;

/// What the host has written of a buffer that the device has not heard of.
#[derive(Debug)]
pub(super) struct Fresh {
    device: wgpu::Device,
    written: Written,
}

/// Makes a buffer that the host writes to.
#[expect(
    unsafe_code,
    reason = "wgpu itself maps a buffer only after it has zeroed all of it: a load would touch all memory twice"
)]
pub(super) fn create(
    device: &wgpu::Device,
    label: &str,
    size: u64,
) -> Result<(wgpu::Buffer, Fresh), hal::DeviceError> {
    // SAFETY: the handle is that of a live device and is used to make a buffer of it.
    let made = unsafe {
        let raw = device.as_hal::<Vulkan>().ok_or(hal::DeviceError::Lost)?;
        raw.create_buffer(&hal::BufferDescriptor {
            label: Some(label),
            size,
            usage: USES,
            memory_flags: hal::MemoryFlags::PREFER_COHERENT,
        })?
    };
    let descriptor = wgpu::BufferDescriptor {
        label: Some(label),
        size,
        usage: USAGE,
        mapped_at_creation: false,
    };
    // SAFETY: it was made on this device, of this size, which is not 0, and for more than these usages. It is
    // initialized by `Fresh::finish`, before the device is told of it.
    let buffer = unsafe { device.create_buffer_from_hal::<Vulkan>(made, &descriptor) };
    let fresh = Fresh {
        device: device.clone(),
        written: Written::default(),
    };
    Ok((buffer, fresh))
}

impl Fresh {
    /// Writes to the buffer, within its size. Says whether it did: a device that is lost has no memory.
    pub(super) fn write(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> bool {
        let range = offset..offset + bytes.len() as u64;
        let is_written = with_mapped(&self.device, buffer, range.clone(), |mapped| copy(mapped, bytes));
        if is_written {
            self.written.add(range);
        }
        is_written
    }

    /// Zeroes what was not written: from here on the device may use the buffer. A device that is lost never will.
    pub(super) fn finish(self, buffer: &wgpu::Buffer) {
        for gap in self.written.gaps(buffer.size()) {
            with_mapped(&self.device, buffer, gap, |mapped| {
                mapped.fill(MaybeUninit::new(0));
            });
        }
    }
}

/// Gives some mapped bytes of a buffer that [`create`] made and the device has not heard of; says whether there are any.
#[expect(unsafe_code, reason = "wgpu does not give memory that it did not zero")]
fn with_mapped(
    device: &wgpu::Device,
    buffer: &wgpu::Buffer,
    range: Range<u64>,
    with: impl FnOnce(&mut [MaybeUninit<u8>]),
) -> bool {
    // SAFETY: the handles are those of a live device and of its buffer, and are held until `with` is done: so long the
    // memory stays mapped. The range is within the buffer. Nobody else reads or writes it: the device does not know of
    // the buffer, and whoever writes has it alone.
    unsafe {
        let (Some(device), Some(buffer)) = (device.as_hal::<Vulkan>(), buffer.as_hal::<Vulkan>()) else {
            return false;
        };
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
        let Ok(mapping) = device.map_buffer(&buffer, range.clone()) else {
            return false;
        };
        with(std::slice::from_raw_parts_mut(
            mapping.ptr.cast().as_ptr(),
            length,
        ));
        if !mapping.is_coherent {
            device.flush_mapped_ranges(&buffer, std::iter::once(range));
        }
    }
    true
}

/// Copies on a few threads: where memory is touched for the first time, that takes longer than to copy.
fn copy(to: &mut [MaybeUninit<u8>], from: &[u8]) {
    let parts = Mutex::new(to.chunks_mut(PART_BYTES).zip(from.chunks(PART_BYTES)));
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((to, from)) = next() {
            populate(to);
            to.write_copy_of_slice(from);
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let others = cores
        .min(MAX_THREADS)
        .min(from.len() / PART_BYTES)
        .saturating_sub(1);
    thread::scope(|scope| {
        for number in 0..others {
            let thread = thread::Builder::new().name(format!("write-{number}"));
            if let Err(error) = thread.spawn_scoped(scope, work) {
                tracing::debug!(%error, "no thread helps to write");
            }
        }
        work();
    });
}

/// Has the system find all pages of some memory at once, which takes less than to stop at each of them. One that does not
/// is only slower.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "the advice takes an address")]
fn populate(memory: &mut [MaybeUninit<u8>]) {
    let start = memory.as_ptr().align_offset(PAGE_BYTES).min(memory.len());
    let length = (memory.len() - start) / PAGE_BYTES * PAGE_BYTES;
    let pages = &mut memory[start..start + length];
    // SAFETY: the pages are all within memory that is borrowed for writing, and what they hold is left as it is.
    unsafe {
        libc::madvise(pages.as_mut_ptr().cast(), pages.len(), libc::MADV_POPULATE_WRITE);
    }
}

#[cfg(not(target_os = "linux"))]
fn populate(_: &mut [MaybeUninit<u8>]) {}

/// Ranges that were written: in order, apart from one another.
#[derive(Debug, Default)]
struct Written(Vec<Range<u64>>);

impl Written {
    fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|other| other.end < range.start);
        let after = self.0.partition_point(|other| other.start <= range.end);
        let touched = &self.0[first..after];
        let start = touched
            .first()
            .map_or(range.start, |other| other.start.min(range.start));
        let end = touched.last().map_or(range.end, |other| other.end.max(range.end));
        self.0.splice(first..after, std::iter::once(start..end));
    }

    /// What was not written of so many bytes.
    fn gaps(&self, size: u64) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut from = 0;
        for written in &self.0 {
            gaps.push(from..written.start);
            from = written.end;
        }
        gaps.push(from..size);
        gaps.retain(|gap| !gap.is_empty());
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(written: &Written, size: u64) -> Vec<(u64, u64)> {
        let gaps = written.gaps(size).into_iter();
        gaps.map(|gap| (gap.start, gap.end)).collect()
    }

    #[test]
    fn what_was_not_written_is_known_in_any_order() {
        let mut written = Written::default();
        assert_eq!(gaps(&written, 8), [(0, 8)]);
        for (range, expected) in [
            (4..8, vec![(0, 4), (8, 32)]),
            (16..20, vec![(0, 4), (8, 16), (20, 32)]),
            (6..6, vec![(0, 4), (8, 16), (20, 32)]),
            (8..12, vec![(0, 4), (12, 16), (20, 32)]),
            (0..2, vec![(2, 4), (12, 16), (20, 32)]),
            (5..17, vec![(2, 4), (20, 32)]),
            (2..4, vec![(20, 32)]),
            (20..32, vec![]),
        ] {
            written.add(range);
            assert_eq!(gaps(&written, 32), expected);
        }
        assert_eq!(written.0.len(), 1);
    }
}
