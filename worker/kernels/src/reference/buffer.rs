//! Memory of the reference backend: words behind a lock, with an account of the bytes held.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ops::DeviceBuffer;

/// A buffer of the reference backend.
#[derive(Clone, Debug)]
pub struct CpuBuffer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    words: Mutex<Vec<u32>>,
    bytes: u64,
    held: Arc<AtomicU64>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl DeviceBuffer for CpuBuffer {
    fn bytes(&self) -> u64 {
        self.inner.bytes
    }
}

impl CpuBuffer {
    pub(super) fn new(words: usize, held: &Arc<AtomicU64>) -> Self {
        let bytes = words as u64 * 4;
        held.fetch_add(bytes, Ordering::Relaxed);
        Self {
            inner: Arc::new(Inner {
                words: Mutex::new(vec![0; words]),
                bytes,
                held: Arc::clone(held),
            }),
        }
    }

    /// The words, locked. Ops copy their inputs before they lock their output, so no two locks are held at once.
    pub(super) fn words(&self) -> MutexGuard<'_, Vec<u32>> {
        self.inner.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the first `count` words.
    pub(super) fn u32s(&self, count: usize) -> Vec<u32> {
        self.words().iter().take(count).copied().collect()
    }

    /// A copy of the first `count` values.
    pub(super) fn f32s(&self, count: usize) -> Vec<f32> {
        self.words()
            .iter()
            .take(count)
            .map(|&bits| f32::from_bits(bits))
            .collect()
    }

    /// Replaces the values from `start` on.
    pub(super) fn store(&self, start: usize, values: &[f32]) {
        for (word, value) in self.words().iter_mut().skip(start).zip(values) {
            *word = value.to_bits();
        }
    }

    /// A copy of `bytes` bytes from `offset`; both are multiples of 4 in checked operands, or the tail is cut.
    pub(super) fn span(&self, offset: u64, bytes: u64) -> Vec<u8> {
        let words = self.words();
        let all: &[u8] = bytemuck::cast_slice(&words);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(all.len());
        let length = usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .min(all.len() - start);
        all[start..start + length].to_vec()
    }
}
