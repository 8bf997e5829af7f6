//! What workers and the leading coordinator tell one another.

use std::collections::BTreeMap;

use bytes::Bytes;
use tramontane_model::ids::{CoordinatorId, DeviceIndex, Fence, WorkerId};
use tramontane_model::members::{
    DeviceInfo, DeviceReport, DeviceState, LoadReport, MAX_DEVICES, MAX_REASON_BYTES, MAX_TEXT_BYTES,
    SchedulerLoad, StandbyReport, WorkerInfo, WorkerReport,
};
use tramontane_model::placement::Replica;
use tramontane_model::standby::Share;

use crate::fields::{at_most, exact, fence, invalid, required, text, worker};
use crate::{WireError, v1 as pb};

/// Longest join token, in bytes.
const MAX_TOKEN_BYTES: usize = 256;
/// Most workers named in an assignment.
const MAX_PEERS: usize = 4096;
/// Most shares that one device keeps copies of.
const MAX_SHARES: usize = 4096;

/// A worker that asks to be let in.
#[derive(Clone, PartialEq, Eq)]
pub struct Joining {
    /// The cluster's join token; compared at the door and dropped.
    pub token: Bytes,
    /// What it says of itself.
    pub info: WorkerInfo,
}

/// One message of a worker.
#[derive(Clone, PartialEq, Eq)]
pub enum WorkerUpdate {
    /// Comes first and once.
    Join(Joining),
    /// Comes every heartbeat.
    Report(WorkerReport),
}

/// One message of the leading coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Directive {
    /// Comes first and once.
    Welcome {
        /// Who leads.
        coordinator: CoordinatorId,
        /// Its term.
        term: u64,
        /// How often to report, in milliseconds.
        heartbeat_ms: u32,
        /// After how long without a report a worker counts as lost, in milliseconds.
        lease_ms: u32,
    },
    /// What the worker's devices are to hold.
    Assign {
        /// The whole replica.
        replica: Replica,
        /// Addresses of all workers that take part.
        peers: BTreeMap<WorkerId, String>,
    },
    /// What the worker may free, up to this generation.
    Release(Fence),
    /// What each device is to keep copies of; one that is not named keeps none.
    StandBy(BTreeMap<DeviceIndex, Vec<Share>>),
    /// The answer to a report that says leaving.
    Leave {
        /// Why the worker cannot be done without; absent: nothing lies on it any more, and it may go.
        refused: Option<String>,
    },
}

impl TryFrom<pb::Join> for Joining {
    type Error = WireError;
    fn try_from(wire: pb::Join) -> Result<Self, WireError> {
        at_most("join.token", "bytes", wire.token.len(), MAX_TOKEN_BYTES)?;
        at_most("join.devices", "devices", wire.devices.len(), MAX_DEVICES)?;
        let devices = wire
            .devices
            .into_iter()
            .map(DeviceInfo::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        if devices.is_empty()
            || devices
                .iter()
                .zip(0..)
                .any(|(device, index)| device.index.0 != index)
        {
            return Err(invalid(
                "join.devices",
                "there must be at least one, with indexes 0, 1, ... in order",
            ));
        }
        let info = WorkerInfo {
            worker: worker("join.worker", &wire.worker)?,
            incarnation: wire.incarnation,
            address: text("join.address", wire.address, MAX_TEXT_BYTES)?,
            pid: wire.pid,
            version: text("join.version", wire.version, MAX_TEXT_BYTES)?,
            model_fingerprint: exact("join.model_fingerprint", &wire.model_fingerprint)?,
            devices,
        };
        Ok(Self {
            token: wire.token,
            info,
        })
    }
}

impl From<Joining> for pb::Join {
    fn from(joining: Joining) -> Self {
        let Joining { token, info } = joining;
        Self {
            worker: info.worker.into(),
            token,
            incarnation: info.incarnation,
            address: info.address,
            pid: info.pid,
            version: info.version,
            model_fingerprint: info.model_fingerprint.to_vec().into(),
            devices: info.devices.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Device> for DeviceInfo {
    type Error = WireError;
    fn try_from(wire: pb::Device) -> Result<Self, WireError> {
        Ok(Self {
            index: DeviceIndex(wire.index),
            adapter: text("device.adapter", wire.adapter, MAX_TEXT_BYTES)?,
            driver: text("device.driver", wire.driver, MAX_TEXT_BYTES)?,
            kind: text("device.kind", wire.kind, MAX_TEXT_BYTES)?,
            is_cpu: wire.is_cpu,
            memory_bytes: wire.memory_bytes,
            max_binding_bytes: wire.max_binding_bytes,
        })
    }
}

impl From<DeviceInfo> for pb::Device {
    fn from(device: DeviceInfo) -> Self {
        Self {
            index: device.index.0,
            adapter: device.adapter,
            driver: device.driver,
            kind: device.kind,
            is_cpu: device.is_cpu,
            memory_bytes: device.memory_bytes,
            max_binding_bytes: device.max_binding_bytes,
        }
    }
}

impl TryFrom<pb::DeviceReport> for DeviceReport {
    type Error = WireError;
    fn try_from(wire: pb::DeviceReport) -> Result<Self, WireError> {
        use pb::device_report::State;
        let state = match required("device.state", wire.state)? {
            State::Idle(pb::Idle {}) => DeviceState::Idle,
            State::Loading(loading) => DeviceState::Loading {
                fence: fence(loading.fence)?,
                load: LoadReport {
                    loaded_bytes: loading.loaded_bytes,
                    total_bytes: loading.total_bytes,
                    bytes_per_second: loading.bytes_per_second,
                },
            },
            State::Ready(ready) => DeviceState::Ready {
                fence: fence(ready.fence)?,
            },
            State::Failed(failed) => DeviceState::Failed {
                fence: fence(failed.fence)?,
                reason: text("device.failed.reason", failed.reason, MAX_REASON_BYTES)?,
            },
        };
        Ok(Self {
            index: DeviceIndex(wire.index),
            held_bytes: wire.held_bytes,
            state,
            standby: StandbyReport {
                loaded_bytes: wire.standby_bytes,
                total_bytes: wire.standby_total_bytes,
            },
        })
    }
}

impl From<DeviceReport> for pb::DeviceReport {
    fn from(report: DeviceReport) -> Self {
        use pb::device_report::State;
        let state = match report.state {
            DeviceState::Idle => State::Idle(pb::Idle {}),
            DeviceState::Loading { fence, load } => State::Loading(pb::Loading {
                fence: Some(fence.into()),
                loaded_bytes: load.loaded_bytes,
                total_bytes: load.total_bytes,
                bytes_per_second: load.bytes_per_second,
            }),
            DeviceState::Ready { fence } => State::Ready(pb::Ready {
                fence: Some(fence.into()),
            }),
            DeviceState::Failed { fence, mut reason } => {
                reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
                State::Failed(pb::Failed {
                    fence: Some(fence.into()),
                    reason,
                })
            }
        };
        Self {
            index: report.index.0,
            held_bytes: report.held_bytes,
            state: Some(state),
            standby_bytes: report.standby.loaded_bytes,
            standby_total_bytes: report.standby.total_bytes,
        }
    }
}

impl TryFrom<pb::SchedulerLoad> for SchedulerLoad {
    type Error = WireError;
    fn try_from(wire: pb::SchedulerLoad) -> Result<Self, WireError> {
        Ok(Self {
            fence: fence(wire.fence)?,
            running: wire.running,
            waiting: wire.waiting,
            kv_blocks_used: wire.kv_blocks_used,
            kv_blocks_total: wire.kv_blocks_total,
        })
    }
}

impl From<SchedulerLoad> for pb::SchedulerLoad {
    fn from(load: SchedulerLoad) -> Self {
        Self {
            fence: Some(load.fence.into()),
            running: load.running,
            waiting: load.waiting,
            kv_blocks_used: load.kv_blocks_used,
            kv_blocks_total: load.kv_blocks_total,
        }
    }
}

impl TryFrom<pb::Report> for WorkerReport {
    type Error = WireError;
    fn try_from(wire: pb::Report) -> Result<Self, WireError> {
        at_most("report.devices", "devices", wire.devices.len(), MAX_DEVICES)?;
        at_most("report.loads", "loads", wire.loads.len(), MAX_DEVICES)?;
        let loads = wire.loads.into_iter().map(SchedulerLoad::try_from);
        Ok(Self {
            devices: wire
                .devices
                .into_iter()
                .map(DeviceReport::try_from)
                .collect::<Result<_, _>>()?,
            loads: loads.collect::<Result<_, _>>()?,
            leaving: wire.leaving,
        })
    }
}

impl From<WorkerReport> for pb::Report {
    fn from(report: WorkerReport) -> Self {
        Self {
            devices: report.devices.into_iter().map(Into::into).collect(),
            loads: report.loads.into_iter().map(Into::into).collect(),
            leaving: report.leaving,
        }
    }
}

impl TryFrom<pb::WorkerMessage> for WorkerUpdate {
    type Error = WireError;
    fn try_from(wire: pb::WorkerMessage) -> Result<Self, WireError> {
        Ok(match required("body", wire.body)? {
            pb::worker_message::Body::Join(join) => Self::Join(join.try_into()?),
            pb::worker_message::Body::Report(report) => Self::Report(report.try_into()?),
        })
    }
}

impl From<WorkerUpdate> for pb::WorkerMessage {
    fn from(update: WorkerUpdate) -> Self {
        let body = match update {
            WorkerUpdate::Join(joining) => pb::worker_message::Body::Join(joining.into()),
            WorkerUpdate::Report(report) => pb::worker_message::Body::Report(report.into()),
        };
        Self { body: Some(body) }
    }
}

impl TryFrom<pb::CoordinatorMessage> for Directive {
    type Error = WireError;
    fn try_from(wire: pb::CoordinatorMessage) -> Result<Self, WireError> {
        use pb::coordinator_message::Body;
        Ok(match required("body", wire.body)? {
            Body::Welcome(welcome) => Self::Welcome {
                coordinator: CoordinatorId(welcome.coordinator),
                term: welcome.term,
                heartbeat_ms: welcome.heartbeat_ms,
                lease_ms: welcome.lease_ms,
            },
            Body::Assignment(assignment) => {
                at_most("assignment.peers", "workers", assignment.peers.len(), MAX_PEERS)?;
                let peer = |peer: pb::Peer| {
                    let address = text("peer.address", peer.address, MAX_TEXT_BYTES)?;
                    Ok::<_, WireError>((worker("peer.worker", &peer.worker)?, address))
                };
                Self::Assign {
                    replica: required("assignment.replica", assignment.replica)?.try_into()?,
                    peers: assignment.peers.into_iter().map(peer).collect::<Result<_, _>>()?,
                }
            }
            Body::Release(release) => Self::Release(fence(release.fence)?),
            Body::StandBy(pb::StandBy { devices }) => {
                at_most("stand_by.devices", "devices", devices.len(), MAX_DEVICES)?;
                let mut copies = BTreeMap::new();
                for device in devices {
                    at_most("stand_by.shares", "shares", device.shares.len(), MAX_SHARES)?;
                    let shares = device.shares.into_iter().map(Share::try_from);
                    let shares = shares.collect::<Result<_, _>>()?;
                    copies.insert(DeviceIndex(device.device), shares);
                }
                Self::StandBy(copies)
            }
            Body::Leave(pb::Leave { refused }) => {
                let refused = text("leave.refused", refused, MAX_REASON_BYTES)?;
                Self::Leave {
                    refused: Some(refused).filter(|refused| !refused.is_empty()),
                }
            }
        })
    }
}

impl From<Directive> for pb::CoordinatorMessage {
    fn from(directive: Directive) -> Self {
        use pb::coordinator_message::Body;
        let body = match directive {
            Directive::Welcome {
                coordinator,
                term,
                heartbeat_ms,
                lease_ms,
            } => Body::Welcome(pb::Welcome {
                coordinator: coordinator.0,
                term,
                heartbeat_ms,
                lease_ms,
            }),
            Directive::Assign { replica, peers } => Body::Assignment(pb::Assignment {
                replica: Some((&replica).into()),
                peers: peers
                    .into_iter()
                    .map(|(worker, address)| pb::Peer {
                        worker: worker.into(),
                        address,
                    })
                    .collect(),
            }),
            Directive::Release(fence) => Body::Release(pb::Release {
                fence: Some(fence.into()),
            }),
            Directive::StandBy(copies) => Body::StandBy(pb::StandBy {
                devices: copies
                    .into_iter()
                    .map(|(device, shares)| pb::DeviceCopies {
                        device: device.0,
                        shares: shares.into_iter().map(Into::into).collect(),
                    })
                    .collect(),
            }),
            Directive::Leave { refused } => Body::Leave(pb::Leave {
                refused: refused.unwrap_or_default(),
            }),
        };
        Self { body: Some(body) }
    }
}
