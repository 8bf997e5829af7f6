//! When replicas are placed, and on what.

use super::*;
use crate::control::state::Phase;

fn two_by_two() -> Cluster {
    let mut cluster = Cluster::new(options(Some(2), Some(2)));
    cluster.join_all(&["w1", "w2", "w3", "w4"]);
    cluster
}

#[test]
fn met_wishes_are_placed_at_once() {
    let mut cluster = Cluster::new(options(Some(2), Some(2)));
    cluster.join_all(&["w1", "w2", "w3"]);
    assert_eq!(cluster.phase(), None);
    let (_, effects) = cluster.join(&info("w4", 1, ENOUGH));
    assert_eq!(cluster.phase(), Some(("loading", 1)));
    assert_eq!(assigned(&effects).len(), 4);
    assert_eq!(cluster.members().len(), 4);
    cluster.all_ready(1);
    assert_eq!(cluster.phase(), Some(("serving", 1)));
}

#[test]
fn wishes_are_relaxed_when_nobody_else_comes() {
    let mut cluster = Cluster::new(options(Some(2), Some(2)));
    cluster.join_all(&["w1", "w2"]);
    cluster.pass(SETTLE - 1, &["w1", "w2"]);
    assert_eq!(cluster.phase(), None);
    cluster.pass(1, &["w1", "w2"]);
    assert_eq!(cluster.phase(), Some(("loading", 1)));
    assert_eq!(cluster.placement().unwrap().stages.len(), 2);
}

#[test]
fn not_all_ready_does_not_serve() {
    let mut cluster = two_by_two();
    for worker in ["w1", "w2", "w3"] {
        cluster.report(worker, DeviceState::Ready { fence: fence(1) });
    }
    let loading = DeviceState::Loading {
        fence: fence(1),
        load: LoadReport {
            loaded_bytes: 30,
            total_bytes: 100,
            bytes_per_second: 20,
        },
    };
    cluster.report("w4", loading);
    assert_eq!(cluster.phase(), Some(("loading", 1)));
    let progress = cluster.controller.progress(&cluster.state);
    let expected = Progress {
        loaded_bytes: 45,
        total_bytes: 115,
        bytes_per_second: 20,
        seconds_left: Some(4),
    };
    assert_eq!(progress, BTreeMap::from([(fence(1), expected)]));
    let status = cluster.controller.status(&cluster.state);
    assert_eq!(status.replicas[0].loading, Some(expected));
    let missing = "replica 1 generation 1 is loading, 45 of 115 bytes at 20 bytes/s, 4 s left";
    assert_eq!(status.missing.as_deref(), Some(missing));
    let device = |id: &str| {
        let node = status.nodes.iter().find(|node| node.id == id).expect("listed");
        (node.devices[0].state.clone(), node.devices[0].loading)
    };
    let own = Progress {
        loaded_bytes: 30,
        total_bytes: 100,
        ..expected
    };
    let told = "loading, 30 of 100 bytes at 20 bytes/s, 4 s left".to_owned();
    assert_eq!(device("w4"), (told, Some(own)));
    assert_eq!(device("w1"), ("ready".to_owned(), None));
    // Ready for another generation is not ready.
    cluster.report("w4", DeviceState::Ready { fence: fence(9) });
    assert_eq!(cluster.phase(), Some(("loading", 1)));
    cluster.report("w4", DeviceState::Ready { fence: fence(1) });
    assert_eq!(cluster.phase(), Some(("serving", 1)));
    assert!(cluster.controller.progress(&cluster.state).is_empty());
}

#[test]
fn a_later_worker_is_a_standby_until_a_loss() {
    let mut cluster = two_by_two();
    cluster.all_ready(1);
    let before = cluster.placement().unwrap().clone();
    let (session, effects) = cluster.join(&info("w5", 1, ENOUGH));
    assert_eq!(assigned(&effects), []);
    assert_eq!(cluster.phase(), Some(("serving", 1)));
    let effects = cluster.pass(LEASE, &["w1", "w3", "w4", "w5"]);
    assert_eq!(cluster.phase(), Some(("loading", 2)));
    let after = cluster.placement().unwrap();
    assert_eq!(assigned(&effects).len(), 4);
    assert!(assigned(&effects).contains(&(session, fence(2))));
    let moved = |one: &String| {
        if one == "w2/0" {
            "w5/0".to_owned()
        } else {
            one.clone()
        }
    };
    let devices = |replica: &Replica| -> Vec<String> {
        let groups = replica.stages.iter().flat_map(|stage| &stage.groups);
        groups.map(|group| group.holder.to_string()).collect()
    };
    let expected: Vec<_> = devices(&before).iter().map(moved).collect();
    assert_eq!(devices(after), expected);
}

#[test]
fn after_a_loss_what_remains_is_used_at_once() {
    let mut cluster = two_by_two();
    cluster.all_ready(1);
    cluster.pass(LEASE, &["w1", "w2", "w3"]);
    assert_eq!(cluster.phase(), Some(("loading", 2)));
    assert_eq!(cluster.placement().unwrap().stages.len(), 2);
    assert_eq!(cluster.members().len(), 2);
}

#[test]
fn what_does_not_fit_is_told_and_placed_once_it_does() {
    let mut cluster = Cluster::new(options(None, None));
    cluster.join(&info("w1", 1, 10_000));
    cluster.pass(SETTLE - 1, &["w1"]);
    assert_eq!(cluster.phase(), None);
    cluster.pass(1, &["w1"]);
    assert_eq!(cluster.phase(), Some(("unplaceable", 0)));
    let Phase::Unplaceable {
        reason,
        missing_bytes,
    } = &cluster.state.replicas[&ReplicaId(1)].phase
    else {
        panic!("it was just so");
    };
    assert_eq!(*missing_bytes, 15_434 - 10_000);
    assert!(reason.contains("are missing"), "{reason}");
    let commands = cluster.state.commands;
    cluster.pass(10 * SETTLE, &["w1"]);
    assert_eq!(cluster.state.commands, commands, "nothing new is to be told");
    cluster.join(&info("w2", 1, 10_000));
    assert_eq!(cluster.phase(), Some(("loading", 1)));
}

#[test]
fn a_loss_too_many_waits_for_the_settle_time() {
    let mut cluster = Cluster::new(options(None, None));
    cluster.join(&info("w1", 1, 10_000));
    cluster.join(&info("w2", 1, 10_000));
    cluster.all_ready(1);
    cluster.pass(LEASE, &["w1"]);
    assert_eq!(cluster.phase(), Some(("broken", 1)));
    let effects = cluster.pass(SETTLE, &["w1"]);
    assert_eq!(cluster.phase(), Some(("unplaceable", 1)));
    // What it holds of the placement that is no more is freed, and again if it did not hear.
    let freed = [(cluster.sessions[&name("w1")], fence(1))];
    assert_eq!(released(&effects), freed);
    cluster.now = cluster.now.after_ms(LEASE);
    let effects = cluster.report("w1", DeviceState::Ready { fence: fence(1) });
    assert_eq!(released(&effects), freed);
    cluster.join(&info("w2", 2, 10_000));
    assert_eq!(cluster.phase(), Some(("loading", 2)));
}

#[test]
fn foreign_checkpoints_and_draining_workers_are_not_used() {
    let mut cluster = Cluster::new(options(None, None));
    let mut other = info("w1", 1, ENOUGH);
    other.model_fingerprint = [8; 32];
    cluster.join(&other);
    assert_eq!(cluster.phase(), None);
    // It comes before the controller hears of the worker.
    let draining = info("w2", 1, ENOUGH);
    let join = Command::WorkerJoined {
        info: draining.clone(),
    };
    assert_eq!(cluster.state.apply(&join), Outcome::Applied);
    let worker = name("w2");
    let drain = Command::WorkerDraining {
        worker,
        incarnation: 1,
        force: false,
    };
    assert_eq!(cluster.state.apply(&drain), Outcome::Applied);
    cluster.join(&draining);
    assert_eq!(cluster.phase(), None);
    cluster.join(&info("w3", 1, ENOUGH));
    assert_eq!(cluster.members(), [name("w3")]);
}

#[test]
fn a_failed_device_is_left_out_for_a_while() {
    let mut cluster = Cluster::new(options(None, None));
    cluster.join_all(&["w1", "w2"]);
    assert_eq!(cluster.members(), [name("w1")]);
    let failed = |generation| DeviceState::Failed {
        fence: fence(generation),
        reason: "out of memory".to_owned(),
    };
    cluster.report("w1", failed(1));
    assert_eq!(
        (cluster.phase(), cluster.members()),
        (Some(("loading", 2)), vec![name("w2")])
    );
    // Nothing fits without the second: the first failure of each is forgiven at once.
    cluster.report("w2", failed(2));
    assert_eq!(cluster.phase(), Some(("loading", 3)));
    let again = cluster.members()[0].clone();
    cluster.report(again.as_str(), failed(3));
    let other = cluster.members()[0].clone();
    assert_ne!(other, again, "the one that failed twice pauses");
    cluster.report(other.as_str(), failed(4));
    assert_eq!(cluster.phase(), Some(("broken", 4)), "both pause");
    cluster.pass(1000, &["w1", "w2"]);
    assert_eq!(cluster.phase(), Some(("loading", 5)));
}

#[test]
fn a_device_that_does_nothing_has_failed() {
    let mut cluster = Cluster::new(options(None, None));
    cluster.join_all(&["w1", "w2"]);
    cluster.pass(29_999, &["w1", "w2"]);
    assert_eq!(cluster.phase(), Some(("loading", 1)));
    cluster.pass(1, &["w1", "w2"]);
    assert_eq!(
        (cluster.phase(), cluster.members()),
        (Some(("loading", 2)), vec![name("w2")])
    );
}

#[test]
fn old_fences_are_released_now_and_then() {
    let mut cluster = two_by_two();
    let (session, _) = cluster.join(&info("w5", 1, ENOUGH));
    let old = DeviceState::Ready { fence: fence(7) };
    assert_eq!(
        released(&cluster.report("w5", old.clone())),
        [(session, fence(7))]
    );
    assert_eq!(released(&cluster.report("w5", old.clone())), []);
    cluster.now = cluster.now.after_ms(LEASE - 1);
    assert_eq!(released(&cluster.report("w5", old.clone())), []);
    cluster.now = cluster.now.after_ms(1);
    assert_eq!(released(&cluster.report("w5", old)), [(session, fence(7))]);
}

#[test]
fn replanning_uses_what_has_joined_and_frees_the_rest() {
    let mut cluster = Cluster::new(options(None, None));
    cluster.join_all(&["w1"]);
    cluster.all_ready(1);
    let ask = AskId(1);
    let same = cluster.run(Event::Replan { ask });
    assert_eq!(
        same,
        [Effect::Answer {
            ask,
            result: Ok(fence(1))
        }]
    );
    let (large, _) = cluster.join(&info("w2", 1, 8 * ENOUGH));
    assert_eq!(cluster.phase(), Some(("serving", 1)));
    let effects = cluster.run(Event::Replan { ask });
    assert!(
        effects.contains(&Effect::Answer {
            ask,
            result: Ok(fence(2))
        }),
        "{effects:?}"
    );
    assert_eq!(cluster.members(), [name("w2")]);
    assert_eq!(assigned(&effects), [(large, fence(2))]);
    assert_eq!(released(&effects), [(cluster.sessions[&name("w1")], fence(1))]);
}

#[test]
fn replanning_what_does_not_fit_is_refused() {
    let mut cluster = Cluster::new(options(None, None));
    cluster.join(&info("w1", 1, 10));
    let ask = AskId(1);
    let effects = cluster.run(Event::Replan { ask });
    assert!(
        matches!(&effects[..], [Effect::Answer { result: Err(AskRefusal::Refused(why)), .. }] if why.contains("missing")),
        "{effects:?}"
    );
}

#[test]
fn a_plan_on_an_older_map_is_made_again() {
    let mut cluster = Cluster::new(options(None, None));
    cluster.join_all(&["w1"]);
    cluster.join(&info("w2", 1, 8 * ENOUGH));
    let ask = AskId(1);
    let proposed = cluster.step(Event::Replan { ask });
    let [Effect::Propose { sequence, command }] = &proposed[..] else {
        panic!("{proposed:?}");
    };
    // Meanwhile the map changes.
    assert_eq!(
        cluster.state.apply(&Command::ReplicaServing { fence: fence(1) }),
        Outcome::Applied
    );
    let outcome = cluster.commit(*sequence, command.clone());
    assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    let sequence = *sequence;
    let result = ProposalResult::Committed(outcome);
    let effects = cluster.run(Event::Proposed { sequence, result });
    assert!(
        effects.contains(&Effect::Answer {
            ask,
            result: Ok(fence(2))
        }),
        "{effects:?}"
    );
}

#[test]
fn an_unknown_outcome_is_looked_up_in_the_state() {
    for applied in [true, false] {
        let mut cluster = Cluster::new(options(None, None));
        cluster.join_all(&["w1"]);
        cluster.join(&info("w2", 1, 8 * ENOUGH));
        let ask = AskId(1);
        let proposed = cluster.step(Event::Replan { ask });
        let [Effect::Propose { sequence, command }] = &proposed[..] else {
            panic!("{proposed:?}");
        };
        if applied {
            cluster.commit(*sequence, command.clone());
        }
        let (sequence, result) = (*sequence, ProposalResult::Unknown);
        let mut effects = cluster.run(Event::Proposed { sequence, result });
        effects.extend(cluster.pass(HEARTBEAT, &["w1", "w2"]));
        assert!(
            effects.contains(&Effect::Answer {
                ask,
                result: Ok(fence(2))
            }),
            "{effects:?}"
        );
        assert_eq!(cluster.phase(), Some(("loading", 2)));
    }
}

#[test]
fn a_replan_is_answered_in_time_whatever_happens() {
    let mut cluster = Cluster::new(options(None, None));
    cluster.join_all(&["w1"]);
    cluster.join(&info("w2", 1, 8 * ENOUGH));
    let ask = AskId(1);
    cluster.step(Event::Replan { ask });
    cluster.now = cluster.now.after_ms(4500);
    let effects = cluster.step(Event::Elapsed);
    assert!(
        effects.iter().any(|effect| matches!(
            effect,
            Effect::Answer {
                result: Err(AskRefusal::Unavailable(_)),
                ..
            }
        )),
        "{effects:?}"
    );
}
