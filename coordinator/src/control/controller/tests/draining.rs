//! Workers that drain and leave: what lies on them moves, and what cannot move stays.

use super::*;
use crate::control::state::Standing;
use tramontane_model::members::SchedulerLoad;

/// Too little for a replica alone; two of them do.
const HALF: u64 = 10_000;

fn changed(effects: &[Effect]) -> Vec<Result<(), AskRefusal>> {
    let results = effects.iter().filter_map(|effect| {
        if let Effect::Changed { result, .. } = effect {
            Some(result.clone())
        } else {
            None
        }
    });
    results.collect()
}

fn told_to_leave(effects: &[Effect]) -> Vec<(SessionId, Option<String>)> {
    let told = directives(effects).filter_map(|(session, directive)| match directive {
        Directive::Leave { refused } => Some((session, refused.clone())),
        Directive::Assign { .. }
        | Directive::Release(_)
        | Directive::StandBy(_)
        | Directive::Welcome { .. } => None,
    });
    told.collect()
}

impl Cluster {
    fn change(&mut self, change: Change) -> Vec<Effect> {
        let ask = AskId(1);
        self.run(Event::Change { ask, change })
    }

    fn drain(&mut self, worker: &str, force: bool) -> Vec<Effect> {
        let worker = name(worker);
        self.change(Change::Drain { worker, force })
    }

    fn state_of(&self, worker: &str) -> &'static str {
        let status = self.controller.status(&self.state);
        let node = status.nodes.iter().find(|node| node.id == worker);
        node.map_or("gone", |node| node.state)
    }

    /// A worker says that it leaves, and what its schedulers run.
    fn leaves(&mut self, worker: &str, state: DeviceState, running: u32) -> Vec<Effect> {
        let loads = state.fence().map(|fence| SchedulerLoad {
            fence,
            running,
            waiting: 0,
            kv_blocks_used: 0,
            kv_blocks_total: 9,
        });
        let (worker, mut report) = (name(worker), report(state));
        report.leaving = true;
        report.loads.extend(loads);
        let session = self.sessions[&worker];
        self.run(Event::Reported {
            session,
            worker,
            report,
        })
    }
}

#[test]
fn what_lies_on_a_worker_that_drains_moves_at_once_and_nothing_comes_back_to_it() {
    let mut cluster = Cluster::new(options(Some(2), Some(1)));
    cluster.join_all(&["w1", "w2", "w3"]);
    cluster.all_ready(1);
    assert_eq!(cluster.members(), [name("w1"), name("w2")]);
    let effects = cluster.drain("w2", false);
    assert_eq!(changed(&effects), [Ok(())]);
    assert_eq!(cluster.phase(), Some(("loading", 2)));
    assert_eq!(cluster.members(), [name("w1"), name("w3")]);
    assert!(released(&effects).contains(&(cluster.sessions[&name("w2")], fence(1))));
    assert_eq!(cluster.state_of("w2"), "drained");
    cluster.all_ready(2);
    // Once more changes nothing.
    assert_eq!(changed(&cluster.drain("w2", false)), [Ok(())]);
    assert_eq!(cluster.phase(), Some(("serving", 2)));
    // It is used again once it may be: here, in place of one that is lost.
    let worker = name("w2");
    assert_eq!(changed(&cluster.change(Change::Undrain { worker })), [Ok(())]);
    assert_eq!(cluster.state_of("w2"), "joined");
    cluster.pass(LEASE, &["w1", "w2"]);
    assert_eq!(cluster.members(), [name("w1"), name("w2")]);
}

#[test]
fn a_worker_that_is_needed_or_unknown_is_not_drained_unless_forced() {
    let mut cluster = Cluster::new(options(None, None));
    cluster.join(&info("w1", 1, HALF));
    cluster.join(&info("w2", 1, HALF));
    cluster.all_ready(1);
    for (worker, parts) in [
        ("w9", ["no worker w9", "w1, w2"]),
        ("w2", ["cannot be done without", "are missing"]),
    ] {
        let effects = cluster.drain(worker, false);
        let [Err(AskRefusal::Refused(why))] = &changed(&effects)[..] else {
            panic!("{effects:?}");
        };
        assert!(parts.iter().all(|part| why.contains(part)), "{why}");
        assert_eq!(cluster.phase(), Some(("serving", 1)));
    }
    assert_eq!(cluster.state_of("w2"), "joined");
    assert_eq!(changed(&cluster.drain("w2", true)), [Ok(())]);
    assert_eq!(cluster.phase(), Some(("unplaceable", 1)));
    assert_eq!(cluster.state_of("w2"), "drained");
    // With another there is enough again.
    cluster.join(&info("w3", 1, HALF));
    assert_eq!(cluster.phase(), Some(("loading", 2)));
    assert_eq!(cluster.members(), [name("w1"), name("w3")]);
}

#[test]
fn a_worker_that_restarts_is_not_drained_any_more() {
    let mut cluster = Cluster::new(options(Some(1), None));
    cluster.join_all(&["w1", "w2"]);
    cluster.all_ready(1);
    cluster.drain("w1", false);
    assert_eq!(cluster.members(), [name("w2")]);
    cluster.join(&info("w1", 2, ENOUGH));
    assert_eq!(cluster.state.workers[&name("w1")].standing, Standing::Joined);
    cluster.all_ready(2);
    cluster.drain("w2", false);
    assert_eq!(cluster.members(), [name("w1")]);
}

#[test]
fn one_of_several_replicas_retires_where_the_others_serve() {
    let mut options = options(None, None);
    options.replicas = None;
    let mut cluster = Cluster::new(options);
    for worker in ["w1", "w2", "w3", "w4"] {
        cluster.join(&info(worker, 1, HALF));
    }
    for (id, workers) in [(1, ["w1", "w2"]), (2, ["w3", "w4"])] {
        let fence = Fence {
            replica: ReplicaId(id),
            generation: Generation(1),
        };
        for worker in workers {
            cluster.report(worker, DeviceState::Ready { fence });
        }
    }
    assert_eq!(changed(&cluster.drain("w1", false)), [Ok(())]);
    let left: Vec<_> = cluster
        .state
        .replicas
        .iter()
        .map(|(id, entry)| (id.0, entry.phase.name()))
        .collect();
    assert_eq!(left, [(2, "serving")]);
    // What is left of it stands in for the other.
    assert_eq!(changed(&cluster.drain("w3", false)), [Ok(())]);
    let second = &cluster.state.replicas[&ReplicaId(2)];
    let workers: Vec<_> = second
        .live()
        .unwrap()
        .devices()
        .into_iter()
        .map(|device| device.worker.to_string())
        .collect();
    assert_eq!(workers, ["w2", "w4"]);
}

#[test]
fn a_worker_that_leaves_is_drained_and_let_go_once_nothing_lies_on_it() {
    let mut cluster = Cluster::new(options(Some(1), None));
    cluster.join_all(&["w1", "w2"]);
    cluster.all_ready(1);
    let session = cluster.sessions[&name("w1")];
    let ready = DeviceState::Ready { fence: fence(1) };
    let effects = cluster.leaves("w1", ready, 3);
    assert_eq!(told_to_leave(&effects), [(session, None)]);
    assert_eq!(
        (cluster.phase(), cluster.members()),
        (Some(("loading", 2)), vec![name("w2")])
    );
    assert_eq!(
        told_to_leave(&cluster.leaves("w1", DeviceState::Idle, 0)),
        [],
        "once"
    );
    cluster.all_ready(2);
    let worker = name("w1");
    cluster.run(Event::Ended { session, worker });
    cluster.pass(LEASE, &["w2"]);
    assert_eq!(cluster.state_of("w1"), "left");
    assert_eq!(cluster.phase(), Some(("serving", 2)));
    // One that stands by may go as well.
    cluster.join(&info("w3", 1, ENOUGH));
    let effects = cluster.leaves("w3", DeviceState::Idle, 0);
    assert_eq!(told_to_leave(&effects), [(cluster.sessions[&name("w3")], None)]);
}

#[test]
fn a_worker_that_is_needed_may_leave_only_while_nothing_runs_on_it() {
    let mut cluster = Cluster::new(options(None, None));
    cluster.join_all(&["w1"]);
    cluster.all_ready(1);
    let session = cluster.sessions[&name("w1")];
    let ready = || DeviceState::Ready { fence: fence(1) };
    let effects = cluster.leaves("w1", ready(), 3);
    let [(told, Some(why))] = &told_to_leave(&effects)[..] else {
        panic!("{effects:?}");
    };
    assert!(*told == session && why.contains("missing"), "{why}");
    assert_eq!(told_to_leave(&cluster.leaves("w1", ready(), 2)), [], "once");
    assert_eq!(cluster.phase(), Some(("serving", 1)));
    assert_eq!(
        told_to_leave(&cluster.leaves("w1", ready(), 0)),
        [(session, None)]
    );
    // Or when another takes its part.
    cluster.leaves("w1", ready(), 2);
    let (_, effects) = cluster.join(&info("w2", 1, ENOUGH));
    assert_eq!(told_to_leave(&effects), [(session, None)]);
    assert_eq!(
        (cluster.phase(), cluster.members()),
        (Some(("loading", 2)), vec![name("w2")])
    );
}
