//! Device buffers and the account of the bytes they hold.
//!
//! Bind groups keep buffers alive: an account of the buffers that were dropped tells the cache which to forget.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wgpu::BufferUsages;

use super::direct::Fresh;
use crate::ops::{DeviceBuffer, OpError};

/// What every buffer of an op may be used for.
pub(super) const USAGE: BufferUsages = BufferUsages::STORAGE
    .union(BufferUsages::COPY_DST)
    .union(BufferUsages::COPY_SRC);

/// A buffer on the device.
#[derive(Clone, Debug)]
pub struct GpuBuffer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: u64,
    buffer: wgpu::Buffer,
    /// Until the device first hears of it, if the host writes straight to it.
    fresh: Mutex<Option<Fresh>>,
    /// What is booked for it.
    booked: u64,
    account: Account,
}

impl Inner {
    fn fresh(&self) -> MutexGuard<'_, Option<Fresh>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.account.held.fetch_sub(self.booked, Ordering::Relaxed);
        self.account.dropped().push(self.id);
    }
}

impl DeviceBuffer for GpuBuffer {
    fn bytes(&self) -> u64 {
        self.inner.buffer.size()
    }
}

impl GpuBuffer {
    /// Unique among the buffers of its device.
    pub(super) fn id(&self) -> u64 {
        self.inner.id
    }

    /// The buffer, for a command: from here on the host writes to it through commands too.
    pub(super) fn raw(&self) -> &wgpu::Buffer {
        if let Some(fresh) = self.inner.fresh().take() {
            fresh.finish(&self.inner.buffer);
        }
        &self.inner.buffer
    }

    /// Writes straight to the buffer, if no command has it yet; says whether it did. The range is within it.
    pub(super) fn write_fresh(&self, offset: u64, bytes: &[u8]) -> bool {
        let mut fresh = self.inner.fresh();
        let fresh = fresh.as_mut();
        fresh.is_some_and(|fresh| fresh.write(&self.inner.buffer, offset, bytes))
    }
}

/// Bytes held by live buffers, and which buffers were dropped of late.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    held: Arc<AtomicU64>,
    dropped: Arc<Mutex<Vec<u64>>>,
    next: u64,
}

impl Account {
    pub(super) fn held_bytes(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Books a buffer.
    pub(super) fn add(&mut self, buffer: wgpu::Buffer, fresh: Option<Fresh>) -> GpuBuffer {
        let bytes = buffer.size();
        self.add_as(buffer, fresh, bytes)
    }

    /// A buffer of the backend's own, which counts as nothing.
    pub(super) fn add_own(&mut self, buffer: wgpu::Buffer) -> GpuBuffer {
        self.add_as(buffer, None, 0)
    }

    fn add_as(&mut self, buffer: wgpu::Buffer, fresh: Option<Fresh>, booked: u64) -> GpuBuffer {
        self.held.fetch_add(booked, Ordering::Relaxed);
        self.next += 1;
        GpuBuffer {
            inner: Arc::new(Inner {
                id: self.next,
                buffer,
                fresh: Mutex::new(fresh),
                booked,
                account: self.clone(),
            }),
        }
    }

    /// Ids of the buffers that were dropped since the last call.
    pub(super) fn take_dropped(&self) -> Vec<u64> {
        std::mem::take(&mut *self.dropped())
    }

    fn dropped(&self) -> MutexGuard<'_, Vec<u64>> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a copy that leaves its buffer or is not aligned to words.
pub(super) fn check_copy(buffer: &GpuBuffer, offset: u64, bytes: u64) -> Result<(), OpError> {
    let size = buffer.bytes();
    let is_inside = offset.checked_add(bytes).is_some_and(|end| end <= size);
    if is_inside && offset.is_multiple_of(4) && bytes.is_multiple_of(4) {
        return Ok(());
    }
    Err(OpError::Range { offset, bytes, size })
}
