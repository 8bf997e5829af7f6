//! When a device thread loads copies for others: while nothing else is to be done.
//!
//! A copy that cannot be loaded ends nothing but the copies.

use std::sync::atomic::Ordering;
use std::time::Instant;

use tramontane_model::ids::Fence;
use tramontane_model::members::DeviceState;

use super::thread::{DeviceThread, guarded};
use super::{DeviceError, Executor};
use crate::weights::{Copies, LoadProgress, LoadWatch, WeightError};
use tramontane_kernels::ops::{Backend, OpError};

/// After a piece of a copy a device that serves loads no other for so many times as long as it took.
const PAUSE_AFTER_COPY: u32 = 3;

/// Copies that are to be kept for others.
#[derive(Debug, Default)]
pub(super) struct Copying {
    /// Rehearsals go as they are made.
    pub(super) wanted: Copies,
    /// One could not be loaded: no other is tried until they are told anew.
    failed: bool,
    not_before: Option<Instant>,
}

impl<B: Backend, F: FnMut() -> Result<B, OpError>> DeviceThread<'_, B, F> {
    pub(super) fn keep(&mut self, copies: Copies) {
        // Told again what it was told: what is done for that need not be done again.
        if copies.weights != self.copying.wanted.weights || self.copying.failed {
            self.copying = Copying {
                wanted: copies,
                ..Copying::default()
            };
        }
        if let Some(executor) = &mut self.executor {
            executor.keep_copies(&self.copying.wanted.weights);
        }
        self.note_copies();
    }

    fn is_idle(&self) -> bool {
        matches!(&*self.state.borrow(), DeviceState::Idle)
    }

    /// When there is something to do for copies if there is nothing else to do; `None` if there is nothing.
    pub(super) fn next_copy_at(&self) -> Option<Instant> {
        let executor = self.executor.as_ref().filter(|_| !self.copying.failed)?;
        let rehearses = !self.copying.wanted.rehearsals.is_empty() && self.is_idle();
        if executor.missing_copy().is_none() && !rehearses {
            return None;
        }
        Some(self.copying.not_before.unwrap_or_else(Instant::now))
    }

    /// Loads a piece of a copy, or makes the first steps with one. A device that serves pauses after it, so that its
    /// steps have most of the time; whoever gives it something else to do ends it.
    pub(super) fn copy(&mut self) {
        let Some(executor) = &mut self.executor else {
            return;
        };
        let Some(slice) = executor.missing_copy() else {
            return self.rehearse();
        };
        let serves = match &*self.state.borrow() {
            DeviceState::Ready { fence } => Some(*fence),
            DeviceState::Idle | DeviceState::Loading { .. } | DeviceState::Failed { .. } => None,
        };
        let started = Instant::now();
        self.shared.busy.set(serves.map(|fence| (fence, started)));
        let order = self.shared.order.load(Ordering::Relaxed);
        let cancelled = || self.shared.order.load(Ordering::Relaxed) != order;
        let watch = LoadWatch {
            progress: &LoadProgress::default(),
            cancelled: &cancelled,
        };
        let loaded = guarded(|| match executor.load_copy(slice, &watch) {
            Err(WeightError::Cancelled) => Ok(()),
            loaded => Ok(loaded?),
        });
        self.shared.busy.set(None);
        self.copying.not_before = serves.map(|_| Instant::now() + PAUSE_AFTER_COPY * started.elapsed());
        if let Err(error) = loaded {
            self.copy_failed(serves, &error);
        } else if self
            .executor
            .as_ref()
            .is_some_and(|executor| executor.missing_copy().is_none())
        {
            let bytes = self
                .executor
                .as_ref()
                .map(Executor::copied_bytes)
                .unwrap_or_default();
            tracing::info!(device = %self.options.index, bytes = bytes.loaded_bytes, "copies for others are loaded");
        }
        self.note_copies();
    }

    fn rehearse(&mut self) {
        let next = self.copying.wanted.rehearsals.pop();
        let (Some(executor), Some(slices)) = (&mut self.executor, next) else {
            return;
        };
        if let Err(error) = guarded(|| executor.rehearse(&slices)) {
            self.copy_failed(None, &error);
        }
    }

    /// No more copies are tried until the device is told anew; what it serves goes on unless the device itself is lost.
    fn copy_failed(&mut self, serves: Option<Fence>, error: &DeviceError) {
        self.copying.failed = true;
        metrics::counter!("tramontane_standby_failures_total").increment(1);
        tracing::warn!(device = %self.options.index, %error, "a copy for others could not be loaded or tried");
        match serves {
            Some(fence) if ends_device(error) => self.fail(fence, error),
            // It is opened anew with the next assignment.
            None if ends_device(error) => self.executor = None,
            Some(_) | None => {}
        }
    }

    pub(super) fn note_copies(&self) {
        let copied = self.executor.as_ref().map(Executor::copied_bytes);
        *self.shared.copies() = copied.unwrap_or_default();
    }
}

/// Whether a device cannot go on after a copy could not be loaded: memory that is short is no reason.
fn ends_device(error: &DeviceError) -> bool {
    let is_full = matches!(
        error,
        DeviceError::Weights(WeightError::Device {
            source: OpError::OutOfMemory { .. },
            ..
        })
    );
    !is_full && error.ends_device()
}
