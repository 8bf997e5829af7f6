//! How far loading is, readable from any thread.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tramontane_model::members::LoadReport;

/// How far a load is, and since when it goes on.
#[derive(Debug, Default)]
pub struct LoadProgress(Mutex<Load>);

#[derive(Clone, Copy, Debug, Default)]
struct Load {
    loaded_bytes: u64,
    total_bytes: u64,
    /// Bytes that the device held already.
    held_bytes: u64,
    /// Nothing before it is known what is to be loaded.
    began: Option<Instant>,
}

impl LoadProgress {
    /// Nothing is known of the load yet.
    pub fn reset(&self) {
        *self.load() = Load::default();
    }

    /// Bytes on the device so far.
    pub fn loaded_bytes(&self) -> u64 {
        self.load().loaded_bytes
    }

    /// How far the load is, and how fast it went up to `now`.
    pub fn report(&self, now: Instant) -> LoadReport {
        let load = *self.load();
        LoadReport {
            loaded_bytes: load.loaded_bytes,
            total_bytes: load.total_bytes,
            bytes_per_second: load.bytes_per_second(now),
        }
    }

    /// The load begins: of `total_bytes` the device holds `held_bytes` already.
    pub(super) fn begin(&self, now: Instant, held_bytes: u64, total_bytes: u64) {
        *self.load() = Load {
            loaded_bytes: held_bytes,
            total_bytes,
            held_bytes,
            began: Some(now),
        };
    }

    pub(super) fn add(&self, bytes: u64) {
        self.load().loaded_bytes += bytes;
    }

    pub(super) fn set(&self, bytes: u64) {
        self.load().loaded_bytes = bytes;
    }

    fn load(&self) -> MutexGuard<'_, Load> {
        // Nothing panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    /// What was read in a second, in the mean; 0 before the first bytes.
    fn bytes_per_second(&self, now: Instant) -> u64 {
        let Some(began) = self.began else { return 0 };
        let read = self.loaded_bytes.saturating_sub(self.held_bytes);
        let took = now.saturating_duration_since(began).as_micros().max(1);
        u64::try_from(u128::from(read) * 1_000_000 / took).unwrap_or(u64::MAX)
    }
}

/// Who watches a load: where progress goes, and who may end it.
pub struct LoadWatch<'a> {
    /// Told after every chunk.
    pub progress: &'a LoadProgress,
    /// Asked before every chunk.
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_rate_is_that_of_what_was_read_since_the_load_began() {
        let progress = LoadProgress::default();
        let began = Instant::now();
        assert_eq!(progress.report(began), LoadReport::default());
        assert_eq!(progress.report(began).seconds_left(), None);
        progress.begin(began, 1000, 5000);
        let after = began + Duration::from_secs(2);
        let report = progress.report(after);
        assert_eq!((report.bytes_per_second, report.seconds_left()), (0, None));
        progress.add(1999);
        let report = progress.report(after);
        assert_eq!((report.bytes_per_second, report.seconds_left()), (999, Some(3)));
        progress.set(5000);
        let report = progress.report(after);
        assert_eq!((report.bytes_per_second, report.seconds_left()), (2000, Some(0)));
        progress.reset();
        assert_eq!(progress.report(after), LoadReport::default());
    }
}
