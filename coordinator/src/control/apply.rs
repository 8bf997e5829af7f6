//! Applying commands: the one place where the replicated state changes.
//!
//! Deterministic: the outcome depends on the state and the command only. A command that does not agree with the state
//! is refused whole.

use std::collections::BTreeMap;

use tramontane_model::ids::{CoordinatorId, DeviceRef, Fence, Generation, ReplicaId, WorkerId};
use tramontane_model::members::{MAX_DEVICES, MAX_REASON_BYTES, MAX_TEXT_BYTES, WorkerInfo};
use tramontane_model::placement::Replica;

use super::command::{Command, Outcome, Proposal, Refusal};
use super::footprint::{DeviceLimits, verify};
use super::limits::{
    MAX_COORDINATORS, MAX_DEVICE_BYTES, MAX_KV_TOKENS, MAX_PARTS, MAX_PROPOSERS, MAX_REPLICAS, MAX_WORKERS,
};
use super::state::{
    ClusterState, CoordinatorEntry, Fault, ModelEntry, Part, Phase, ProposerEntry, ReplicaEntry, Standing,
    WorkerEntry,
};

impl ClusterState {
    /// Applies a proposal once, however often the log holds it.
    pub fn apply_proposal(&mut self, proposal: &Proposal) -> Outcome {
        self.commands = self.commands.saturating_add(1);
        let Proposal {
            proposer,
            sequence,
            ref command,
        } = *proposal;
        if let Some(known) = self.proposers.get(&proposer)
            && sequence <= known.sequence
        {
            return Outcome::Duplicate;
        }
        let at = self.commands;
        self.proposers.insert(proposer, ProposerEntry { sequence, at });
        while self.proposers.len() > MAX_PROPOSERS {
            let oldest = self.proposers.iter().min_by_key(|(_, entry)| entry.at);
            let Some(oldest) = oldest.map(|(&proposer, _)| proposer) else {
                break;
            };
            self.proposers.remove(&oldest);
        }
        self.apply(command)
    }

    /// Applies a command. Saying again what the state says already is [`Outcome::Applied`] and changes nothing.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        let result = match command {
            Command::CoordinatorStarted { coordinator, entry } => self.list_coordinator(*coordinator, entry),
            Command::CoordinatorAdded { coordinator, address } => self.add_coordinator(*coordinator, address),
            Command::CoordinatorRemoved { coordinator } => self.remove_coordinator(*coordinator),
            Command::ModelDescribed { model } => self.describe_model(model),
            Command::WorkerJoined { info } => self.join(info),
            Command::WorkerDraining {
                worker,
                incarnation,
                force,
            } => self.stand(worker, *incarnation, Standing::Draining { force: *force }),
            Command::WorkerUndrained { worker, incarnation } => {
                self.stand(worker, *incarnation, Standing::Joined)
            }
            Command::WorkerLost { worker, incarnation } => self
                .member(worker, *incarnation)
                .map(|_| ())
                .map(|()| self.lose(worker)),
            Command::Place {
                replica,
                expected_version,
            } => self.place(replica, *expected_version),
            Command::StandBy {
                standbys,
                expected_version,
            } => self.stand_by(standbys, *expected_version),
            Command::ReplicaServing { fence } => self.serve(*fence),
            Command::DeviceFailed {
                fence,
                device,
                reason,
            } => self.fail_device(*fence, device, reason),
            Command::Unplaced {
                replica,
                reason,
                missing_bytes,
                expected_version,
            } => self.unplace(*replica, reason, *missing_bytes, *expected_version),
            Command::Retired {
                replica,
                expected_version,
            } => self.retire(*replica, *expected_version),
        };
        match result {
            Ok(()) => Outcome::Applied,
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    fn list_coordinator(
        &mut self,
        coordinator: CoordinatorId,
        entry: &CoordinatorEntry,
    ) -> Result<(), Refusal> {
        text("coordinator raft address", &entry.raft_address)?;
        text("coordinator http address", &entry.http_address)?;
        text("coordinator version", &entry.version)?;
        if self.is_removed(coordinator) {
            return Err(Refusal::Removed { coordinator });
        }
        if !self.coordinators.contains_key(&coordinator) {
            let coordinators = self.coordinators.len() + 1;
            at_most("number of coordinators", coordinators, MAX_COORDINATORS)?;
        }
        self.coordinators.insert(coordinator, entry.clone());
        Ok(())
    }

    fn add_coordinator(&mut self, coordinator: CoordinatorId, address: &str) -> Result<(), Refusal> {
        text("coordinator address", address)?;
        match self.parts.get(&coordinator) {
            Some(Part::Removed { .. }) => return Err(Refusal::Removed { coordinator }),
            Some(Part::Added { address: known }) if known != address => {
                let address = known.clone();
                return Err(Refusal::Added { coordinator, address });
            }
            Some(Part::Added { .. }) => return Ok(()),
            None => at_most("number of coordinators ever", self.parts.len() + 1, MAX_PARTS)?,
        }
        let address = address.to_owned();
        self.parts.insert(coordinator, Part::Added { address });
        Ok(())
    }

    fn remove_coordinator(&mut self, coordinator: CoordinatorId) -> Result<(), Refusal> {
        let address = match self.parts.get(&coordinator) {
            Some(Part::Removed { .. }) => return Ok(()),
            Some(Part::Added { address }) => Some(address.clone()),
            None => {
                at_most("number of coordinators ever", self.parts.len() + 1, MAX_PARTS)?;
                None
            }
        };
        self.parts.insert(coordinator, Part::Removed { address });
        self.coordinators.remove(&coordinator);
        Ok(())
    }

    fn describe_model(&mut self, model: &ModelEntry) -> Result<(), Refusal> {
        text("model name", &model.name)?;
        model.footprint.check().map_err(|error| Refusal::Model {
            name: model.name.clone(),
            error,
        })?;
        if self.model.as_ref() != Some(model) {
            self.break_where(Fault::ModelChanged, |_| true);
            self.standbys.clear();
            self.model = Some(model.clone());
        }
        Ok(())
    }

    fn join(&mut self, info: &WorkerInfo) -> Result<(), Refusal> {
        check_worker(info)?;
        match self.workers.get(&info.worker) {
            Some(known) if known.info == *info => return Ok(()),
            Some(_) => self.lose(&info.worker),
            None => at_most("number of workers", self.workers.len() + 1, MAX_WORKERS)?,
        }
        let entry = WorkerEntry {
            info: info.clone(),
            standing: Standing::Joined,
        };
        self.workers.insert(info.worker.clone(), entry);
        Ok(())
    }

    fn stand(&mut self, worker: &WorkerId, incarnation: u64, standing: Standing) -> Result<(), Refusal> {
        let member = self.member(worker, incarnation)?;
        if member.standing != standing {
            member.standing = standing;
            // A plan of before may count on the worker, or on there being none.
            self.version = self.version.saturating_add(1);
        }
        Ok(())
    }

    fn lose(&mut self, worker: &WorkerId) {
        self.workers.remove(worker);
        self.forget_standbys(worker);
        let fault = Fault::WorkerLost {
            worker: worker.clone(),
        };
        self.break_where(fault, |entry| entry.uses(worker));
    }

    fn place(&mut self, replica: &Replica, expected_version: u64) -> Result<(), Refusal> {
        let last = self.check_plan(replica.id, expected_version)?;
        let fence = replica.fence();
        if replica.generation.0 != last.0.saturating_add(1) {
            return Err(Refusal::Generation { fence, last });
        }
        self.check_placement(replica)?;
        let phase = Phase::Loading {
            placement: replica.clone(),
        };
        self.set_replica(replica.id, replica.generation, phase);
        self.trim_standbys(replica);
        Ok(())
    }

    fn serve(&mut self, fence: Fence) -> Result<(), Refusal> {
        let entry = self.named(fence)?;
        let phase = match &entry.phase {
            Phase::Serving { .. } => return Ok(()),
            Phase::Loading { placement } => Phase::Serving {
                placement: placement.clone(),
            },
            phase @ (Phase::Broken { .. } | Phase::Unplaceable { .. }) => {
                return Err(Refusal::Phase {
                    fence,
                    phase: phase.name(),
                    wanted: "serving",
                });
            }
        };
        self.set_replica(fence.replica, fence.generation, phase);
        Ok(())
    }

    fn fail_device(&mut self, fence: Fence, device: &DeviceRef, reason: &str) -> Result<(), Refusal> {
        at_most("failure reason length", reason.len(), MAX_REASON_BYTES)?;
        let entry = self.named(fence)?;
        let Some(placement) = entry.live() else {
            let phase = entry.phase.name();
            return Err(Refusal::Phase {
                fence,
                phase,
                wanted: "broken",
            });
        };
        if !placement.devices().contains(device) {
            let device = device.clone();
            return Err(Refusal::ForeignDevice { fence, device });
        }
        let phase = Phase::Broken {
            placement: placement.clone(),
            fault: Fault::Device {
                device: device.clone(),
                reason: reason.to_owned(),
            },
        };
        self.set_replica(fence.replica, fence.generation, phase);
        Ok(())
    }

    fn unplace(
        &mut self,
        replica: ReplicaId,
        reason: &str,
        missing_bytes: u64,
        expected_version: u64,
    ) -> Result<(), Refusal> {
        at_most("reason length", reason.len(), MAX_REASON_BYTES)?;
        let last = self.check_plan(replica, expected_version)?;
        let phase = Phase::Unplaceable {
            reason: reason.to_owned(),
            missing_bytes,
        };
        self.set_replica(replica, last, phase);
        Ok(())
    }

    fn retire(&mut self, replica: ReplicaId, expected_version: u64) -> Result<(), Refusal> {
        self.check_plan(replica, expected_version)?;
        if self.replicas.remove(&replica).is_some() {
            self.version = self.version.saturating_add(1);
        }
        Ok(())
    }

    /// Checks that a plan is of now and of a replica that is known or the next; gives the replica's last generation.
    fn check_plan(&self, replica: ReplicaId, expected: u64) -> Result<Generation, Refusal> {
        if expected != self.version {
            let found = self.version;
            return Err(Refusal::Version { expected, found });
        }
        if let Some(entry) = self.replicas.get(&replica) {
            return Ok(entry.generation);
        }
        let next = self.next_replica();
        if replica != next {
            return Err(Refusal::UnknownReplica { replica, next });
        }
        at_most("number of replicas", self.replicas.len() + 1, MAX_REPLICAS)?;
        Ok(Generation(0))
    }

    /// Checks PL-1 and PL-2, and that no device is given to a second replica.
    fn check_placement(&self, replica: &Replica) -> Result<(), Refusal> {
        let footprint = &self.model.as_ref().ok_or(Refusal::NoModel)?.footprint;
        replica.validate(
            footprint.n_layers(),
            footprint.n_experts,
            footprint.first_moe_layer(),
        )?;
        let tokens = u64::from(replica.kv.blocks).saturating_mul(u64::from(replica.kv.block_tokens));
        bounded("kv cache tokens", tokens, MAX_KV_TOKENS)?;
        let taken = self.taken_from(replica.id);
        for device in replica.devices() {
            if let Some(&replica) = taken.get(device) {
                let device = device.clone();
                return Err(Refusal::Taken { device, replica });
            }
        }
        let limits = |device: &DeviceRef| {
            let worker = self.workers.get(&device.worker)?;
            let info = self.device(device)?;
            (worker.standing == Standing::Joined).then_some(DeviceLimits {
                memory_bytes: info.memory_bytes,
                max_binding_bytes: info.max_binding_bytes,
            })
        };
        Ok(verify(footprint, replica, limits)?)
    }

    /// Devices of replicas other than this one that load or serve, with the replica that has each.
    pub fn taken_from(&self, replica: ReplicaId) -> BTreeMap<&DeviceRef, ReplicaId> {
        let others = self.replicas.iter().filter(|&(&id, _)| id != replica);
        let placed = others.filter_map(|(&id, entry)| Some((id, entry.live()?)));
        placed
            .flat_map(|(id, placement)| placement.devices().into_iter().map(move |device| (device, id)))
            .collect()
    }

    fn member(&mut self, worker: &WorkerId, incarnation: u64) -> Result<&mut WorkerEntry, Refusal> {
        let entry = self.workers.get_mut(worker);
        entry
            .filter(|entry| entry.info.incarnation == incarnation)
            .ok_or_else(|| Refusal::NotMember {
                worker: worker.clone(),
                incarnation,
            })
    }

    fn named(&self, fence: Fence) -> Result<&ReplicaEntry, Refusal> {
        let entry = self.replicas.get(&fence.replica);
        let entry = entry.ok_or_else(|| Refusal::UnknownReplica {
            replica: fence.replica,
            next: self.next_replica(),
        })?;
        let last = entry.generation;
        if last == fence.generation {
            Ok(entry)
        } else {
            Err(Refusal::Generation { fence, last })
        }
    }

    fn break_where(&mut self, fault: Fault, which: impl Fn(&ReplicaEntry) -> bool) {
        let broken: Vec<_> = self
            .replicas
            .iter()
            .filter(|(_, entry)| which(entry))
            .filter_map(|(&id, entry)| Some((id, entry.generation, entry.live()?.clone())))
            .collect();
        for (id, generation, placement) in broken {
            let fault = fault.clone();
            self.set_replica(id, generation, Phase::Broken { placement, fault });
        }
    }

    fn set_replica(&mut self, id: ReplicaId, generation: Generation, phase: Phase) {
        self.replicas_named = self.replicas_named.max(id.0);
        self.version = self.version.saturating_add(1);
        self.replicas.insert(id, ReplicaEntry { generation, phase });
    }
}

fn check_worker(info: &WorkerInfo) -> Result<(), Refusal> {
    text("worker address", &info.address)?;
    text("worker version", &info.version)?;
    at_most("number of devices", info.devices.len(), MAX_DEVICES)?;
    let indexes = info.devices.iter().map(|device| device.index.0);
    if info.devices.is_empty() || !indexes.zip(0..).all(|(found, index)| found == index) {
        return Err(Refusal::DeviceIndexes {
            worker: info.worker.clone(),
        });
    }
    info.devices.iter().try_for_each(|device| {
        text("device adapter", &device.adapter)?;
        text("device driver", &device.driver)?;
        text("device kind", &device.kind)?;
        bounded("device memory bytes", device.memory_bytes, MAX_DEVICE_BYTES)
    })
}

fn text(field: &'static str, value: &str) -> Result<(), Refusal> {
    at_most(field, value.len(), MAX_TEXT_BYTES)
}

fn at_most(field: &'static str, found: usize, limit: usize) -> Result<(), Refusal> {
    bounded(field, found as u64, limit as u64)
}

fn bounded(field: &'static str, found: u64, limit: u64) -> Result<(), Refusal> {
    if found > limit {
        Err(Refusal::TooLarge { field, found, limit })
    } else {
        Ok(())
    }
}
