use super::cluster::{Cluster, Coverage};
use super::network::Weather;
use crate::raft::identity::{HEARTBEAT_TICKS, MAX_ELECTION_TICKS};
use crate::raft::node::{ProposeError, Role};

/// Names the seed of a run that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with SIM_SEED={}", self.0);
        }
    }
}

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Runs `body` for this many seeds, or for `SIM_SEEDS` of them, or for the one in `SIM_SEED`.
pub(super) fn for_seeds(count: u64, mut body: impl FnMut(u64)) {
    let count = number_from_environment("SIM_SEEDS").unwrap_or(count);
    let seeds = number_from_environment("SIM_SEED").map_or(0..count, |seed| seed..seed + 1);
    for seed in seeds {
        let guard = Seed(seed);
        body(seed);
        drop(guard);
    }
}

/// One event of a bad day.
pub(super) fn misfortune(cluster: &mut Cluster) {
    let ids = cluster.ids();
    let id = ids[cluster.rng.below(ids.len() as u64) as usize];
    let other = ids[cluster.rng.below(ids.len() as u64) as usize];
    match cluster.rng.below(100) {
        0..40 => {
            let leader = cluster.leader().unwrap_or(id);
            for _ in 0..=cluster.rng.below(6) {
                cluster.propose(leader);
            }
        }
        40..46 => drop(cluster.propose(id)),
        46..60 => cluster.read(id),
        60..67 => cluster.crash(id),
        67..74 if cluster.is_up(id) => cluster.crash_while_writing(id),
        74..80 => cluster.split(&[id]),
        80..83 => cluster.split(&[id, other]),
        83..86 => cluster.network.mute(id, other),
        86..93 => cluster.network.heal(),
        _ => {
            for id in ids {
                if !cluster.is_up(id) && cluster.rng.chance(70) {
                    cluster.start(id);
                }
            }
        }
    }
}

fn bad_days(size: u64, seeds: u64) -> Coverage {
    let mut total = Coverage::default();
    for_seeds(seeds, |seed| {
        let mut cluster = Cluster::new(size, seed, Weather::FOUL);
        for _ in 0..120 {
            misfortune(&mut cluster);
            for _ in 0..cluster.rng.below(60) {
                cluster.step();
            }
            cluster.check_logs();
        }
        cluster.settle();
        let run = cluster.coverage;
        total.confirmed += run.confirmed;
        total.failed += run.failed;
        total.reads += run.reads;
        total.restarts += run.restarts;
        total.torn += run.torn;
        total.elections += run.elections;
        total.checkpoints_sent += run.checkpoints_sent;
    });
    println!("{size} members: {total:?}");
    total
}

/// RF-1, election safety, log matching, state machine safety and linearizable reads, under lost, repeated, late and
/// reordered messages, partitions, and losses of power in the middle of a write.
#[test]
fn three_members_keep_their_promises() {
    let total = bad_days(3, 80);
    if number_from_environment("SIM_SEED").is_none() {
        assert!(
            total.confirmed > 1000 && total.reads > 100 && total.elections > 100,
            "{total:?}"
        );
        assert!(
            total.torn > 50 && total.restarts > 200 && total.checkpoints_sent > 20,
            "{total:?}"
        );
    }
}

#[test]
fn five_members_keep_their_promises() {
    let total = bad_days(5, 40);
    if number_from_environment("SIM_SEED").is_none() {
        assert!(
            total.confirmed > 500 && total.reads > 50 && total.elections > 50,
            "{total:?}"
        );
    }
}

fn confirm(cluster: &mut Cluster, count: usize) -> Vec<u64> {
    (0..count).map(|_| cluster.confirm_one(200)).collect()
}

/// RF-1 for every minority of three and of five members, lost for good with their disks.
#[test]
fn confirmed_proposals_survive_the_loss_of_any_minority() {
    for size in [3_u64, 5] {
        for lost in (1_u64..1 << size).filter(|set| u64::from(set.count_ones()) <= size / 2) {
            let mut cluster = Cluster::new(size, lost, Weather::FOUL);
            let numbers = confirm(&mut cluster, 12);
            let (dead, left): (Vec<_>, Vec<_>) = cluster
                .ids()
                .into_iter()
                .partition(|id| lost & (1 << (id - 1)) != 0);
            for id in dead {
                cluster.crash(id);
            }
            cluster.network.weather = Weather::FAIR;
            cluster.confirm_one(200);
            cluster.agree(&left);
            let history = cluster.history(left[0]);
            assert!(
                numbers.iter().all(|number| history.contains(number)),
                "{numbers:?} {history:?}"
            );
        }
    }
}

#[test]
fn all_members_restarted_from_their_disks_keep_everything() {
    for size in [1, 3, 5] {
        let mut cluster = Cluster::new(size, size, Weather::FAIR);
        // Enough for checkpoints, and entries after the last.
        let numbers = confirm(&mut cluster, 21);
        for id in cluster.ids() {
            cluster.crash(id);
        }
        for id in cluster.ids() {
            cluster.start(id);
            // Committed and applied before, so known again before anybody leads.
            assert!(cluster.history(id).len() >= 20, "{:?}", cluster.history(id));
        }
        cluster.settle();
        let history = cluster.history(1);
        assert_eq!(
            history.iter().filter(|number| numbers.contains(number)).count(),
            numbers.len()
        );
    }
}

#[test]
fn a_member_that_lags_behind_the_log_gets_a_checkpoint() {
    let mut cluster = Cluster::new(3, 1, Weather::FAIR);
    confirm(&mut cluster, 1);
    let leader = cluster.leader().unwrap();
    let lagging = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.split(&[lagging]);
    confirm(&mut cluster, 60);
    let status = cluster.node(leader).unwrap().status();
    let behind = cluster.node(lagging).unwrap().status();
    assert!(
        behind.last_index < status.first_index,
        "the log still holds what the member lacks"
    );
    assert_eq!(cluster.coverage.checkpoints_sent, 0);
    cluster.network.heal();
    cluster.agree(&[1, 2, 3]);
    assert!(cluster.coverage.checkpoints_sent > 0);
    // And it keeps up from there.
    confirm(&mut cluster, 3);
    cluster.agree(&[1, 2, 3]);
}

#[test]
fn a_leader_that_dies_is_replaced_within_the_longest_election_timeout() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(3, seed, Weather::FAIR);
        confirm(&mut cluster, 2);
        let old = cluster.leader().unwrap();
        cluster.crash(old);
        // The timeout, a round of votes, and a heartbeat that was due.
        let ticks = (MAX_ELECTION_TICKS + 2 * HEARTBEAT_TICKS + 2) as u64;
        cluster.run_until(ticks, "another member leads", |cluster| {
            cluster.leader().is_some()
        });
        assert_ne!(cluster.leader(), Some(old));
    }
}

#[test]
fn a_leader_that_hands_over_is_replaced_at_once() {
    let mut cluster = Cluster::new(3, 1, Weather::FAIR);
    confirm(&mut cluster, 2);
    let old = cluster.leader().unwrap();
    assert!(cluster.node(old).unwrap().hand_over());
    cluster.run_until(4, "another member leads", |cluster| {
        cluster.leader().is_some_and(|leader| leader != old)
    });
    confirm(&mut cluster, 2);
    cluster.agree(&[1, 2, 3]);
}

#[test]
fn a_leader_cut_off_steps_down_and_confirms_nothing() {
    let mut cluster = Cluster::new(3, 1, Weather::FAIR);
    confirm(&mut cluster, 1);
    let old = cluster.leader().unwrap();
    cluster.split(&[old]);
    let number = cluster.propose(old).unwrap();
    cluster.read(old);
    cluster.run_until(100, "another member leads", |cluster| {
        cluster.leader() != Some(old)
    });
    cluster.run_until(100, "the old leader steps down", |cluster| {
        cluster.node(old).unwrap().status().role != Role::Leader
    });
    let refused = cluster.node(old).unwrap().propose(vec![1; 8], 10);
    assert!(
        matches!(refused, Err(ProposeError::NotLeader { .. })),
        "{refused:?}"
    );
    confirm(&mut cluster, 1);
    cluster.run_until(100, "its proposal and its read fail", |cluster| {
        cluster.waiting(old) == 0
    });
    assert!(!cluster.is_confirmed(number));
    assert_eq!(cluster.coverage.reads, 0);
    cluster.settle();
    assert!(!cluster.history(old).contains(&number));
}

/// With pre-vote, a member that comes back does not depose a leader that works.
#[test]
fn a_member_that_comes_back_leaves_the_leader_in_place() {
    let mut cluster = Cluster::new(3, 1, Weather::FAIR);
    confirm(&mut cluster, 1);
    let leader = cluster.leader().unwrap();
    let term = cluster.node(leader).unwrap().status().term;
    let other = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.split(&[other]);
    for _ in 0..20 {
        confirm(&mut cluster, 1);
        for _ in 0..100 {
            cluster.step();
        }
    }
    cluster.network.heal();
    confirm(&mut cluster, 3);
    cluster.agree(&[1, 2, 3]);
    assert_eq!(cluster.leader(), Some(leader));
    assert_eq!(cluster.node(leader).unwrap().status().term, term);
}

#[test]
fn reads_are_confirmed_on_every_member() {
    let mut cluster = Cluster::new(3, 1, Weather::FAIR);
    confirm(&mut cluster, 3);
    for id in cluster.ids() {
        cluster.read(id);
    }
    cluster.run_until(10, "three reads are confirmed", |cluster| {
        cluster.coverage.reads == 3
    });
}
