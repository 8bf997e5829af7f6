//! Devices that failed and workers that come and go, and how long they are left out.

use std::collections::{BTreeMap, BTreeSet};

use tramontane_model::ids::{DeviceRef, Generation, ReplicaId, WorkerId};
use tramontane_model::time::Tick;

use crate::control::limits::MAX_WORKERS;
use crate::control::state::{ClusterState, Fault, Phase};

/// A device is left out for so long after its first failure, twice as long after each other one, in milliseconds.
const LEFT_OUT_MS: u64 = 5000;
/// Longest it is left out.
const MAX_LEFT_OUT_MS: u64 = 300_000;
/// Where nothing fits without it, it is tried again at once after its first failure, then after so long and twice as
/// long each time.
const PAUSE_MS: u64 = 1000;
/// Longest such pause.
const MAX_PAUSE_MS: u64 = 60_000;
/// A worker that was lost so many times is left out for [`LEFT_OUT_MS`] from the last time on where others will do, twice as
/// long with each other time.
const LOSSES: u32 = 3;
/// Longest it is left out.
const MAX_WORKER_LEFT_OUT_MS: u64 = 60_000;
/// A worker that was not lost for so long is as good as any.
const LOSSES_FORGOTTEN_MS: u64 = 120_000;
/// Doublings beyond this change nothing.
const MAX_DOUBLINGS: u32 = 16;

#[derive(Clone, Copy, Debug)]
struct Failure {
    count: u32,
    at: Tick,
}

impl Failure {
    fn left_out_until(self) -> Tick {
        let doublings = self.count.saturating_sub(1).min(MAX_DOUBLINGS);
        self.at.after_ms((LEFT_OUT_MS << doublings).min(MAX_LEFT_OUT_MS))
    }

    fn paused_until(self) -> Tick {
        match self.count.checked_sub(2) {
            Some(doublings) => {
                let pause = (PAUSE_MS << doublings.min(MAX_DOUBLINGS)).min(MAX_PAUSE_MS);
                self.at.after_ms(pause)
            }
            None => self.at,
        }
    }

    /// A device that did not fail for so long after it was let in again is as good as any.
    fn forgotten_at(self) -> Tick {
        self.left_out_until().after_ms(MAX_LEFT_OUT_MS)
    }
}

/// How a worker comes and goes.
#[derive(Clone, Copy, Debug)]
struct Presence {
    /// While it is a member.
    incarnation: Option<u64>,
    losses: u32,
    /// When it was last lost.
    at: Tick,
}

impl Presence {
    fn left_out_until(self) -> Tick {
        match self.losses.checked_sub(LOSSES) {
            Some(doublings) => {
                let left_out = LEFT_OUT_MS << doublings.min(MAX_DOUBLINGS);
                self.at.after_ms(left_out.min(MAX_WORKER_LEFT_OUT_MS))
            }
            None => self.at,
        }
    }
}

/// All failures that the state told of under this leader.
#[derive(Debug, Default)]
pub(super) struct Failures {
    devices: BTreeMap<DeviceRef, Failure>,
    noted: BTreeMap<ReplicaId, Generation>,
    workers: BTreeMap<WorkerId, Presence>,
}

impl Failures {
    /// Counts failures that the state tells of and that were not counted; forgets devices that are no member's.
    pub(super) fn follow_state(&mut self, now: Tick, state: &ClusterState) {
        self.follow_workers(now, state);
        for (&id, entry) in &state.replicas {
            let Phase::Broken {
                fault: Fault::Device { device, .. },
                ..
            } = &entry.phase
            else {
                continue;
            };
            if self.noted.insert(id, entry.generation) == Some(entry.generation) {
                continue;
            }
            let count = self.devices.get(device).map_or(0, |failure| failure.count);
            let failure = Failure {
                count: count.saturating_add(1),
                at: now,
            };
            self.devices.insert(device.clone(), failure);
        }
        self.devices
            .retain(|device, failure| state.device(device).is_some() && now < failure.forgotten_at());
    }

    /// Counts losses of workers; a new process of one is a loss of the old.
    fn follow_workers(&mut self, now: Tick, state: &ClusterState) {
        for (worker, presence) in &mut self.workers {
            let incarnation = state.workers.get(worker).map(|entry| entry.info.incarnation);
            if presence.incarnation.is_some() && presence.incarnation != incarnation {
                presence.losses = presence.losses.saturating_add(1);
                presence.at = now;
            }
            presence.incarnation = incarnation;
            if now.ms_since(presence.at) >= LOSSES_FORGOTTEN_MS {
                presence.losses = 0;
            }
        }
        let is_full = self.workers.len() > 2 * MAX_WORKERS;
        self.workers
            .retain(|_, presence| presence.incarnation.is_some() || (presence.losses > 0 && !is_full));
        for (worker, entry) in &state.workers {
            self.workers.entry(worker.clone()).or_insert(Presence {
                incarnation: Some(entry.info.incarnation),
                losses: 0,
                at: now,
            });
        }
    }

    /// Devices to do without, if that can be done.
    pub(super) fn left_out(&self, now: Tick, state: &ClusterState) -> BTreeSet<DeviceRef> {
        let mut out = self.while_before(now, Failure::left_out_until);
        let flapping = self
            .workers
            .iter()
            .filter(|(_, presence)| now < presence.left_out_until());
        for (worker, entry) in flapping.filter_map(|(worker, _)| Some((worker, state.workers.get(worker)?))) {
            out.extend(entry.info.devices.iter().map(|info| DeviceRef {
                worker: worker.clone(),
                device: info.index,
            }));
        }
        out
    }

    /// Devices that are not to be tried yet, whatever fits.
    pub(super) fn paused(&self, now: Tick) -> BTreeSet<DeviceRef> {
        self.while_before(now, Failure::paused_until)
    }

    fn while_before(&self, now: Tick, until: impl Fn(Failure) -> Tick) -> BTreeSet<DeviceRef> {
        let out = self.devices.iter().filter(|&(_, &failure)| now < until(failure));
        out.map(|(device, _)| device.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use tramontane_model::ids::DeviceIndex;
    use tramontane_model::members::{DeviceInfo, WorkerInfo};

    use super::*;
    use crate::control::state::{Standing, WorkerEntry};

    fn with(incarnation: Option<u64>) -> ClusterState {
        let device = DeviceInfo {
            index: DeviceIndex(0),
            adapter: String::new(),
            driver: String::new(),
            kind: String::new(),
            is_cpu: true,
            memory_bytes: 1,
            max_binding_bytes: 1,
        };
        let worker = WorkerId::new("w1").expect("a name");
        let entry = |incarnation| WorkerEntry {
            info: WorkerInfo {
                worker: worker.clone(),
                incarnation,
                address: String::new(),
                pid: 1,
                version: String::new(),
                model_fingerprint: [0; 32],
                devices: vec![device.clone()],
            },
            standing: Standing::Joined,
        };
        let workers = incarnation.map(|incarnation| (worker.clone(), entry(incarnation)));
        ClusterState {
            workers: workers.into_iter().collect(),
            ..ClusterState::default()
        }
    }

    #[test]
    fn a_worker_that_comes_and_goes_is_left_out_longer_and_longer() {
        let mut failures = Failures::default();
        let mut now = Tick(1000);
        let is_out =
            |failures: &Failures, now, state: &ClusterState| !failures.left_out(now, state).is_empty();
        failures.follow_state(now, &with(Some(0)));
        // Lost and back, or back as another process before anybody noticed.
        for (incarnation, left_out_ms) in [(1, 0), (2, 0), (3, 5000), (4, 10_000), (5, 20_000)] {
            now = now.after_ms(100);
            if incarnation % 2 == 0 {
                failures.follow_state(now, &with(None));
            }
            let back = with(Some(incarnation));
            failures.follow_state(now, &back);
            assert_eq!(is_out(&failures, now, &back), left_out_ms > 0, "{incarnation}");
            if left_out_ms > 0 {
                assert!(is_out(&failures, now.after_ms(left_out_ms - 1), &back));
                assert!(!is_out(&failures, now.after_ms(left_out_ms), &back));
            }
        }
        // After two minutes of peace it may be lost again as if for the first time.
        now = now.after_ms(LOSSES_FORGOTTEN_MS);
        failures.follow_state(now, &with(Some(5)));
        failures.follow_state(now, &with(Some(6)));
        assert!(!is_out(&failures, now, &with(Some(6))));
    }
}
