//! How far loading is, readable from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes loaded and bytes in the end. The two are read one after the other: they are for people, not for decisions.
#[derive(Debug, Default)]
pub struct LoadProgress {
    loaded_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl LoadProgress {
    /// Starts anew, with `total_bytes` to load.
    pub fn reset(&self, total_bytes: u64) {
        self.loaded_bytes.store(0, Ordering::Relaxed);
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// Bytes on the device so far.
    pub fn loaded_bytes(&self) -> u64 {
        self.loaded_bytes.load(Ordering::Relaxed)
    }

    /// Bytes on the device in the end.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, bytes: u64) {
        self.loaded_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn set(&self, bytes: u64) {
        self.loaded_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// Who watches a load: where progress goes, and who may end it.
pub struct LoadWatch<'a> {
    /// Told after every chunk.
    pub progress: &'a LoadProgress,
    /// Asked before every chunk.
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
}
