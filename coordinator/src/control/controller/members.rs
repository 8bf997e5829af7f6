//! Sessions and leases of workers.
//!
//! **Invariant:** a worker is told something only on a session that was admitted by this leader, after the command
//! that made it a member was committed in this leader's term: what the state says is then at least as new as what any
//! leader before told the worker.

use std::collections::{BTreeMap, BTreeSet};

use tramontane_model::ids::{DeviceIndex, Fence, Generation, ReplicaId, WorkerId};
use tramontane_model::members::{WorkerInfo, WorkerReport};
use tramontane_model::standby::Share;
use tramontane_model::time::Tick;
use tramontane_proto::Directive;

use super::draining::Leavers;
use super::event::{AskRefusal, Effect, ProposalResult, SessionId};
use super::proposals::{Proposals, Purpose};
use super::turn::Turn;
use crate::control::command::{Command, Outcome};
use crate::control::limits::MAX_WORKERS;
use crate::control::state::Standing;

/// Most workers that wait to be let in.
const MAX_JOINING: usize = MAX_WORKERS + 64;
/// Longest wait to be let in, in milliseconds; less than a worker waits for its welcome.
const JOIN_DEADLINE_MS: u64 = 4500;
/// Most lost workers that status remembers.
const MAX_LOST: usize = 64;
/// A broken session leaves a worker one heartbeat to come back, and no less than this, in milliseconds: more than it
/// pauses before it does.
const MIN_GRACE_MS: u64 = 200;

/// How far a worker that joins is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Proposed,
    Committed,
}

#[derive(Debug)]
struct Joining {
    info: WorkerInfo,
    since: Tick,
    stage: Stage,
}

/// A worker with an admitted session.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) session: SessionId,
    pub(super) incarnation: u64,
    /// The last report on this session.
    pub(super) report: Option<WorkerReport>,
    /// What it was told to hold, and when.
    pub(super) assigned: BTreeMap<ReplicaId, (Generation, Tick)>,
    /// What it was told to free last, and when.
    pub(super) released: BTreeMap<ReplicaId, (Generation, Tick)>,
    /// What its devices were told to keep copies of.
    copies: BTreeMap<DeviceIndex, Vec<Share>>,
    copies_told: bool,
    /// What it was told last of its leaving.
    leave_told: Option<Option<String>>,
}

#[derive(Debug)]
struct Lease {
    incarnation: u64,
    standing: Standing,
    until: Tick,
    pid: u32,
    address: String,
}

/// A worker that was a member under this leader.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    pub(super) pid: u32,
    pub(super) address: String,
    /// It drained before it went.
    pub(super) left: bool,
    at: Tick,
}

/// All workers, as the leader knows them.
#[derive(Debug)]
pub(super) struct Members {
    since: Tick,
    joining: BTreeMap<SessionId, Joining>,
    pub(super) admitted: BTreeMap<WorkerId, Member>,
    leases: BTreeMap<WorkerId, Lease>,
    pub(super) lost: BTreeMap<WorkerId, Lost>,
    /// When the set of workers last changed.
    pub(super) changed: Tick,
    /// Grows with each such change.
    pub(super) epoch: u64,
}

const REPLACED: AskRefusal = AskRefusal::Unavailable("a newer session of this worker took its place");
const EXPIRED: AskRefusal = AskRefusal::Unavailable("this worker is no member any more; join again");
const NOT_NOW: AskRefusal = AskRefusal::Unavailable("the worker could not be listed just now; try again");
const TOO_MANY: AskRefusal = AskRefusal::Unavailable("too many workers join at once; try again");

impl Members {
    pub(super) fn new(now: Tick) -> Self {
        Self {
            since: now,
            joining: BTreeMap::new(),
            admitted: BTreeMap::new(),
            leases: BTreeMap::new(),
            lost: BTreeMap::new(),
            changed: now,
            epoch: 0,
        }
    }

    /// The report of a worker's session, if it made one.
    pub(super) fn report(&self, worker: &WorkerId) -> Option<&WorkerReport> {
        self.admitted.get(worker)?.report.as_ref()
    }

    pub(super) fn join(&mut self, turn: &mut Turn<'_>, session: SessionId, info: WorkerInfo) {
        let older = self
            .joining
            .iter()
            .find(|(_, other)| other.info.worker == info.worker);
        if let Some(older) = older.map(|(&older, _)| older) {
            self.joining.remove(&older);
            turn.refuse(older, REPLACED);
        }
        if self.joining.len() >= MAX_JOINING {
            turn.refuse(session, TOO_MANY);
            return;
        }
        let joining = Joining {
            info,
            since: turn.now,
            stage: Stage::Waiting,
        };
        self.joining.insert(session, joining);
    }

    pub(super) fn reported(
        &mut self,
        turn: &Turn<'_>,
        session: SessionId,
        worker: &WorkerId,
        report: WorkerReport,
    ) {
        let Some(member) = self.admitted.get_mut(worker).filter(|one| one.session == session) else {
            return;
        };
        member.report = Some(report);
        if let Some(lease) = self.leases.get_mut(worker) {
            lease.until = lease.until.max(turn.now.after_ms(turn.lease_ms()));
        }
    }

    pub(super) fn ended(&mut self, turn: &Turn<'_>, session: SessionId, worker: &WorkerId) {
        self.joining.remove(&session);
        if self.admitted.get(worker).is_none_or(|one| one.session != session) {
            return;
        }
        self.admitted.remove(worker);
        if let Some(lease) = self.leases.get_mut(worker) {
            let soon = turn.now.after_ms(turn.heartbeat_ms().max(MIN_GRACE_MS));
            let earliest = self.since.after_ms(turn.lease_ms());
            lease.until = lease.until.min(soon.max(earliest));
        }
    }

    /// A worker whose session is over listens no more: it is not waited for, but by a new leader.
    pub(super) fn gone(&mut self, turn: &Turn<'_>, worker: &WorkerId, incarnation: u64) {
        let earliest = self.since.after_ms(turn.lease_ms());
        let lease = self.leases.get_mut(worker);
        let lease = lease.filter(|lease| lease.incarnation == incarnation);
        if let Some(lease) = lease.filter(|_| !self.admitted.contains_key(worker)) {
            lease.until = lease.until.min(turn.now.max(earliest));
        }
    }

    /// What became of a join that was proposed.
    pub(super) fn answered(&mut self, turn: &mut Turn<'_>, session: SessionId, result: &ProposalResult) {
        let Some(joining) = self.joining.get_mut(&session) else {
            return;
        };
        let error = match result {
            ProposalResult::Committed(Outcome::Applied | Outcome::Duplicate) => {
                joining.stage = Stage::Committed;
                return;
            }
            ProposalResult::Committed(Outcome::Refused(refusal)) => AskRefusal::Refused(refusal.to_string()),
            ProposalResult::Dropped { .. } | ProposalResult::Unknown => NOT_NOW,
        };
        self.joining.remove(&session);
        turn.refuse(session, error);
    }

    /// Brings leases and sessions in line with the members that the state lists.
    pub(super) fn follow_state(&mut self, turn: &mut Turn<'_>) {
        let workers = &turn.state.workers;
        for (worker, entry) in workers {
            let (incarnation, standing) = (entry.info.incarnation, entry.standing);
            let known = self.leases.get_mut(worker);
            match known.filter(|lease| lease.incarnation == incarnation) {
                Some(lease) if lease.standing == standing => continue,
                Some(lease) => lease.standing = standing,
                None => {
                    let until = turn.now.after_ms(turn.lease_ms());
                    #[cfg(feature = "deliberate-bugs")]
                    let until = if tramontane_sim::bugs::on(tramontane_sim::bugs::Bug::StaleLease) {
                        turn.now
                    } else {
                        until
                    };
                    let lease = Lease {
                        incarnation,
                        standing,
                        until,
                        pid: entry.info.pid,
                        address: entry.info.address.clone(),
                    };
                    self.leases.insert(worker.clone(), lease);
                    self.lost.remove(worker);
                }
            }
            self.note_change(turn.now);
        }
        let gone: Vec<WorkerId> = self
            .leases
            .keys()
            .filter(|worker| !workers.contains_key(*worker))
            .cloned()
            .collect();
        for worker in gone {
            self.note_change(turn.now);
            if let Some(lease) = self.leases.remove(&worker) {
                let lost = Lost {
                    pid: lease.pid,
                    address: lease.address,
                    left: lease.standing.drains(),
                    at: turn.now,
                };
                self.lost.insert(worker, lost);
            }
        }
        while self.lost.len() > MAX_LOST {
            let oldest = self.lost.iter().min_by_key(|(_, lost)| lost.at);
            let Some(oldest) = oldest.map(|(worker, _)| worker.clone()) else {
                break;
            };
            self.lost.remove(&oldest);
        }
        self.admitted.retain(|worker, member| {
            let listed = workers.get(worker);
            let stays = listed.is_some_and(|entry| entry.info.incarnation == member.incarnation);
            if !stays {
                turn.end(member.session, EXPIRED);
            }
            stays
        });
    }

    fn note_change(&mut self, now: Tick) {
        self.changed = now;
        self.epoch = self.epoch.saturating_add(1);
    }

    /// Workers that are listed and about to be lost or drained: nothing is planned on them.
    pub(super) fn leaving(&self, now: Tick, proposals: &Proposals) -> BTreeSet<WorkerId> {
        let leaves = |(worker, lease): &(&WorkerId, &Lease)| {
            now >= lease.until
                || !proposals.is_open(&Purpose::Lost((*worker).clone()))
                || !proposals.is_open(&Purpose::Drain((*worker).clone()))
        };
        let leaving = self.leases.iter().filter(leaves);
        leaving.map(|(worker, _)| worker.clone()).collect()
    }

    /// Proposes the loss of workers whose lease ran out.
    pub(super) fn expire(&mut self, turn: &mut Turn<'_>, proposals: &mut Proposals) {
        for (worker, lease) in &self.leases {
            let joins = self
                .joining
                .values()
                .any(|joining| joining.info.worker == *worker);
            if turn.now < lease.until || joins {
                continue;
            }
            let command = Command::WorkerLost {
                worker: worker.clone(),
                incarnation: lease.incarnation,
            };
            proposals.propose(turn, Purpose::Lost(worker.clone()), command);
        }
    }

    /// Lets in, proposes and refuses those that wait.
    pub(super) fn let_in(&mut self, turn: &mut Turn<'_>, proposals: &mut Proposals) {
        let sessions: Vec<SessionId> = self.joining.keys().copied().collect();
        for session in sessions {
            let Some(joining) = self.joining.get_mut(&session) else {
                continue;
            };
            let listed = turn.state.workers.get(&joining.info.worker);
            let listed = listed.is_some_and(|entry| entry.info == joining.info);
            if joining.stage == Stage::Committed && listed {
                if let Some(joining) = self.joining.remove(&session) {
                    self.admit(turn, session, joining.info);
                }
                continue;
            }
            if turn.now.ms_since(joining.since) >= JOIN_DEADLINE_MS {
                self.joining.remove(&session);
                turn.refuse(session, NOT_NOW);
                continue;
            }
            let command = Command::WorkerJoined {
                info: joining.info.clone(),
            };
            if joining.stage == Stage::Waiting && proposals.propose(turn, Purpose::Join(session), command) {
                joining.stage = Stage::Proposed;
            }
        }
    }

    fn admit(&mut self, turn: &mut Turn<'_>, session: SessionId, info: WorkerInfo) {
        let until = turn.now.after_ms(turn.lease_ms());
        if let Some(lease) = self.leases.get_mut(&info.worker) {
            lease.until = lease.until.max(until);
        }
        let member = Member {
            session,
            incarnation: info.incarnation,
            report: None,
            assigned: BTreeMap::new(),
            released: BTreeMap::new(),
            copies: BTreeMap::new(),
            copies_told: false,
            leave_told: None,
        };
        if let Some(older) = self.admitted.insert(info.worker, member) {
            turn.end(older.session, REPLACED);
        }
        let directive = Directive::Welcome {
            coordinator: turn.options.id,
            term: turn.term,
            heartbeat_ms: turn.options.leases.heartbeat_ms,
            lease_ms: turn.options.leases.lease_ms,
        };
        turn.effects.push(Effect::Admit { session });
        turn.effects.push(Effect::Direct { session, directive });
    }

    /// Tells workers that leave what came of it, once.
    pub(super) fn tell_leavers(&mut self, turn: &mut Turn<'_>, leavers: Leavers) {
        for (worker, refused) in leavers {
            let Some(member) = self.admitted.get_mut(&worker) else {
                continue;
            };
            if member.leave_told.as_ref() != Some(&refused) {
                member.leave_told = Some(refused.clone());
                let session = member.session;
                let directive = Directive::Leave { refused };
                turn.effects.push(Effect::Direct { session, directive });
            }
        }
    }

    /// Ends and refuses everything: this coordinator does not lead any more.
    pub(super) fn dismiss(self, effects: &mut Vec<Effect>, why: &AskRefusal) {
        for session in self.joining.into_keys() {
            let error = why.clone();
            effects.push(Effect::Refuse { session, error });
        }
        for member in self.admitted.into_values() {
            let why = why.clone();
            let session = member.session;
            effects.push(Effect::EndSession { session, why });
        }
    }
}

impl Member {
    /// Tells the worker to hold what a placement gives it, and remembers that.
    pub(super) fn assign(&mut self, turn: &mut Turn<'_>, fence: Fence, directive: Directive) {
        self.assigned.insert(fence.replica, (fence.generation, turn.now));
        let session = self.session;
        turn.effects.push(Effect::Direct { session, directive });
    }

    /// Tells the worker what its devices are to keep copies of, if it was told something else, or keeps some unasked.
    pub(super) fn stand_by(&mut self, turn: &mut Turn<'_>, copies: BTreeMap<DeviceIndex, Vec<Share>>) {
        let mut reported = self.report.iter().flat_map(|report| &report.devices);
        let unasked = !self.copies_told && reported.any(|device| device.standby.total_bytes > 0);
        if self.copies == copies && !unasked {
            return;
        }
        self.copies.clone_from(&copies);
        self.copies_told = true;
        let session = self.session;
        let directive = Directive::StandBy(copies);
        turn.effects.push(Effect::Direct { session, directive });
    }

    /// Tells the worker to free a placement; not again within a lease.
    pub(super) fn release(&mut self, turn: &mut Turn<'_>, fence: Fence) {
        let told = self.released.get(&fence.replica);
        if told.is_some_and(|&(generation, at)| {
            generation >= fence.generation && turn.now.ms_since(at) < turn.lease_ms()
        }) {
            return;
        }
        self.released.insert(fence.replica, (fence.generation, turn.now));
        let session = self.session;
        let directive = Directive::Release(fence);
        turn.effects.push(Effect::Direct { session, directive });
    }
}
