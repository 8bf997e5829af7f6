//! Standbys in the replicated state: what they take, and what becomes of them as placements change.
//!
//! **Invariant PL-2:** what a device computes with and what it keeps copies of fit together in its memory.

use tramontane_model::ids::{DeviceRef, WorkerId};
use tramontane_model::placement::Replica;
use tramontane_model::standby::{Share, Standby};

use super::command::Refusal;
use super::footprint::{CapacityError, ModelFootprint, usage};
use super::limits::MAX_SHARES;
use super::state::{ClusterState, ReplicaEntry, Standing};

/// Bytes of weights of a share. Saturates instead of overflowing.
pub fn share_bytes(footprint: &ModelFootprint, share: &Share) -> u64 {
    let layers = share.layers();
    let end = (layers.end() as usize).min(footprint.layers.len());
    let layers = &footprint.layers[(layers.start() as usize).min(end)..end];
    let experts = share.experts().map_or(0, |experts| experts.len());
    let of_layers = layers.iter().fold(0u64, |sum, layer| {
        let owned = if share.owned() { layer.owner_bytes } else { 0 };
        let experts = layer.expert_bytes.saturating_mul(experts.into());
        sum.saturating_add(owned).saturating_add(experts)
    });
    let ends = if share.owned() {
        let first = share.layers().start() == 0;
        let last = share.layers().end() == footprint.n_layers();
        footprint.end_bytes(first, last)
    } else {
        0
    };
    of_layers.saturating_add(ends)
}

/// Bytes of weights of some shares.
pub fn shares_bytes(footprint: &ModelFootprint, shares: &[Share]) -> u64 {
    let each = shares.iter().map(|share| share_bytes(footprint, share));
    each.fold(0, u64::saturating_add)
}

impl ClusterState {
    /// What a device keeps copies of.
    pub fn copies(&self, device: &DeviceRef) -> &[Share] {
        let found = self.standbys.binary_search_by(|one| one.device.cmp(device));
        found.map_or(&[], |index| &self.standbys[index].shares)
    }

    /// Replaces all standbys.
    pub(super) fn stand_by(&mut self, standbys: &[Standby], expected: u64) -> Result<(), Refusal> {
        if expected != self.version {
            let found = self.version;
            return Err(Refusal::Version { expected, found });
        }
        let shares = standbys.iter().map(|one| one.shares.len()).sum::<usize>();
        if shares > MAX_SHARES {
            let (field, found, limit) = ("number of copies", shares as u64, MAX_SHARES as u64);
            return Err(Refusal::TooLarge { field, found, limit });
        }
        let in_order = |pair: &[Standby]| pair[0].device < pair[1].device;
        if !standbys.windows(2).all(in_order) || standbys.iter().any(|one| one.shares.is_empty()) {
            return Err(Refusal::StandbyOrder);
        }
        for standby in standbys {
            self.check_standby(standby)?;
        }
        if self.standbys != standbys {
            self.standbys = standbys.to_vec();
            self.version = self.version.saturating_add(1);
        }
        Ok(())
    }

    fn check_standby(&self, Standby { device, shares }: &Standby) -> Result<(), Refusal> {
        let footprint = &self.model.as_ref().ok_or(Refusal::NoModel)?.footprint;
        let worker = self.workers.get(&device.worker);
        let known = worker.filter(|worker| worker.standing == Standing::Joined);
        let Some(info) = known.and_then(|_| self.device(device)) else {
            let device = device.clone();
            return Err(CapacityError::UnknownDevice { device }.into());
        };
        let computes: Vec<Share> = self
            .placed_on(device)
            .flat_map(|replica| replica.shares_of(device))
            .collect();
        for (index, share) in shares.iter().enumerate() {
            let experts = share.experts().map_or(0, |experts| experts.end());
            if share.layers().end() > footprint.n_layers() || experts > footprint.n_experts {
                let (device, share) = (device.clone(), *share);
                return Err(Refusal::ForeignShare { device, share });
            }
            if computes.iter().any(|other| other.overlaps(share)) || shares[..index].contains(share) {
                let (device, share) = (device.clone(), *share);
                return Err(Refusal::HeldTwice { device, share });
            }
        }
        let needed_bytes = self.needed(footprint, device, shares);
        let memory_bytes = info.memory_bytes;
        if needed_bytes > memory_bytes {
            let missing_bytes = needed_bytes - memory_bytes;
            let device = device.clone();
            return Err(Refusal::Capacity(CapacityError::Memory {
                device,
                needed_bytes,
                memory_bytes,
                missing_bytes,
            }));
        }
        Ok(())
    }

    /// Placements that a device takes part in, whatever became of them.
    fn placed_on<'a>(&'a self, device: &'a DeviceRef) -> impl Iterator<Item = &'a Replica> {
        let placed = self.replicas.values().filter_map(ReplicaEntry::placement);
        placed.filter(move |replica| replica.devices().contains(device))
    }

    /// Bytes of a device that computes what it does and keeps copies of these shares.
    fn needed(&self, footprint: &ModelFootprint, device: &DeviceRef, shares: &[Share]) -> u64 {
        let placed = self.placed_on(device);
        let used = placed.filter_map(|replica| usage(footprint, replica).get(device).copied());
        let used = used.fold(0u64, |sum, used| sum.saturating_add(used.total_bytes()));
        used.saturating_add(shares_bytes(footprint, shares))
    }

    /// After a placement: its devices keep no copy of what they compute with now, nor more than they have room for.
    pub(super) fn trim_standbys(&mut self, placed: &Replica) {
        let Some(model) = self.model.take() else {
            self.standbys.clear();
            return;
        };
        let mut standbys = std::mem::take(&mut self.standbys);
        for Standby { device, shares } in &mut standbys {
            if !placed.devices().contains(device) {
                continue;
            }
            let computes: Vec<Share> = placed.shares_of(device).collect();
            shares.retain(|share| !computes.iter().any(|other| other.overlaps(share)));
            let memory_bytes = self.device(device).map_or(0, |info| info.memory_bytes);
            while !shares.is_empty() && self.needed(&model.footprint, device, shares) > memory_bytes {
                shares.pop();
            }
        }
        standbys.retain(|standby| !standby.shares.is_empty());
        self.standbys = standbys;
        self.model = Some(model);
    }

    /// A worker is no member any more.
    pub(super) fn forget_standbys(&mut self, worker: &WorkerId) {
        self.standbys.retain(|standby| standby.device.worker != *worker);
    }
}

#[cfg(test)]
mod tests {
    use tramontane_model::ids::{DeviceIndex, Generation, ReplicaId};
    use tramontane_model::members::{DeviceInfo, WorkerInfo};
    use tramontane_model::placement::{ExpertGroup, ExpertRange, KvFormat, KvShape, LayerRange, Stage};
    use tramontane_model::step::StepBounds;

    use super::*;
    use crate::control::command::{Command, Outcome};
    use crate::control::footprint::{LayerFootprint, ScratchModel};
    use crate::control::state::ModelEntry;

    const MEMORY: u64 = 2000;

    fn device(worker: &str) -> DeviceRef {
        DeviceRef {
            worker: WorkerId::new(worker).unwrap(),
            device: DeviceIndex(0),
        }
    }

    fn layers(start: u32, end: u32) -> LayerRange {
        LayerRange::new(start, end).unwrap()
    }

    /// What the owner of some layers holds, or some of their experts.
    fn share(start: u32, end: u32, owned: bool, experts: Option<(u32, u32)>) -> Share {
        let experts = experts.and_then(|(start, end)| ExpertRange::new(start, end));
        Share::new(layers(start, end), owned, experts).unwrap()
    }

    fn standby(worker: &str, shares: &[Share]) -> Standby {
        Standby {
            device: device(worker),
            shares: shares.to_vec(),
        }
    }

    /// Two layers with four experts, one on each of two workers.
    fn placed(generation: u64, owners: [&str; 2]) -> Replica {
        let stage = |index: u32, owner: &str| Stage {
            layers: layers(index, index + 1),
            owner: device(owner),
            groups: vec![ExpertGroup {
                experts: ExpertRange::new(0, 4).unwrap(),
                holder: device(owner),
            }],
        };
        Replica {
            id: ReplicaId(1),
            generation: Generation(generation),
            stages: vec![stage(0, owners[0]), stage(1, owners[1])],
            kv: KvShape {
                block_tokens: 1,
                blocks: 10,
                format: KvFormat::F32,
            },
            steps: StepBounds::default(),
        }
    }

    fn worker(name: &str, incarnation: u64) -> WorkerInfo {
        WorkerInfo {
            worker: WorkerId::new(name).unwrap(),
            incarnation,
            address: String::new(),
            pid: 1,
            version: String::new(),
            model_fingerprint: [0; 32],
            devices: vec![DeviceInfo {
                index: DeviceIndex(0),
                adapter: String::new(),
                driver: String::new(),
                kind: String::new(),
                is_cpu: true,
                memory_bytes: MEMORY,
                max_binding_bytes: 1 << 20,
            }],
        }
    }

    fn place(state: &mut ClusterState, replica: Replica) {
        let fence = replica.fence();
        let expected_version = state.version;
        let place = Command::Place {
            replica,
            expected_version,
        };
        for command in [place, Command::ReplicaServing { fence }] {
            assert_eq!(state.apply(&command), Outcome::Applied);
        }
    }

    /// Each stage takes 500 bytes of weights, 100 of embedding or head, 10 of cache and 50 of scratch: 660.
    fn state() -> ClusterState {
        let layer = LayerFootprint {
            owner_bytes: 100,
            expert_bytes: 100,
            kv_token_bytes: 1,
        };
        let model = ModelEntry {
            name: "two layers".to_owned(),
            fingerprint: [0; 32],
            footprint: ModelFootprint {
                tied_bytes: 0,
                layers: vec![layer; 2],
                n_experts: 4,
                experts_per_token: 1,
                embedding_bytes: 100,
                head_bytes: 100,
                scratch: ScratchModel {
                    head_bytes: 0,
                    owner_bytes: 50,
                    holder_bytes: 50,
                },
            },
        };
        let mut state = ClusterState::default();
        state.apply(&Command::ModelDescribed { model });
        for name in ["a", "b", "c"] {
            let info = worker(name, 1);
            assert_eq!(state.apply(&Command::WorkerJoined { info }), Outcome::Applied);
        }
        place(&mut state, placed(1, ["a", "b"]));
        state
    }

    fn stand_by(state: &mut ClusterState, standbys: &[Standby]) -> Result<(), String> {
        let command = Command::StandBy {
            standbys: standbys.to_vec(),
            expected_version: state.version,
        };
        match state.apply(&command) {
            Outcome::Applied => Ok(()),
            Outcome::Refused(refusal) => Err(refusal.to_string()),
            Outcome::Duplicate => panic!("a command is no proposal"),
        }
    }

    fn first() -> Share {
        share(0, 1, true, Some((0, 4)))
    }

    fn last() -> Share {
        share(1, 2, true, Some((0, 4)))
    }

    #[test]
    fn copies_that_cannot_be_are_refused_and_change_nothing() {
        let mut state = state();
        let before = state.clone();
        for (standbys, problem) in [
            (vec![standby("c", &[])], "with a copy to keep"),
            (
                vec![standby("c", &[first()]), standby("a", &[last()])],
                "in the order of their devices",
            ),
            (
                vec![standby("c", &[first()]), standby("c", &[last()])],
                "each device once",
            ),
            (vec![standby("d", &[first()])], "device d/0 is not known"),
            (
                vec![standby("c", &[share(1, 3, true, None)])],
                "which the model does not have",
            ),
            (
                vec![standby("c", &[share(0, 1, false, Some((3, 5)))])],
                "which the model does not have",
            ),
            (vec![standby("a", &[first()])], "some of which it holds already"),
            (
                vec![standby("c", &[last(), last()])],
                "some of which it holds already",
            ),
        ] {
            let mut state = state.clone();
            let refused = stand_by(&mut state, &standbys);
            let error = refused.expect_err(problem);
            assert!(error.contains(problem), "{error:?} for {problem:?}");
            assert_eq!(state, before, "{problem}");
        }
        // 600 of each stage and 800 of the experts alone fit exactly where nothing is computed.
        let full = [first(), last(), share(0, 2, false, Some((0, 4)))];
        assert_eq!(stand_by(&mut state, &[standby("c", &full)]), Ok(()));
        let experts = |end| share(1, 2, false, Some((0, end)));
        let crowded = [last(), experts(2), experts(3), experts(4)];
        let error = stand_by(&mut state, &[standby("a", &crowded)]).expect_err("660 bytes are taken");
        let told = "device a/0 would hold 2160 bytes, it has 2000: 160 are missing";
        assert_eq!(error, told);
        let expected_version = state.version - 1;
        let standbys = Vec::new();
        let stale = Command::StandBy {
            standbys,
            expected_version,
        };
        assert!(matches!(
            state.apply(&stale),
            Outcome::Refused(Refusal::Version { .. })
        ));
    }

    #[test]
    fn a_change_of_standbys_touches_no_placement() {
        let mut state = state();
        let (before, version) = (state.replicas.clone(), state.version);
        assert_eq!(stand_by(&mut state, &[standby("c", &[first(), last()])]), Ok(()));
        assert_eq!((&state.replicas, state.version), (&before, version + 1));
        assert_eq!(state.copies(&device("c")), [first(), last()]);
        assert_eq!(state.copies(&device("a")), []);
        // Said again it changes nothing.
        assert_eq!(stand_by(&mut state, &[standby("c", &[first(), last()])]), Ok(()));
        assert_eq!(state.version, version + 1);
    }

    #[test]
    fn a_standby_that_takes_a_place_keeps_what_it_has_room_for() {
        let mut state = state();
        assert_eq!(stand_by(&mut state, &[standby("c", &[first(), last()])]), Ok(()));
        let lost = Command::WorkerLost {
            worker: WorkerId::new("a").unwrap(),
            incarnation: 1,
        };
        state.apply(&lost);
        assert_eq!(
            state.copies(&device("c")),
            [first(), last()],
            "they are what it goes on with"
        );
        place(&mut state, placed(2, ["c", "b"]));
        assert_eq!(
            state.copies(&device("c")),
            [last()],
            "the other is what it computes with"
        );
        // A standby that is lost is lost with its copies, and so is one that is started again.
        let info = worker("c", 2);
        state.apply(&Command::WorkerJoined { info });
        assert_eq!(state.standbys, []);
    }

    #[test]
    fn a_placement_takes_what_it_needs_of_a_standby() {
        let mut state = state();
        let experts = share(1, 2, false, Some((0, 2)));
        assert_eq!(
            stand_by(&mut state, &[standby("c", &[first(), last(), experts])]),
            Ok(()),
            "1400 bytes"
        );
        // What it computes with it keeps no copy of, and of the others no more than the cache leaves room for.
        let mut replica = placed(2, ["c", "b"]);
        replica.kv.blocks = 700;
        place(&mut state, replica);
        assert_eq!(state.copies(&device("c")), [last()], "650 bytes are left");
    }
}
