//! When spare memory is filled with copies of weights: once everything that is placed serves and nothing else is to be
//! proposed. What serves does not notice.

use std::collections::BTreeMap;

use tramontane_model::ids::{DeviceIndex, WorkerId};
use tramontane_model::placement::Replica;
use tramontane_model::standby::{Share, Standby};

use super::leader::Leader;
use super::placing::{Around, Placing};
use super::plans::{Basis, candidates_of};
use super::proposals::Purpose;
use super::turn::Turn;
use super::view::LossView;
use crate::control::command::Command;
use crate::control::footprint::DeviceLimits;
use crate::control::planner::standbys::{Spare, fill, read_after};
use crate::control::state::{ClusterState, ReplicaEntry, Standing};

/// The standbys that were chosen last, and what for.
#[derive(Debug, Default)]
pub(super) struct Chosen(Option<(Basis, Vec<Standby>)>);

impl Placing {
    /// Proposes the standbys that there should be, if they are others than there are.
    pub(super) fn stand_by(&mut self, turn: &mut Turn<'_>, around: &mut Around<'_>) {
        let placed: Vec<&ReplicaEntry> = turn
            .state
            .replicas
            .values()
            .filter(|entry| entry.placement().is_some())
            .collect();
        let serving: Vec<&Replica> = placed.iter().filter_map(|entry| entry.serving()).collect();
        let rests = serving.len() == placed.len() && !serving.is_empty();
        if !rests || !around.proposals.is_open(&Purpose::Placement) {
            return;
        }
        let basis = Basis::now(turn, around, &self.failures);
        let known = self.chosen.0.take().filter(|(made_of, _)| *made_of == basis);
        let standbys = match known {
            Some((_, standbys)) => standbys,
            None if !turn.options.standbys => Vec::new(),
            None => fill(&Spare {
                footprint: &turn.options.model.footprint,
                replicas: &serving,
                candidates: &candidates_of(turn.state, basis.leaving()),
                left_out: basis.out(),
                present: &turn.state.standbys,
            }),
        };
        if standbys != turn.state.standbys {
            let command = Command::StandBy {
                standbys: standbys.clone(),
                expected_version: turn.state.version,
            };
            around.proposals.propose(turn, Purpose::Placement, command);
        }
        self.chosen.0 = Some((basis, standbys));
    }
}

/// What each device of a worker is to keep copies of.
pub(super) fn copies_of(state: &ClusterState, worker: &WorkerId) -> BTreeMap<DeviceIndex, Vec<Share>> {
    let own = state
        .standbys
        .iter()
        .filter(|standby| standby.device.worker == *worker);
    own.map(|standby| (standby.device.device, standby.shares.clone()))
        .collect()
}

impl Leader {
    /// The standbys whose copies are on their devices.
    fn loaded(&self, state: &ClusterState) -> Vec<Standby> {
        let is_loaded = |standby: &&Standby| {
            let report = self.members.report(&standby.device.worker);
            let mut devices = report.into_iter().flat_map(|report| &report.devices);
            let told = devices.find(|one| one.index == standby.device.device);
            told.is_some_and(|told| told.standby.total_bytes > 0 && told.standby.is_whole())
        };
        state.standbys.iter().filter(is_loaded).cloned().collect()
    }

    /// The loss of a worker after which the most bytes of a replica would have to be read.
    pub(super) fn worst_loss(&self, state: &ClusterState, placement: &Replica) -> Option<LossView> {
        let footprint = &state.model.as_ref()?.footprint;
        let copies = self.loaded(state);
        let taken = state.taken_from(placement.id);
        let limits = |device: &tramontane_model::ids::DeviceRef| {
            let worker = state.workers.get(&device.worker)?;
            let info = state.device(device)?;
            (worker.standing == Standing::Joined && !taken.contains_key(device)).then_some(DeviceLimits {
                memory_bytes: info.memory_bytes,
                max_binding_bytes: info.max_binding_bytes,
            })
        };
        let workers: std::collections::BTreeSet<&WorkerId> = placement
            .devices()
            .into_iter()
            .map(|device| &device.worker)
            .collect();
        let losses = workers.into_iter().map(|worker| LossView {
            read_bytes: read_after(footprint, placement, worker, &copies, limits),
            worker: worker.to_string(),
        });
        // The first of equals, by name.
        losses.reduce(|worst, next| {
            if next.read_bytes > worst.read_bytes {
                next
            } else {
                worst
            }
        })
    }
}
