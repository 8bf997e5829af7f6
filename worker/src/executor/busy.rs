//! What a device's thread is at, as others see it: a driver that never returns leaves the thread unable to say so itself.
//!
//! No clock here: time is an argument.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tramontane_model::ids::Fence;

/// How much longer than its limit the device may take before it counts as hanging: the thread itself notices first
/// wherever it can.
const MARGIN: Duration = Duration::from_secs(2);

/// The work of a placement that the thread is at, and since when; loading is not counted, nor waiting for others.
#[derive(Debug, Default)]
pub(super) struct Busy(Mutex<Option<(Fence, Instant)>>);

impl Busy {
    /// The thread works for `fence` from now on, or for nobody.
    pub(super) fn set(&self, work: Option<(Fence, Instant)>) {
        *self.lock() = work;
    }

    /// What the thread was at, which it is not any more.
    pub(super) fn take(&self) -> Option<Fence> {
        self.lock().take().map(|(fence, _)| fence)
    }

    /// Whose work the thread hangs at, and for how long: longer than `limit` and some more.
    pub(super) fn hangs(&self, limit: Duration, now: Instant) -> Option<(Fence, Duration)> {
        let (fence, since) = (*self.lock())?;
        let taken = now.saturating_duration_since(since);
        (taken > limit + MARGIN).then_some((fence, taken))
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Fence, Instant)>> {
        // Nothing panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tramontane_model::ids::{Generation, ReplicaId};

    use super::*;

    #[test]
    fn only_work_that_takes_too_long_hangs() {
        let fence = Fence {
            replica: ReplicaId(1),
            generation: Generation(2),
        };
        let (busy, limit, start) = (Busy::default(), Duration::from_secs(30), Instant::now());
        let late = start + limit + MARGIN + Duration::from_millis(1);
        assert_eq!(busy.hangs(limit, late), None);
        busy.set(Some((fence, start)));
        assert_eq!(busy.hangs(limit, start + limit + MARGIN), None);
        assert_eq!(busy.hangs(limit, late), Some((fence, late - start)));
        assert_eq!(busy.take(), Some(fence));
        assert_eq!(busy.hangs(limit, late), None);
    }
}
