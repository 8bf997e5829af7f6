//! Devices that failed, and how long they are left out.

use std::collections::{BTreeMap, BTreeSet};

use tramontane_model::ids::{DeviceRef, Generation, ReplicaId};
use tramontane_model::time::Tick;

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

/// All failures that the state told of under this leader.
#[derive(Debug, Default)]
pub(super) struct Failures {
    devices: BTreeMap<DeviceRef, Failure>,
    noted: BTreeMap<ReplicaId, Generation>,
}

impl Failures {
    /// Counts failures that the state tells of and that were not counted; forgets devices that are no member's.
    pub(super) fn follow_state(&mut self, now: Tick, state: &ClusterState) {
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

    /// Devices to do without, if that can be done.
    pub(super) fn left_out(&self, now: Tick) -> BTreeSet<DeviceRef> {
        self.while_before(now, Failure::left_out_until)
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
