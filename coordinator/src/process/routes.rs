//! What the gateway needs to know of the cluster's state.

use std::collections::BTreeMap;
use std::sync::Arc;

use tramontane_model::ids::Fence;

use crate::control::controller::Progress;
use crate::control::state::{ClusterState, Phase, ReplicaEntry};
use crate::gateway::{NotServing, Route, Routes};

/// The routes of a state; `progress` is what this coordinator knows of devices that load.
pub fn routes(state: &ClusterState, progress: &BTreeMap<Fence, Progress>) -> Arc<Routes> {
    let replicas = state.replicas.values().filter_map(|entry| {
        let fence = entry.placement()?.fence();
        let head = entry.serving().and_then(|placement| placement.head());
        let worker = head.and_then(|head| state.workers.get(&head.worker));
        let head = worker.map(|worker| worker.info.address.clone());
        Some(Route { fence, head })
    });
    Arc::new(Routes {
        replicas: replicas.collect(),
        missing: missing(state, progress),
    })
}

/// Why no replica serves, should none do so: the one that is nearest to serving says.
fn missing(state: &ClusterState, progress: &BTreeMap<Fence, Progress>) -> NotServing {
    let reasons = state.replicas.values().map(|entry| reason(entry, progress));
    let first = reasons.min_by_key(|reason| match reason {
        NotServing::Loading { .. } => 0,
        NotServing::Broken { .. } => 1,
        NotServing::Unplaceable { .. } | NotServing::CutOff { .. } => 2,
        NotServing::Unplaced { .. } | NotServing::Unknown => 3,
    });
    match first {
        Some(reason) => reason,
        None if state.commands == 0 => NotServing::Unknown,
        None => NotServing::Unplaced {
            workers: state.workers.len(),
        },
    }
}

fn reason(entry: &ReplicaEntry, progress: &BTreeMap<Fence, Progress>) -> NotServing {
    match &entry.phase {
        Phase::Loading { placement } | Phase::Serving { placement } => {
            let fence = placement.fence();
            let Progress {
                loaded_bytes,
                total_bytes,
                ..
            } = progress.get(&fence).copied().unwrap_or_default();
            NotServing::Loading {
                fence,
                loaded_bytes,
                total_bytes,
            }
        }
        Phase::Broken { placement, fault } => NotServing::Broken {
            fence: placement.fence(),
            reason: fault.to_string(),
        },
        Phase::Unplaceable { reason, .. } => NotServing::Unplaceable {
            reason: reason.clone(),
        },
    }
}
