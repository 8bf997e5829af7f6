//! Reads: one buffer that ranges are copied to, mapped when the device is done.

use std::sync::mpsc::channel;
use std::time::Instant;

use super::commands::{Command, Copy};
use super::memory::GpuBuffer;
use crate::ops::ReadRange;

/// Smallest buffer made.
const MIN_BYTES: u64 = 1 << 16;
/// Largest buffer kept from read to read.
const MAX_KEPT_BYTES: u64 = 64 << 20;

/// The buffer, when no read is using it.
#[derive(Debug, Default)]
pub(super) struct Readback {
    buffer: Option<wgpu::Buffer>,
}

/// Why nothing was read.
#[derive(Debug)]
pub(super) enum ReadFault {
    /// The deadline passed.
    Timeout,
    /// What the driver said.
    Failed(String),
}

impl Readback {
    /// The copies of the ranges, one after the other, into a buffer that holds them all.
    pub(super) fn record(
        &mut self,
        device: &wgpu::Device,
        ranges: &[ReadRange<GpuBuffer>],
    ) -> (wgpu::Buffer, Vec<Command>) {
        let total: u64 = ranges.iter().map(|range| range.bytes).sum();
        let kept = self.buffer.take().filter(|buffer| buffer.size() >= total);
        let buffer = kept.unwrap_or_else(|| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("readback"),
                size: total.max(MIN_BYTES).next_multiple_of(MIN_BYTES),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
        let mut start = 0;
        let mut copies = Vec::with_capacity(ranges.len());
        for range in ranges.iter().filter(|range| range.bytes > 0) {
            copies.push(Command::Copy(Copy {
                from: range.buffer.raw().clone(),
                from_offset: range.offset,
                to: buffer.clone(),
                to_offset: start,
                bytes: range.bytes,
            }));
            start += range.bytes;
        }
        (buffer, copies)
    }

    /// Waits for the submitted copies and takes the bytes out.
    pub(super) fn finish(
        &mut self,
        device: &wgpu::Device,
        buffer: wgpu::Buffer,
        ranges: &[ReadRange<GpuBuffer>],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, ReadFault> {
        let total: u64 = ranges.iter().map(|range| range.bytes).sum();
        if total == 0 {
            wait(device, deadline)?;
            self.buffer = Some(buffer);
            return Ok(vec![Vec::new(); ranges.len()]);
        }
        let (sender, mapped) = channel();
        buffer.map_async(wgpu::MapMode::Read, 0..total, move |result| {
            let _ = sender.send(result);
        });
        wait(device, deadline)?;
        match mapped.try_recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(ReadFault::Failed(error.to_string())),
            Err(_) => return Err(ReadFault::Failed("the buffer was not mapped".to_owned())),
        }
        let view = buffer
            .slice(0..total)
            .get_mapped_range()
            .map_err(|error| ReadFault::Failed(error.to_string()))?;
        let mut rest: &[u8] = &view;
        let mut read = Vec::with_capacity(ranges.len());
        for range in ranges {
            let length = usize::try_from(range.bytes).unwrap_or(usize::MAX).min(rest.len());
            let (bytes, after) = rest.split_at(length);
            read.push(bytes.to_vec());
            rest = after;
        }
        drop(view);
        buffer.unmap();
        if buffer.size() <= MAX_KEPT_BYTES {
            self.buffer = Some(buffer);
        }
        Ok(read)
    }
}

/// Waits until everything that was submitted has run.
pub(super) fn wait(device: &wgpu::Device, deadline: Instant) -> Result<(), ReadFault> {
    let left = deadline.saturating_duration_since(Instant::now());
    let waited = device.poll(wgpu::PollType::Wait {
        submission_index: None,
        timeout: Some(left),
    });
    match waited {
        Ok(_) => Ok(()),
        Err(wgpu::PollError::Timeout) => Err(ReadFault::Timeout),
        Err(error @ wgpu::PollError::WrongSubmissionIndex(..)) => Err(ReadFault::Failed(error.to_string())),
    }
}
