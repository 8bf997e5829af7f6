//! PL-3: generations only grow, a lower one is refused; what serves was loaded, and a device works for what it holds.

use std::collections::BTreeSet;

use tramontane_coordinator::control::state::ClusterState;
use tramontane_model::ids::{DeviceRef, Fence};

use super::{Checked, ensure};

/// From one state to the next.
pub(in super::super) fn check(
    before: &ClusterState,
    after: &ClusterState,
    ready: &BTreeSet<(DeviceRef, Fence)>,
) -> Checked {
    for (id, entry) in &before.replicas {
        let Some(next) = after.replicas.get(id) else {
            continue;
        };
        ensure("PL-3", entry.generation <= next.generation, || {
            format!(
                "replica {id} went from generation {} to {}",
                entry.generation, next.generation
            )
        })?;
        let (now, then) = (next.live(), entry.live());
        let same = entry.generation < next.generation || now.is_none() || then.is_none() || now == then;
        ensure("PL-3", same, || {
            format!("replica {id} has two placements of one generation")
        })?;
    }
    for (id, entry) in &after.replicas {
        let was = before.replicas.get(id).and_then(|entry| entry.serving());
        let Some(placement) = entry.serving().filter(|placement| was != Some(placement)) else {
            continue;
        };
        let fence = placement.fence();
        let missing = placement
            .devices()
            .into_iter()
            .find(|device| !ready.contains(&((*device).clone(), fence)));
        ensure("PL-3", missing.is_none(), || {
            format!("{fence} serves, but {missing:?} never loaded it")
        })?;
    }
    Ok(())
}

/// A device begins a step.
pub(in super::super) fn check_step(holds: Option<Fence>, step: Fence) -> Checked {
    ensure("PL-3", holds == Some(step), || {
        format!("a device that holds {holds:?} ran a step of {step}")
    })
}
