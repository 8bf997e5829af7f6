//! What a worker tells of itself: its devices when it joins, their state ever after.
//!
//! Pure data. The join token is not here: it is compared at the door and never kept.

use serde::{Deserialize, Serialize};

use crate::ids::{DeviceIndex, Fence, WorkerId};

/// Most devices of one worker.
pub const MAX_DEVICES: usize = 64;
/// Longest adapter, driver, kind, version or address text, in bytes.
pub const MAX_TEXT_BYTES: usize = 512;
/// Longest failure reason, in bytes.
pub const MAX_REASON_BYTES: usize = 4096;

/// One GPU as its worker found it at start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Which of the worker's devices.
    pub index: DeviceIndex,
    /// Adapter name, as the driver gives it.
    pub adapter: String,
    /// Driver name and version.
    pub driver: String,
    /// Adapter, driver version and kernel-set version: equal kinds give equal bits (DET-1).
    pub kind: String,
    /// Whether it is a processor that emulates a GPU.
    pub is_cpu: bool,
    /// Bytes that may be used for weights, KV cache and scratch.
    pub memory_bytes: u64,
    /// Largest range that one binding may cover, in bytes.
    pub max_binding_bytes: u64,
}

/// A worker process as it joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Its configured name.
    pub worker: WorkerId,
    /// Random, drawn at each start of the process: tells a restart from a reconnection.
    pub incarnation: u64,
    /// Where other members reach it, `host:port`.
    pub address: String,
    /// Its process id, for operators.
    pub pid: u32,
    /// Its program version.
    pub version: String,
    /// Fingerprint of its checkpoint.
    pub model_fingerprint: [u8; 32],
    /// Its devices, indexes `0..`.
    pub devices: Vec<DeviceInfo>,
}

/// What a device is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// It holds nothing.
    Idle,
    /// It is loading its slices.
    Loading {
        /// For whom.
        fence: Fence,
        /// How far it is.
        load: LoadReport,
    },
    /// It is ready to run steps.
    Ready {
        /// For whom.
        fence: Fence,
    },
    /// It could not load, or its GPU failed.
    Failed {
        /// For whom.
        fence: Fence,
        /// Why, for people.
        reason: String,
    },
}

/// How far a device is that loads, and how fast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Bytes on the device so far.
    pub loaded_bytes: u64,
    /// Bytes in the end.
    pub total_bytes: u64,
    /// What was read in a second since the load began, in the mean; 0 before the first bytes.
    pub bytes_per_second: u64,
}

impl LoadReport {
    /// How long the rest takes at this rate, in whole seconds, rounded up; nothing while the rate is not known.
    pub fn seconds_left(&self) -> Option<u64> {
        match self.total_bytes.saturating_sub(self.loaded_bytes) {
            // Before it is known what is to be loaded, nothing is left either.
            0 if self.total_bytes > 0 => Some(0),
            0 => None,
            left if self.bytes_per_second > 0 => Some(left.div_ceil(self.bytes_per_second)),
            _ => None,
        }
    }
}

impl DeviceState {
    /// The replica generation that the device works for.
    pub fn fence(&self) -> Option<Fence> {
        match self {
            Self::Idle => None,
            Self::Loading { fence, .. } | Self::Ready { fence } | Self::Failed { fence, .. } => Some(*fence),
        }
    }
}

/// One device's part of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Which of the worker's devices.
    pub index: DeviceIndex,
    /// Bytes allocated on it.
    pub held_bytes: u64,
    /// What it is doing.
    pub state: DeviceState,
    /// How far its copies of weights are.
    pub standby: StandbyReport,
}

/// How far a device's copies of weights are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyReport {
    /// Bytes on the device so far.
    pub loaded_bytes: u64,
    /// Bytes that it is to keep; what it computes with does not count.
    pub total_bytes: u64,
}

impl StandbyReport {
    /// Whether all of them are on the device.
    pub fn is_whole(&self) -> bool {
        self.loaded_bytes >= self.total_bytes
    }
}

/// What a replica's scheduler is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerLoad {
    /// Whose scheduler it is.
    pub fence: Fence,
    /// Sequences that hold cache blocks.
    pub running: u32,
    /// Sequences that wait for admission.
    pub waiting: u32,
    /// Cache blocks in use.
    pub kv_blocks_used: u32,
    /// Cache blocks in all.
    pub kv_blocks_total: u32,
}

/// Sent every heartbeat, and at once when a device changes state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Every device of the worker.
    pub devices: Vec<DeviceReport>,
    /// One for each replica whose scheduler the worker hosts.
    pub loads: Vec<SchedulerLoad>,
    /// The worker is to stop and asks to be done without.
    pub leaving: bool,
}
