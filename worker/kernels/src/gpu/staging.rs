//! Writes: a fixed number of mapped chunks, filled in turn, copied from in order with the dispatches, then mapped again.

use std::sync::mpsc::{Receiver, Sender, channel};

/// Bytes of a chunk.
pub(super) const CHUNK_BYTES: u64 = 4 << 20;
/// Most chunks. The host copies to one while the device copies from others.
const MAX_CHUNKS: usize = 4;

/// Mapped memory, filled up to `used`.
#[derive(Debug)]
struct Chunk {
    buffer: wgpu::Buffer,
    used: u64,
}

/// The chunks of a device.
#[derive(Debug)]
pub(super) struct Staging {
    /// Mapped, and the one that is being filled last.
    filled: Vec<Chunk>,
    free: Vec<wgpu::Buffer>,
    made: usize,
    /// Chunks that came back; `None` for one that could not be mapped.
    mapped: (Sender<Option<wgpu::Buffer>>, Receiver<Option<wgpu::Buffer>>),
}

/// Where bytes were put.
pub(super) struct Staged {
    pub(super) buffer: wgpu::Buffer,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Staging {
    pub(super) fn new() -> Self {
        Self {
            filled: Vec::new(),
            free: Vec::new(),
            made: 0,
            mapped: channel(),
        }
    }

    /// Copies as many of the bytes as there is room for; `None` when every chunk is full or in flight.
    pub(super) fn put(&mut self, device: &wgpu::Device, bytes: &[u8]) -> Result<Option<Staged>, String> {
        if self.filled.last().is_none_or(|chunk| chunk.used == CHUNK_BYTES) {
            let Some(buffer) = self.next_chunk(device) else {
                return Ok(None);
            };
            self.filled.push(Chunk { buffer, used: 0 });
        }
        let Some(chunk) = self.filled.last_mut() else {
            return Ok(None);
        };
        let room = usize::try_from(CHUNK_BYTES - chunk.used).unwrap_or(usize::MAX);
        let length = bytes.len().min(room);
        let (offset, bytes_put) = (chunk.used, length as u64);
        // Mapped ranges start at multiples of 8.
        let end = (offset + bytes_put).next_multiple_of(8).min(CHUNK_BYTES);
        let mut view = chunk
            .buffer
            .slice(offset..end)
            .get_mapped_range_mut()
            .map_err(|error| error.to_string())?;
        view.slice(..length).copy_from_slice(&bytes[..length]);
        drop(view);
        chunk.used = end;
        Ok(Some(Staged {
            buffer: chunk.buffer.clone(),
            offset,
            bytes: bytes_put,
        }))
    }

    /// Unmaps what was filled: call it before the copies are submitted.
    pub(super) fn unmap(&mut self) -> Vec<wgpu::Buffer> {
        let filled = std::mem::take(&mut self.filled);
        let buffers = filled.into_iter().map(|chunk| chunk.buffer);
        buffers.inspect(wgpu::Buffer::unmap).collect()
    }

    /// Asks for the chunks again once the device has copied from them: call it after the submit.
    pub(super) fn recycle(&self, buffers: Vec<wgpu::Buffer>) {
        for buffer in buffers {
            let (sender, again) = (self.mapped.0.clone(), buffer.clone());
            buffer.map_async(wgpu::MapMode::Write, .., move |mapped| {
                let _ = sender.send(mapped.is_ok().then_some(again));
            });
        }
    }

    fn next_chunk(&mut self, device: &wgpu::Device) -> Option<wgpu::Buffer> {
        for chunk in self.mapped.1.try_iter() {
            match chunk {
                Some(buffer) => self.free.push(buffer),
                None => self.made -= 1,
            }
        }
        if let Some(buffer) = self.free.pop() {
            return Some(buffer);
        }
        if self.made == MAX_CHUNKS {
            return None;
        }
        self.made += 1;
        Some(device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("staging"),
            size: CHUNK_BYTES,
            usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        }))
    }
}
