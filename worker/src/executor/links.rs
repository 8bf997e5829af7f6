//! Expert links between the devices of one worker: work stays in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tramontane_model::ids::{DeviceIndex, DeviceRef, WorkerId};
use tramontane_proto::ExpertWork;

use super::exchange::{ExpertAnswer, ExpertLinks};
use super::handle::DeviceHandle;

/// Reaches the devices of this worker directly, and all others over the links it was given.
pub struct LocalLinks {
    worker: WorkerId,
    devices: BTreeMap<DeviceIndex, DeviceHandle>,
    peers: Option<Arc<dyn ExpertLinks>>,
    timeout: Duration,
}

impl LocalLinks {
    /// Links for `worker`, whose devices are `devices`. Work for other workers goes to `peers`; without them it
    /// fails. A device gives up work that waited for `timeout`.
    pub fn new(
        worker: WorkerId,
        devices: impl IntoIterator<Item = DeviceHandle>,
        peers: Option<Arc<dyn ExpertLinks>>,
        timeout: Duration,
    ) -> Self {
        Self {
            worker,
            devices: devices
                .into_iter()
                .map(|device| (device.index(), device))
                .collect(),
            peers,
            timeout,
        }
    }
}

impl ExpertLinks for LocalLinks {
    fn send(&self, holder: &DeviceRef, work: ExpertWork, answer: ExpertAnswer) {
        if holder.worker == self.worker {
            match self.devices.get(&holder.device) {
                Some(device) => device.experts_for_device(work, answer, Instant::now() + self.timeout),
                None => answer.deliver(Err(format!(
                    "worker {} has no device {}",
                    self.worker, holder.device
                ))),
            }
            return;
        }
        match &self.peers {
            Some(peers) => peers.send(holder, work, answer),
            None => answer.deliver(Err(format!("there is no link to worker {}", holder.worker))),
        }
    }
}
