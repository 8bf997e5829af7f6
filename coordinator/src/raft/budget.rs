//! A bound on the bytes that a queue holds, next to the bound on their number.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that may still be queued; clones share it.
#[derive(Clone, Debug)]
pub(super) struct ByteBudget(Arc<AtomicUsize>);

/// Bytes taken from a budget until this is dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    left: Arc<AtomicUsize>,
    bytes: usize,
}

impl ByteBudget {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// Takes `bytes`, if as many are left.
    pub(super) fn reserve(&self, bytes: usize) -> Option<Reserved> {
        let take = |left: usize| left.checked_sub(bytes);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .ok()?;
        Some(Reserved {
            left: self.0.clone(),
            bytes,
        })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_comes_back() {
        let budget = ByteBudget::new(10);
        let six = budget.reserve(6).unwrap();
        assert!(budget.reserve(5).is_none());
        let four = budget.reserve(4).unwrap();
        drop(six);
        assert!(budget.reserve(6).is_some());
        drop(four);
        assert!(budget.reserve(10).is_some());
    }
}
