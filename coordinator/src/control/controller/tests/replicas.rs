//! Several replicas: how a cluster is filled, and whom a loss touches.

use super::*;
use crate::control::state::Phase;

/// Too little for a replica alone; two of them do.
const HALF: u64 = 10_000;

fn several(stages: Option<u32>, replicas: Option<u32>) -> Cluster {
    let mut options = options(stages, stages.map(|_| 1));
    options.replicas = replicas;
    Cluster::new(options)
}

fn named(replica: u64, generation: u64) -> Fence {
    Fence {
        replica: ReplicaId(replica),
        generation: Generation(generation),
    }
}

impl Cluster {
    /// Every replica: id, generation, phase, and the workers of its placement.
    fn map(&self) -> Vec<(u64, u64, &'static str, Vec<String>)> {
        let replicas = self.state.replicas.iter();
        let each = replicas.map(|(id, entry)| {
            let devices = entry.placement().map(Replica::devices).unwrap_or_default();
            let workers = devices.into_iter().map(|device| device.worker.to_string());
            (id.0, entry.generation.0, entry.phase.name(), workers.collect())
        });
        each.collect()
    }

    /// All workers of what loads are ready.
    fn load_all(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (&id, entry) in &self.state.replicas.clone() {
            let Phase::Loading { placement } = &entry.phase else {
                continue;
            };
            let fence = named(id.0, entry.generation.0);
            for device in placement.devices() {
                effects.extend(self.report(device.worker.as_str(), DeviceState::Ready { fence }));
            }
        }
        effects
    }

    fn join_with(&mut self, memory: u64, workers: &[&str]) {
        for worker in workers {
            self.join(&info(worker, 1, memory));
        }
    }
}

fn entry(
    id: u64,
    generation: u64,
    phase: &'static str,
    workers: &[&str],
) -> (u64, u64, &'static str, Vec<String>) {
    let workers = workers.iter().map(|&worker| worker.to_owned()).collect();
    (id, generation, phase, workers)
}

#[test]
fn a_cluster_is_filled_with_as_many_as_fit() {
    let mut cluster = several(Some(2), None);
    cluster.join_all(&["w1", "w2", "w3", "w4", "w5"]);
    let two = [
        entry(1, 1, "loading", &["w1", "w2"]),
        entry(2, 1, "loading", &["w3", "w4"]),
    ];
    assert_eq!(cluster.map(), two);
    cluster.load_all();
    // The fifth alone makes no two stages, however long it waits.
    cluster.pass(2 * SETTLE, &["w1", "w2", "w3", "w4", "w5"]);
    let served = two.map(|(id, generation, _, workers)| (id, generation, "serving", workers));
    assert_eq!(cluster.map(), served);
    let status = cluster.controller.status(&cluster.state);
    assert_eq!((status.replicas_wanted, status.replicas_serving), (None, 2));
    assert_eq!((status.replicas_short, status.missing), (None, None));
    let standbys: Vec<&str> = status
        .nodes
        .iter()
        .filter(|node| node.standby)
        .map(|node| node.id.as_str())
        .collect();
    assert_eq!(standbys, ["w5"]);
    cluster.join_all(&["w6"]);
    assert_eq!(cluster.map()[2], entry(3, 1, "loading", &["w5", "w6"]));
    assert_eq!(cluster.map()[..2], served);
}

#[test]
fn a_number_of_replicas_bounds_them_and_status_says_what_is_short() {
    let mut cluster = several(None, Some(2));
    cluster.join_with(HALF, &["w1", "w2", "w3"]);
    cluster.load_all();
    cluster.pass(SETTLE, &["w1", "w2", "w3"]);
    assert_eq!(cluster.map(), [entry(1, 1, "serving", &["w1", "w2"])]);
    let status = cluster.controller.status(&cluster.state);
    assert_eq!((status.replicas_wanted, status.replicas_serving), (Some(2), 1));
    assert_eq!(status.missing, None);
    let short = status.replicas_short.unwrap();
    assert!(short.contains("are missing"), "{short}");
    cluster.join_with(HALF, &["w4", "w5", "w6", "w7"]);
    cluster.load_all();
    assert_eq!(cluster.map().len(), 2);
    assert_eq!(cluster.map()[1], entry(2, 1, "serving", &["w3", "w4"]));
    assert_eq!(cluster.controller.status(&cluster.state).replicas_short, None);
}

#[test]
fn a_loss_touches_the_replica_that_it_happens_to_and_no_other() {
    let mut cluster = several(Some(2), None);
    cluster.join_all(&["w1", "w2", "w3", "w4", "w5"]);
    cluster.load_all();
    let second = entry(2, 1, "serving", &["w3", "w4"]);
    let effects = cluster.pass(LEASE, &["w2", "w3", "w4", "w5"]);
    // A standby takes the place of the lost.
    assert_eq!(
        cluster.map(),
        [entry(1, 2, "loading", &["w2", "w5"]), second.clone()]
    );
    assert!(assigned(&effects).iter().all(|(_, fence)| *fence == named(1, 2)));
    assert_eq!(released(&effects), []);
    cluster.load_all();
    // Without a standby it does with what it has left.
    cluster.pass(LEASE, &["w2", "w3", "w4"]);
    assert_eq!(cluster.map(), [entry(1, 3, "loading", &["w2"]), second.clone()]);
    // Later workers do not move it.
    cluster.load_all();
    cluster.join(&info("w5", 2, ENOUGH));
    assert_eq!(cluster.map(), [entry(1, 3, "serving", &["w2"]), second]);
}

#[test]
fn what_fits_nowhere_retires_and_comes_again_with_its_devices() {
    for replicas in [None, Some(2)] {
        let mut cluster = several(None, replicas);
        cluster.join_with(HALF, &["w1", "w2", "w3", "w4"]);
        cluster.load_all();
        let second = entry(2, 1, "serving", &["w3", "w4"]);
        assert_eq!(
            cluster.map(),
            [entry(1, 1, "serving", &["w1", "w2"]), second.clone()]
        );
        cluster.pass(LEASE, &["w2", "w3", "w4"]);
        assert_eq!(cluster.map()[0], entry(1, 1, "broken", &["w1", "w2"]));
        let effects = cluster.pass(SETTLE, &["w2", "w3", "w4"]);
        assert_eq!(released(&effects), [(cluster.sessions[&name("w2")], named(1, 1))]);
        let status = cluster.controller.status(&cluster.state);
        assert!(status.nodes.iter().any(|node| node.id == "w2" && node.standby));
        assert_eq!(status.replicas_serving, 1);
        if replicas.is_none() {
            // As many as fit is one now.
            assert_eq!(cluster.map(), std::slice::from_ref(&second));
        } else {
            assert_eq!(cluster.map(), [entry(1, 1, "unplaceable", &[]), second.clone()]);
            assert!(status.replicas_short.unwrap().contains("are missing"));
        }
        // What is left of it stands in for the other.
        cluster.pass(LEASE, &["w2", "w3"]);
        let map = cluster.map();
        assert_eq!(map.last(), Some(&entry(2, 2, "loading", &["w2", "w3"])));
        cluster.join(&info("w1", 2, HALF));
        cluster.join(&info("w4", 2, HALF));
        cluster.load_all();
        let map = cluster.map();
        let serving: Vec<_> = map.iter().filter(|one| one.2 == "serving").collect();
        assert_eq!(serving.len(), 2, "{map:?}");
        assert!(map.contains(&entry(2, 2, "serving", &["w2", "w3"])));
    }
}

#[test]
fn a_replan_makes_whole_what_does_with_less() {
    let mut cluster = several(Some(2), None);
    cluster.join_all(&["w1"]);
    cluster.pass(SETTLE, &["w1"]);
    cluster.load_all();
    assert_eq!(cluster.map(), [entry(1, 1, "serving", &["w1"])]);
    cluster.join_all(&["w2", "w3", "w4"]);
    cluster.load_all();
    let second = entry(2, 1, "serving", &["w2", "w3"]);
    assert_eq!(cluster.map(), [entry(1, 1, "serving", &["w1"]), second.clone()]);
    let ask = AskId(1);
    let effects = cluster.run(Event::Replan { ask });
    let result = Ok(named(1, 2));
    assert!(effects.contains(&Effect::Answer { ask, result }), "{effects:?}");
    cluster.load_all();
    let whole = [entry(1, 2, "serving", &["w1", "w4"]), second];
    assert_eq!(cluster.map(), whole);
    // Once more, there is nothing to do.
    let ask = AskId(2);
    let result = Ok(named(1, 2));
    assert_eq!(
        cluster.run(Event::Replan { ask }),
        [Effect::Answer { ask, result }]
    );
    assert_eq!(cluster.map(), whole);
}

#[test]
fn a_replan_never_takes_two_replicas_down_at_once() {
    let mut cluster = several(None, Some(2));
    cluster.join_all(&["w1", "w2"]);
    cluster.load_all();
    cluster.join_with(8 * ENOUGH, &["w3", "w4"]);
    let before = [entry(1, 1, "serving", &["w1"]), entry(2, 1, "serving", &["w2"])];
    assert_eq!(cluster.map(), before);
    let ask = AskId(1);
    let effects = cluster.run(Event::Replan { ask });
    let result = Ok(named(1, 2));
    assert!(effects.contains(&Effect::Answer { ask, result }), "{effects:?}");
    assert_eq!(
        cluster.map(),
        [entry(1, 2, "loading", &["w3"]), before[1].clone()]
    );
    // Somebody who asks meanwhile hears of what is under way.
    let ask = AskId(2);
    let result = Ok(named(1, 2));
    assert_eq!(
        cluster.run(Event::Replan { ask }),
        [Effect::Answer { ask, result }]
    );
    cluster.pass(LEASE, &["w1", "w2", "w3", "w4"]);
    assert_eq!(
        cluster.map(),
        [entry(1, 2, "loading", &["w3"]), before[1].clone()]
    );
    cluster.load_all();
    assert_eq!(
        cluster.map(),
        [entry(1, 2, "serving", &["w3"]), entry(2, 2, "loading", &["w4"])]
    );
}

#[test]
fn more_than_are_wanted_are_taken_back_by_a_replan() {
    let mut cluster = several(None, None);
    cluster.join_all(&["w1", "w2", "w3"]);
    cluster.load_all();
    assert_eq!(cluster.map().len(), 3);
    // As after a start with another configuration.
    cluster.controller.options.replicas = Some(1);
    cluster.pass(SETTLE, &["w1", "w2", "w3"]);
    assert_eq!(cluster.map().len(), 3, "nothing that serves is taken unasked");
    let effects = cluster.run(Event::Replan { ask: AskId(1) });
    assert_eq!(cluster.map(), [entry(1, 1, "serving", &["w1"])]);
    let mut freed = released(&effects);
    freed.sort();
    let session = |worker: &str| cluster.sessions[&name(worker)];
    assert_eq!(
        freed,
        [(session("w2"), named(2, 1)), (session("w3"), named(3, 1))]
    );
    // One that breaks is not placed again if there are enough; ids are not given twice.
    cluster.controller.options.replicas = None;
    cluster.run(Event::Elapsed);
    let ids: Vec<u64> = cluster.map().iter().map(|one| one.0).collect();
    assert_eq!(ids, [1, 4, 5]);
}
