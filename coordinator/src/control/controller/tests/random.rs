//! Random joins, losses, reports, leaders and lost answers: nothing unsafe ever, and rest at last.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tramontane_model::ids::DeviceRef;
use tramontane_model::standby::{Share, Standby};

use super::*;
use crate::control::command::Refusal;
use crate::control::footprint::usage;
use crate::control::standby::shares_bytes;
use crate::control::state::{Phase, ReplicaEntry};

const WORKERS: u8 = 6;

#[derive(Clone, Debug)]
enum Action {
    Join { worker: u8, restarted: bool },
    End { worker: u8 },
    Report { worker: u8, kind: u8 },
    Pass { milliseconds: u64 },
    Leads,
    Follows,
    Replan,
    Drain { worker: u8, undo: bool, force: bool },
}

/// Wished stages and expert groups.
type Shape = (Option<u32>, Option<u32>);

fn any_shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        Just((Some(2), Some(2))),
        Just((Some(2), Some(1))),
        Just((Some(3), None)),
        Just((None, None)),
    ]
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..WORKERS, any::<bool>()).prop_map(|(worker, restarted)| Action::Join { worker, restarted }),
        2 => (0..WORKERS).prop_map(|worker| Action::End { worker }),
        8 => (0..WORKERS, 0u8..5).prop_map(|(worker, kind)| Action::Report { worker, kind }),
        4 => (1u64..3000).prop_map(|milliseconds| Action::Pass { milliseconds }),
        1 => Just(Action::Leads),
        1 => Just(Action::Follows),
        1 => Just(Action::Replan),
        2 => (0..WORKERS, any::<bool>(), any::<bool>())
            .prop_map(|(worker, undo, force)| Action::Drain { worker, undo, force }),
    ]
}

/// A cluster whose log loses answers and proposals.
struct Chaos {
    cluster: Cluster,
    incarnations: BTreeMap<WorkerId, u64>,
    /// Sessions that were admitted and not ended.
    open: BTreeSet<SessionId>,
    /// What each worker was last told to hold.
    holds: BTreeMap<WorkerId, Fence>,
    /// What each worker was last told to keep copies of.
    copies: BTreeMap<WorkerId, BTreeMap<DeviceIndex, Vec<Share>>>,
    owners: BTreeMap<SessionId, WorkerId>,
    asked: u64,
    replans: u64,
    answered: u64,
    /// Every placement there ever was.
    placed: BTreeMap<(ReplicaId, Generation), Replica>,
    luck: u64,
}

impl Chaos {
    fn new(seed: u64, (stages, groups): Shape, replicas: Option<u32>) -> Self {
        let mut options = options(stages, groups);
        options.replicas = replicas;
        options.standbys = seed & 2 == 0;
        Self {
            cluster: Cluster::new(options),
            incarnations: BTreeMap::new(),
            open: BTreeSet::new(),
            holds: BTreeMap::new(),
            copies: BTreeMap::new(),
            owners: BTreeMap::new(),
            asked: 0,
            replans: 0,
            answered: 0,
            placed: BTreeMap::new(),
            luck: seed | 1,
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.luck = self
            .luck
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.luck >> 33) % below
    }

    fn feed(&mut self, event: Event, lossy: bool) {
        let mut waiting = self.cluster.step(event);
        for _ in 0..2000 {
            if waiting.is_empty() {
                return;
            }
            let effect = waiting.remove(0);
            let more = self.take(effect, lossy);
            waiting.extend(more);
        }
        panic!("the controller does not come to rest");
    }

    fn take(&mut self, effect: Effect, lossy: bool) -> Vec<Effect> {
        match effect {
            Effect::Propose { sequence, command } => {
                let fate = if lossy { self.draw(8) } else { 7 };
                let result = match fate {
                    0 => ProposalResult::Dropped {
                        reason: "luck".to_owned(),
                    },
                    1 => ProposalResult::Unknown,
                    _ => ProposalResult::Committed(self.commit(sequence, command.clone())),
                };
                let result = match fate {
                    2 => ProposalResult::Unknown,
                    3 => return Vec::new(),
                    _ => result,
                };
                return self.cluster.step(Event::Proposed { sequence, result });
            }
            Effect::Admit { session } => assert!(self.open.insert(session), "admitted twice"),
            Effect::EndSession { session, .. } => {
                assert!(self.open.remove(&session), "ended what was not open");
            }
            Effect::Direct { session, directive } => {
                assert!(self.open.contains(&session), "told a session that is not open");
                let worker = self.owners[&session].clone();
                match directive {
                    Directive::Assign { replica, peers } => {
                        let members = replica.devices().into_iter().map(|device| &device.worker);
                        assert!(members.collect::<BTreeSet<_>>().into_iter().eq(peers.keys()));
                        self.holds.insert(worker, replica.fence());
                    }
                    Directive::Release(fence) => {
                        if self.holds.get(&worker).is_some_and(|held| {
                            held.replica == fence.replica && held.generation <= fence.generation
                        }) {
                            self.holds.remove(&worker);
                        }
                    }
                    Directive::StandBy(copies) => {
                        self.copies.insert(worker, copies);
                    }
                    Directive::Welcome { .. } | Directive::Leave { .. } => {}
                }
            }
            Effect::Answer { .. } | Effect::Changed { .. } => self.answered += 1,
            Effect::Refuse { .. } => {}
        }
        Vec::new()
    }

    /// PL-1 and PL-2 are checked by applying; PL-3 here.
    fn commit(&mut self, sequence: u64, command: Command) -> Outcome {
        let place = if let Command::Place { replica, .. } = &command {
            Some(replica.clone())
        } else {
            None
        };
        let before = self.cluster.state.replicas.clone();
        let lost = if let Command::WorkerLost { worker, .. } = &command {
            Some(worker.clone())
        } else if let Command::WorkerJoined { info } = &command {
            Some(info.worker.clone())
        } else {
            None
        };
        let failed = if let Command::DeviceFailed { fence, device, .. } = &command {
            Some((*fence, device.clone()))
        } else {
            None
        };
        let stands_by = matches!(command, Command::StandBy { .. });
        let outcome = self.cluster.commit(sequence, command);
        if stands_by {
            assert_eq!(
                self.cluster.state.replicas, before,
                "standbys changed a placement"
            );
            let stale = matches!(outcome, Outcome::Refused(Refusal::Version { .. }));
            assert!(stale || outcome == Outcome::Applied, "{outcome:?}");
        }
        self.check_copies();
        self.check_replicas(&before, lost.as_ref(), failed.as_ref());
        if let Some(replica) = place {
            match &outcome {
                Outcome::Applied => {
                    let key = (replica.id, replica.generation);
                    assert!(self.placed.insert(key, replica).is_none(), "placed twice");
                }
                Outcome::Duplicate => panic!("the log here keeps the order"),
                // Something that was proposed before it changed the map.
                Outcome::Refused(Refusal::Version { .. }) => {}
                Outcome::Refused(refusal) => panic!("a plan was refused: {refusal}"),
            }
        }
        outcome
    }

    /// No device is in two replicas, there are never more than may be, and a replica that loads or serves goes on as it
    /// is unless it lost one of its own devices, one of its workers drains, or somebody asked to plan anew.
    fn check_replicas(
        &self,
        before: &BTreeMap<ReplicaId, ReplicaEntry>,
        lost: Option<&WorkerId>,
        failed: Option<&(Fence, DeviceRef)>,
    ) {
        let after = &self.cluster.state.replicas;
        let mut used = BTreeSet::new();
        for device in after
            .values()
            .filter_map(ReplicaEntry::live)
            .flat_map(Replica::devices)
        {
            assert!(used.insert(device), "{device} is in two replicas");
        }
        if let Some(wanted) = self.cluster.controller.options.replicas {
            assert!(after.len() <= wanted as usize, "{after:?}");
        }
        for (id, entry) in before {
            let Some(placement) = entry.live() else { continue };
            let now = after.get(id).and_then(ReplicaEntry::live);
            if now == Some(placement) {
                continue;
            }
            let own = placement.devices();
            let lost_one = lost.is_some_and(|lost| own.iter().any(|device| device.worker == *lost));
            let workers = &self.cluster.state.workers;
            let drains = own.iter().any(|device| {
                let worker = workers.get(&device.worker);
                worker.is_some_and(|worker| worker.standing.drains())
            });
            let failed_one =
                failed.is_some_and(|(fence, device)| *fence == placement.fence() && own.contains(device));
            assert!(
                lost_one || failed_one || drains || self.replans > 0,
                "{entry:?} became {now:?} although nothing happened to it"
            );
        }
    }

    /// PL-2 with copies: they fit beside what a device computes with, and none is of that.
    fn check_copies(&self) {
        let state = &self.cluster.state;
        for Standby { device, shares } in &state.standbys {
            assert!(!shares.is_empty());
            let live = state.replicas.values().filter_map(ReplicaEntry::live);
            let own = live.filter(|replica| replica.devices().contains(device));
            let mut needed = shares_bytes(&model().footprint, shares);
            for replica in own {
                needed += usage(&model().footprint, replica)[device].total_bytes();
                for share in replica.shares_of(device) {
                    assert!(
                        !shares.iter().any(|copy| copy.overlaps(&share)),
                        "{device} keeps {share} twice"
                    );
                }
            }
            let memory = state.device(device).map(|info| info.memory_bytes);
            assert!(
                Some(needed) <= memory,
                "{device} needs {needed} bytes, it has {memory:?}"
            );
        }
    }

    fn worker(worker: u8) -> WorkerId {
        name(&format!("w{worker}"))
    }

    fn session(&self, worker: &WorkerId) -> Option<SessionId> {
        let session = self.cluster.sessions.get(worker).copied()?;
        self.open.contains(&session).then_some(session)
    }

    fn join(&mut self, worker: &WorkerId, restarted: bool, lossy: bool) {
        let incarnation = self.incarnations.entry(worker.clone()).or_insert(1);
        if restarted {
            *incarnation += 1;
            self.holds.remove(worker);
            self.copies.remove(worker);
        }
        let info = info(worker.as_str(), *incarnation, ENOUGH);
        let session = SessionId(self.cluster.next_session);
        self.cluster.next_session += 1;
        self.cluster.sessions.insert(worker.clone(), session);
        self.owners.insert(session, worker.clone());
        self.feed(Event::Joined { session, info }, lossy);
    }

    fn report(&mut self, worker: &WorkerId, kind: u8, lossy: bool) {
        let Some(session) = self.session(worker) else {
            return;
        };
        let fence = self.holds.get(worker).copied();
        let state = match (fence, kind) {
            (None, _) | (_, 0) => DeviceState::Idle,
            (Some(fence), 1) => DeviceState::Failed {
                fence,
                reason: "luck".to_owned(),
            },
            (Some(fence), 2) => DeviceState::Loading {
                fence,
                load: LoadReport {
                    loaded_bytes: 1,
                    total_bytes: 2,
                    bytes_per_second: 1,
                },
            },
            (Some(fence), _) => DeviceState::Ready { fence },
        };
        let mut report = report(state);
        // A worker tells what it keeps, also on a later session: that is how a leader learns what it never asked for.
        let copies = self.copies.get(worker).into_iter().flatten();
        let kept: usize = copies.map(|(_, shares)| shares.len()).sum();
        report.devices[0].standby.total_bytes = kept as u64;
        let event = Event::Reported {
            session,
            worker: worker.clone(),
            report,
        };
        self.feed(event, lossy);
    }

    fn change(&mut self, change: Change, lossy: bool) {
        self.asked += 1;
        let ask = AskId(self.asked);
        self.feed(Event::Change { ask, change }, lossy);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Join { worker, restarted } => self.join(&Self::worker(worker), restarted, true),
            Action::End { worker } => {
                let worker = Self::worker(worker);
                if let Some(session) = self.session(&worker) {
                    self.open.remove(&session);
                    let ended = worker.clone();
                    self.feed(
                        Event::Ended {
                            session,
                            worker: ended,
                        },
                        true,
                    );
                    if self.draw(3) == 0 {
                        let incarnation = self.incarnations[&worker];
                        self.feed(Event::Gone { worker, incarnation }, true);
                    }
                }
            }
            Action::Report { worker, kind } => self.report(&Self::worker(worker), kind, true),
            Action::Pass { milliseconds } => {
                self.cluster.now = self.cluster.now.after_ms(milliseconds);
                self.feed(Event::Elapsed, true);
            }
            Action::Leads => {
                self.cluster.term += 1;
                let term = self.cluster.term;
                self.feed(Event::Leads { term }, true);
            }
            Action::Follows => self.feed(Event::Follows { leader: None }, true),
            Action::Replan => {
                self.asked += 1;
                self.replans += 1;
                let ask = AskId(self.asked);
                self.feed(Event::Replan { ask }, true);
            }
            Action::Drain { worker, undo, force } => {
                let worker = Self::worker(worker);
                self.change(
                    if undo {
                        Change::Undrain { worker }
                    } else {
                        Change::Drain { worker, force }
                    },
                    true,
                );
            }
        }
    }

    /// All is well from now on: everybody comes back and does as told.
    fn heal(&mut self) {
        self.cluster.term += 1;
        let term = self.cluster.term;
        self.feed(Event::Leads { term }, false);
        for worker in (0..WORKERS).map(Self::worker) {
            if self.session(&worker).is_none() {
                self.join(&worker, false, false);
            }
            self.change(Change::Undrain { worker }, false);
        }
        // As long as a device that failed often may be left out.
        for _ in 0..400 {
            for worker in (0..WORKERS).map(Self::worker) {
                if self.session(&worker).is_none() {
                    self.join(&worker, false, false);
                }
                self.report(&worker, 4, false);
            }
            self.cluster.now = self.cluster.now.after_ms(HEARTBEAT);
            self.feed(Event::Elapsed, false);
        }
    }
}

/// Does these things, lets all be well again, and looks at what is left.
fn survive(
    seed: u64,
    shape: Shape,
    replicas: Option<u32>,
    actions: Vec<Action>,
) -> Result<(), TestCaseError> {
    let mut chaos = Chaos::new(seed, shape, replicas);
    for action in actions {
        chaos.act(action);
    }
    chaos.heal();
    let state = &chaos.cluster.state;
    let placed: Vec<&ReplicaEntry> = state
        .replicas
        .values()
        .filter(|entry| entry.placement().is_some())
        .collect();
    prop_assert!(!placed.is_empty());
    for entry in &placed {
        prop_assert!(matches!(entry.phase, Phase::Serving { .. }), "{:?}", entry);
    }
    // What is left makes no further one.
    let used: usize = placed
        .iter()
        .filter_map(|entry| entry.live())
        .map(|one| one.devices().len())
        .sum();
    let needed = shape.0.unwrap_or(1) * shape.1.unwrap_or(1);
    let left = usize::from(WORKERS) - used;
    let wanted = replicas.map_or(usize::MAX, |wanted| wanted as usize);
    prop_assert!(
        placed.len() == wanted || left < needed as usize,
        "{:?}",
        state.replicas
    );
    prop_assert_eq!(chaos.asked, chaos.answered, "every ask is answered once");
    // Everybody keeps what the state says, and every place has a copy elsewhere where there is room for all.
    for worker in state.workers.keys() {
        let told = chaos.copies.get(worker).cloned().unwrap_or_default();
        prop_assert_eq!(told, super::super::standbys::copies_of(state, worker));
    }
    let Role::Leading(leader) = &chaos.cluster.controller.role else {
        panic!("nobody leads");
    };
    let out = leader.placing.failures.left_out(chaos.cluster.now, state);
    let taken = state.taken_from(ReplicaId(0));
    let devices = state.workers.keys().map(|worker| DeviceRef {
        worker: worker.clone(),
        device: DeviceIndex(0),
    });
    let is_free = devices
        .into_iter()
        .any(|device| !out.contains(&device) && !taken.contains_key(&device));
    if chaos.cluster.controller.options.standbys {
        for place in placed
            .iter()
            .filter_map(|entry| entry.live())
            .flat_map(Replica::places)
        {
            let worker = &place.device.worker;
            let mut others = state
                .standbys
                .iter()
                .filter(|standby| standby.device.worker != *worker);
            let found = others.any(|standby| standby.shares.contains(&place.share));
            prop_assert!(found || !is_free, "{:?} {:?}", place, state.standbys);
        }
    } else {
        prop_assert!(state.standbys.is_empty());
    }
    prop_assert_eq!(chaos.cluster.state.workers.len(), usize::from(WORKERS));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn chaos_is_survived(
        seed in any::<u64>(),
        shape in any_shape(),
        replicas in prop_oneof![Just(None), (1u32..4).prop_map(Some)],
        actions in proptest::collection::vec(any_action(), 0..80),
    ) {
        survive(seed, shape, replicas, actions)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    #[ignore = "takes minutes: make soak"]
    fn soak_chaos_is_survived(
        seed in any::<u64>(),
        shape in any_shape(),
        replicas in prop_oneof![Just(None), (1u32..4).prop_map(Some)],
        actions in proptest::collection::vec(any_action(), 0..80),
    ) {
        survive(seed, shape, replicas, actions)?;
    }
}

/// A worker with copies comes back on a session of a leader that wants none there.
#[test]
fn copies_of_a_session_before_are_given_up() {
    let join = |worker| Action::Join {
        worker,
        restarted: false,
    };
    let report = Action::Report { worker: 2, kind: 3 };
    let actions = [join(2), Action::Replan, report, join(4), join(3)];
    let survived = survive(
        17_141_438_279_562_483_668,
        (Some(2), Some(2)),
        None,
        actions.into(),
    );
    survived.expect("nothing unsafe, and rest at last");
}
