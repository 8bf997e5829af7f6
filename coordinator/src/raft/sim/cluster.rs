//! A cluster with everything that must hold of it checked as it runs.

use std::collections::{BTreeMap, BTreeSet};

use tramontane_model::ids::CoordinatorId;

use super::Rng;
use super::ledger::Ledger;
use super::network::{Letter, Network, Weather};
use crate::raft::identity::{Identity, Members};
use crate::raft::node::{
    Effects, Node, NodeError, NodeOptions, Outbound, ProposeError, ReadError, StepError, Ticket,
};
use crate::raft::storage::faulty::Disk;
use crate::raft::storage::{LogStore, Position, StoreError};

/// Steps of the network in one tick of a node.
const STEPS_PER_TICK: u64 = 10;
/// Deadline of proposals and reads, in ticks.
const DEADLINE_TICKS: u64 = 60;

/// What a node gave out during one call.
#[derive(Default)]
struct Outbox {
    sent: Vec<Outbound>,
    applied: Vec<(Ledger, Position)>,
    proposed: Vec<(Ticket, Result<usize, ProposeError>)>,
    read: Vec<(Ticket, Result<u64, ReadError>)>,
}

impl Effects<Ledger> for Outbox {
    fn send(&mut self, message: Outbound) {
        self.sent.push(message);
    }
    fn applied(&mut self, machine: &Ledger, last: Position) {
        self.applied.push((machine.clone(), last));
    }
    fn proposed(&mut self, ticket: Ticket, result: Result<usize, ProposeError>) {
        self.proposed.push((ticket, result));
    }
    fn read(&mut self, ticket: Ticket, result: Result<u64, ReadError>) {
        self.read.push((ticket, result));
    }
}

struct Member {
    identity: Identity,
    disk: Disk,
    node: Option<Node<Ledger>>,
    proposals: BTreeMap<Ticket, u64>,
    /// Numbers that were confirmed to anybody before the read was asked for.
    reads: BTreeMap<Ticket, BTreeSet<u64>>,
    /// Its log was opened before, so that an empty disk would be a loss.
    used: bool,
}

/// How often things happened that a run is meant to reach.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Coverage {
    pub(crate) confirmed: usize,
    pub(crate) failed: usize,
    pub(crate) reads: usize,
    pub(crate) restarts: usize,
    pub(crate) torn: usize,
    pub(crate) elections: usize,
    pub(crate) checkpoints_sent: usize,
}

pub(crate) struct Cluster {
    pub(crate) rng: Rng,
    pub(crate) network: Network,
    pub(crate) coverage: Coverage,
    members: BTreeMap<u64, Member>,
    now: u64,
    last_number: u64,
    confirmed: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    leaders: BTreeMap<u64, u64>,
    /// The longest history that any member applied.
    history: Vec<u64>,
    /// Index and term of what was applied, by index: equal everywhere.
    terms: BTreeMap<u64, u64>,
}

impl Cluster {
    pub(crate) fn new(size: u64, seed: u64, weather: Weather) -> Self {
        let ids: Vec<_> = (1..=size).map(CoordinatorId).collect();
        let members = Members::new(ids.iter().copied()).unwrap();
        let members = ids.into_iter().map(|id| {
            let identity = Identity::new("sim", id, members.clone()).unwrap();
            let member = Member {
                identity,
                disk: Disk::default(),
                node: None,
                proposals: BTreeMap::new(),
                reads: BTreeMap::new(),
                used: false,
            };
            (id.0, member)
        });
        let mut cluster = Self {
            rng: Rng::new(seed),
            network: Network::new(weather),
            coverage: Coverage::default(),
            members: members.collect(),
            now: 0,
            last_number: 0,
            confirmed: BTreeSet::new(),
            refused: BTreeSet::new(),
            leaders: BTreeMap::new(),
            history: Vec::new(),
            terms: BTreeMap::new(),
        };
        for id in cluster.ids() {
            cluster.start(id);
        }
        cluster
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.members.keys().copied().collect()
    }

    pub(crate) fn node(&mut self, id: u64) -> Option<&mut Node<Ledger>> {
        self.members.get_mut(&id).unwrap().node.as_mut()
    }

    pub(crate) fn is_up(&self, id: u64) -> bool {
        self.members[&id].node.is_some()
    }

    /// The leader of the highest term.
    pub(crate) fn leader(&self) -> Option<u64> {
        let up = self
            .members
            .iter()
            .filter_map(|(id, member)| Some((*id, member.node.as_ref()?)));
        let leaders = up.filter(|(_, node)| node.is_leader());
        leaders
            .max_by_key(|(_, node)| node.status().term)
            .map(|(id, _)| id)
    }

    pub(crate) fn history(&self, id: u64) -> Vec<u64> {
        self.members[&id]
            .node
            .as_ref()
            .map(|node| node.machine().0.clone())
            .unwrap_or_default()
    }

    /// Starts a member that is down, from its disk.
    pub(crate) fn start(&mut self, id: u64) {
        let member = self.members.get_mut(&id).unwrap();
        assert!(member.node.is_none());
        let store = LogStore::open_backend(member.disk.open(), "sim", &member.identity, member.used)
            .unwrap_or_else(|e| panic!("coordinator {id} cannot start: {e}"));
        let options = NodeOptions {
            checkpoint_entries: 8,
            kept_entries: 3,
            election_timeout_ticks: member.identity.election_timeout_ticks(0),
            ..NodeOptions::new(&member.identity)
        };
        member.used = true;
        member.node = Some(Node::new(store, &member.identity, options, Ledger::default()).unwrap());
        self.drive(id);
    }

    /// Cuts a member's power.
    pub(crate) fn crash(&mut self, id: u64) {
        let member = self.members.get_mut(&id).unwrap();
        if member.node.take().is_none() {
            return;
        }
        self.coverage.restarts += 1;
        member.disk.crash(&mut self.rng);
        member.disk.repair();
        member.proposals.clear();
        member.reads.clear();
    }

    /// Cuts a member's power somewhere within its next few writes.
    pub(crate) fn crash_while_writing(&mut self, id: u64) {
        let writes = self.rng.below(15);
        self.members[&id].disk.break_after(writes);
    }

    pub(crate) fn split(&mut self, group: &[u64]) {
        let ids = self.ids();
        self.network.split(group, &ids);
    }

    /// Proposes a number never used before, if the member leads.
    pub(crate) fn propose(&mut self, id: u64) -> Option<u64> {
        self.last_number += 1;
        let number = self.last_number;
        let padding = self.rng.below(200) as usize;
        let entry = [&number.to_le_bytes()[..], &vec![0; padding]].concat();
        let ticket = self.node(id)?.propose(entry, DEADLINE_TICKS).ok()?;
        self.members
            .get_mut(&id)
            .unwrap()
            .proposals
            .insert(ticket, number);
        self.drive(id);
        Some(number)
    }

    pub(crate) fn read(&mut self, id: u64) {
        let confirmed = self.confirmed.clone();
        let Some(node) = self.node(id) else { return };
        let ticket = node.read(DEADLINE_TICKS).unwrap();
        self.members.get_mut(&id).unwrap().reads.insert(ticket, confirmed);
        self.drive(id);
    }

    /// How many proposals and reads wait at a member.
    pub(crate) fn waiting(&self, id: u64) -> usize {
        self.members[&id].proposals.len() + self.members[&id].reads.len()
    }

    pub(crate) fn is_confirmed(&self, number: u64) -> bool {
        self.confirmed.contains(&number)
    }

    /// One step of the network; every member ticks once in ten, each at its own time.
    pub(crate) fn step(&mut self) {
        self.now += 1;
        for letter in self.network.arrivals(self.now) {
            self.deliver(letter);
        }
        for id in self.ids() {
            if (self.now + 3 * id).is_multiple_of(STEPS_PER_TICK)
                && let Some(node) = self.node(id)
            {
                node.tick();
                self.drive(id);
            }
        }
    }

    /// Runs until `done`, or fails after this many ticks.
    pub(crate) fn run_until(&mut self, ticks: u64, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..ticks * STEPS_PER_TICK {
            if done(self) {
                return;
            }
            self.step();
        }
        let all: Vec<_> = self
            .members
            .values()
            .filter_map(|m| m.node.as_ref())
            .map(|node| node.status())
            .collect();
        panic!("not within {ticks} ticks: {what}: {all:#?}");
    }

    fn deliver(&mut self, letter: Letter) {
        // Sometimes nobody tells the sender what became of its checkpoint.
        if letter.is_snapshot && self.rng.chance(70) {
            let sent = self.rng.chance(80);
            if let Some(node) = self.node(letter.from) {
                node.report_snapshot(CoordinatorId(letter.to), sent);
                self.drive(letter.from);
            }
        }
        let Some(node) = self.node(letter.to) else {
            if let Some(node) = self.node(letter.from) {
                node.report_unreachable(CoordinatorId(letter.to));
            }
            return;
        };
        match node.step(CoordinatorId(letter.from), &letter.bytes) {
            Ok(()) => self.drive(letter.to),
            Err(StepError::Refused(e)) => panic!("{} refused an honest message: {e}", letter.to),
            Err(StepError::Fatal(e)) => panic!("{} cannot go on: {e}", letter.to),
        }
    }

    /// Lets a member do what is ready, and checks all that it gives out.
    fn drive(&mut self, id: u64) {
        let mut outbox = Outbox::default();
        let result = self.node(id).map(|node| node.ready(&mut outbox));
        // What was given out before a failure counts: it was promised.
        self.check_applied(&outbox.applied);
        self.check_answers(id, outbox.proposed, outbox.read);
        for message in outbox.sent {
            self.coverage.checkpoints_sent += usize::from(message.is_snapshot);
            self.network.send(self.now, id, message, &mut self.rng);
        }
        match result {
            Some(Err(NodeError::Store(StoreError::Write { .. }))) => {
                self.coverage.torn += 1;
                self.crash(id);
            }
            Some(Err(other)) => panic!("{id} cannot go on: {other}"),
            Some(Ok(())) => self.check_leader(id),
            None => {}
        }
    }

    /// Election safety: at most one leader in a term.
    fn check_leader(&mut self, id: u64) {
        let Some(status) = self
            .node(id)
            .map(|node| node.status())
            .filter(|_| self.is_leader(id))
        else {
            return;
        };
        let first = *self.leaders.entry(status.term).or_insert_with(|| {
            self.coverage.elections += 1;
            id
        });
        assert_eq!(first, id, "two leaders in term {}", status.term);
    }

    fn is_leader(&self, id: u64) -> bool {
        self.members[&id].node.as_ref().is_some_and(Node::is_leader)
    }

    /// State machine safety: equal entries in equal order everywhere.
    fn check_applied(&mut self, applied: &[(Ledger, Position)]) {
        for (Ledger(state), last) in applied {
            let common = state.len().min(self.history.len());
            assert_eq!(
                state[..common],
                self.history[..common],
                "members applied different entries"
            );
            if state.len() > common {
                self.history = state.clone();
            }
            let term = *self.terms.entry(last.index).or_insert(last.term);
            assert_eq!(term, last.term, "entry {} was applied with two terms", last.index);
        }
    }

    fn check_answers(
        &mut self,
        id: u64,
        proposed: Vec<(Ticket, Result<usize, ProposeError>)>,
        read: Vec<(Ticket, Result<u64, ReadError>)>,
    ) {
        let member = self.members.get_mut(&id).unwrap();
        for (ticket, result) in proposed {
            let number = member
                .proposals
                .remove(&ticket)
                .expect("a proposal was answered twice");
            match result {
                Ok(place) => {
                    assert_eq!(self.history[place - 1], number, "answered with another's outcome");
                    assert!(self.confirmed.insert(number));
                    self.coverage.confirmed += 1;
                }
                Err(ProposeError::Dropped) => {
                    self.refused.insert(number);
                    self.coverage.failed += 1;
                }
                Err(ProposeError::TimedOut | ProposeError::Unknown) => self.coverage.failed += 1,
                Err(other) => panic!("{other}"),
            }
        }
        for (ticket, result) in read {
            let before = member.reads.remove(&ticket).expect("a read was answered twice");
            if result.is_ok() {
                self.coverage.reads += 1;
                let node = member.node.as_ref().expect("a dead member answered");
                let seen: BTreeSet<u64> = node.machine().0.iter().copied().collect();
                assert!(
                    before.is_subset(&seen),
                    "a read missed {:?}",
                    before.difference(&seen)
                );
            }
        }
    }

    /// Log matching: logs that agree on an entry's term agree on everything before it.
    pub(crate) fn check_logs(&self) {
        let logs: Vec<_> = self
            .members
            .values()
            .filter_map(|m| m.node.as_ref())
            .map(Node::log)
            .collect();
        for (position, one) in logs.iter().enumerate() {
            for other in &logs[position + 1..] {
                let agree = one
                    .keys()
                    .rev()
                    .find(|i| other.get(i).is_some_and(|e| e.0 == one[i].0));
                let Some(agree) = agree else { continue };
                for (index, entry) in one.range(..=agree) {
                    if let Some(found) = other.get(index) {
                        assert_eq!(found, entry, "logs agree on entry {agree} but not on {index}");
                    }
                }
            }
        }
    }

    /// Calms everything, starts everybody and checks that the cluster works and has lost nothing.
    pub(crate) fn settle(&mut self) {
        self.network.heal();
        self.network.weather = Weather::FAIR;
        for id in self.ids() {
            self.members[&id].disk.repair();
            if !self.is_up(id) {
                self.start(id);
            }
        }
        self.confirm_one(400);
        let everyone = self.ids();
        self.agree(&everyone);
    }

    /// Has a fresh number confirmed by whoever leads.
    pub(crate) fn confirm_one(&mut self, ticks: u64) -> u64 {
        let mut number = None;
        self.run_until(ticks, "a proposal is confirmed", |cluster| {
            if number.is_some_and(|number| cluster.is_confirmed(number)) {
                return true;
            }
            if let Some(leader) = cluster.leader()
                && (number.is_none() || cluster.now.is_multiple_of(20 * STEPS_PER_TICK))
            {
                number = cluster.propose(leader);
            }
            false
        });
        number.unwrap()
    }

    /// Waits until these members have all applied the same, and checks it against what was promised.
    pub(crate) fn agree(&mut self, ids: &[u64]) {
        self.run_until(400, "all members agree", |cluster| {
            let longest = cluster.history.len();
            ids.iter().all(|id| cluster.history(*id).len() == longest)
        });
        self.check_logs();
        for id in ids {
            let history = self.history(*id);
            let once: BTreeSet<u64> = history.iter().copied().collect();
            assert_eq!(once.len(), history.len(), "a proposal was applied twice");
            assert!(
                self.confirmed.is_subset(&once),
                "lost {:?}",
                self.confirmed.difference(&once)
            );
            assert!(
                self.refused.is_disjoint(&once),
                "a proposal called dropped was applied"
            );
        }
    }
}
