//! How a whole cluster would be filled, and what of it would go on without one of its workers.
//!
//! Nothing is placed here: it is what the controller would come to, one replica after the other, if all these devices
//! had joined and nothing else ever happened.

use std::collections::BTreeSet;

use tramontane_model::ids::{DeviceRef, Generation, ReplicaId, WorkerId};
use tramontane_model::placement::Replica;
use tramontane_model::standby::Standby;
use tramontane_model::step::StepBounds;

use super::movement::Held;
use super::standbys::{Spare, fill};
use super::{Candidate, Missing, Plan, Request, Wishes, plan};
use crate::control::footprint::ModelFootprint;
use crate::control::limits::MAX_REPLICAS;

/// What a cluster would hold.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// Its replicas in the order in which they are placed.
    pub replicas: Vec<Plan>,
    /// Why there is no further one.
    pub missing: Option<Missing>,
    /// Who would keep copies of what in the memory that is left.
    pub standbys: Vec<Standby>,
    /// What becomes of them without each of the workers that hold something, in the workers' order.
    pub losses: Vec<Loss>,
}

/// The loss of one worker.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Which worker.
    pub worker: WorkerId,
    /// Replicas that it does not touch.
    pub untouched: usize,
    /// Those that it breaks.
    pub broken: Vec<Broken>,
}

/// A replica that lost a worker.
#[derive(Clone, Debug)]
pub struct Broken {
    /// Which replica.
    pub replica: ReplicaId,
    /// Bytes of weights that are read to place it on what remains, or why it cannot be.
    pub outcome: Result<u64, Missing>,
}

/// All that an outlook depends on.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// What the model needs; checked by [`ModelFootprint::check`].
    pub footprint: &'a ModelFootprint,
    /// Every device, none twice.
    pub candidates: &'a [Candidate],
    /// What is asked for.
    pub wishes: Wishes,
    /// Bounds of steps; the footprint's scratch is that of them.
    pub steps: StepBounds,
    /// Replicas that are wanted; absent: as many as fit.
    pub replicas: Option<u32>,
    /// Whether spare memory is filled with copies.
    pub standbys: bool,
}

impl Cluster<'_> {
    /// Fills the cluster, then takes each of its workers away in turn.
    pub fn outlook(&self) -> Outlook {
        let (replicas, missing) = self.fill();
        let workers: BTreeSet<&WorkerId> = replicas
            .iter()
            .flat_map(|plan| plan.replica.devices())
            .map(|device| &device.worker)
            .collect();
        let standbys = self.standbys(&replicas);
        let losses = workers.into_iter();
        let losses = losses.map(|worker| self.loss(&replicas, &standbys, worker));
        let losses = losses.collect();
        Outlook {
            replicas,
            missing,
            standbys,
            losses,
        }
    }

    fn standbys(&self, replicas: &[Plan]) -> Vec<Standby> {
        if !self.standbys {
            return Vec::new();
        }
        let serving: Vec<&Replica> = replicas.iter().map(|plan| &plan.replica).collect();
        fill(&Spare {
            footprint: self.footprint,
            replicas: &serving,
            candidates: self.candidates,
            on_busy: true,
            left_out: &BTreeSet::new(),
            present: &[],
        })
    }

    /// As the controller does it: further replicas do not take fewer stages than are wished.
    fn fill(&self) -> (Vec<Plan>, Option<Missing>) {
        let wanted = self.replicas.and_then(|wanted| usize::try_from(wanted).ok());
        let wanted = wanted.unwrap_or(MAX_REPLICAS).min(MAX_REPLICAS);
        let mut plans: Vec<Plan> = Vec::new();
        let mut taken: BTreeSet<DeviceRef> = BTreeSet::new();
        while plans.len() < wanted {
            let id = ReplicaId(plans.len() as u64 + 1);
            let free = |device: &DeviceRef| !taken.contains(device);
            match self.plan(id, Generation(1), &free, None, &[]) {
                Ok(plan) if plan.falls_short && !plans.is_empty() => break,
                Ok(plan) => {
                    taken.extend(plan.replica.devices().into_iter().cloned());
                    plans.push(plan);
                }
                Err(missing) => return (plans, Some(missing)),
            }
        }
        (plans, None)
    }

    fn loss(&self, replicas: &[Plan], standbys: &[Standby], worker: &WorkerId) -> Loss {
        let standbys: Vec<Standby> = standbys
            .iter()
            .filter(|standby| standby.device.worker != *worker)
            .cloned()
            .collect();
        let touches = |plan: &&Plan| {
            let devices = plan.replica.devices();
            devices.into_iter().any(|device| device.worker == *worker)
        };
        let (hit, whole): (Vec<&Plan>, Vec<&Plan>) = replicas.iter().partition(touches);
        let mut taken: BTreeSet<DeviceRef> = whole
            .iter()
            .flat_map(|plan| plan.replica.devices())
            .cloned()
            .collect();
        let broken = hit.into_iter().map(|Plan { replica, .. }| {
            let free = |device: &DeviceRef| device.worker != *worker && !taken.contains(device);
            let generation = Generation(replica.generation.0.saturating_add(1));
            let outcome = self.plan(replica.id, generation, &free, Some(replica), &standbys);
            let outcome = outcome.map(|plan| {
                taken.extend(plan.replica.devices().into_iter().cloned());
                self.read_bytes(replica, &standbys, &plan.replica)
            });
            Broken {
                replica: replica.id,
                outcome,
            }
        });
        let broken = broken.collect();
        Loss {
            worker: worker.clone(),
            untouched: whole.len(),
            broken,
        }
    }

    /// Bytes of weights that the devices of `after` do not hold of `before`.
    fn read_bytes(&self, before: &Replica, standbys: &[Standby], after: &Replica) -> u64 {
        let footprint = self.footprint;
        let whole = footprint.weight_bytes();
        let kept = Held::new(footprint, Some(before), standbys).kept_by(after);
        let held = |device: &DeviceRef, layer: u32| {
            let placed = before.places().map(|place| (place.device, place.share));
            let copies = standbys.iter();
            let copies = copies.flat_map(|one| one.shares.iter().map(|&share| (&one.device, share)));
            let mut shares = placed.chain(copies);
            shares.any(|(holder, share)| holder == device && share.owned() && share.layers().contains(layer))
        };
        let last_layer = footprint.n_layers().saturating_sub(1);
        let first = after.stages.first();
        let first = first.is_some_and(|stage| held(&stage.owner, 0));
        let last = after.stages.last();
        let last = last.is_some_and(|stage| held(&stage.owner, last_layer));
        let ends = u128::from(footprint.end_bytes(first, last));
        u64::try_from(whole.saturating_sub(kept + ends)).unwrap_or(u64::MAX)
    }

    fn plan(
        &self,
        id: ReplicaId,
        generation: Generation,
        free: &dyn Fn(&DeviceRef) -> bool,
        previous: Option<&Replica>,
        standbys: &[Standby],
    ) -> Result<Plan, Missing> {
        let candidates = self.candidates.iter().filter(|candidate| free(&candidate.device));
        let candidates: Vec<Candidate> = candidates.cloned().collect();
        plan(&Request {
            id,
            generation,
            footprint: self.footprint,
            candidates: &candidates,
            wishes: self.wishes,
            steps: self.steps,
            previous,
            standbys,
        })
    }
}
