//! Members that are added and removed, whatever happens meanwhile.

use super::cluster::Cluster;
use super::ledger::{ADDED, REMOVED};
use super::network::Weather;
use super::tests::{for_seeds, misfortune};

/// Ticks within which a calm cluster has made any change.
const SOON: u64 = 400;

impl Cluster {
    /// Has a coordinator added or removed, and waits until the votes are these.
    fn change_to(&mut self, mark: u64, id: u64, voters: &[u64]) {
        self.until_wanted(mark, id);
        self.until_voters(voters);
    }

    fn until_wanted(&mut self, mark: u64, id: u64) {
        let mut looks = 0_u64;
        self.run_until(SOON, "the history asks for it", |cluster| {
            if looks.is_multiple_of(200) {
                cluster.want(mark, id);
            }
            looks += 1;
            cluster.is_wanted(mark, id)
        });
    }

    fn until_voters(&mut self, voters: &[u64]) {
        self.run_until(SOON, "the votes have changed", |cluster| {
            cluster.voters().is_some_and(|found| found == voters)
        });
    }
}

fn calm(size: u64, seed: u64) -> Cluster {
    let mut cluster = Cluster::new(size, seed, Weather::FAIR);
    cluster.confirm_one(SOON);
    cluster
}

#[test]
fn one_that_is_added_far_behind_gets_a_checkpoint_learns_and_then_votes() {
    for_seeds(10, |seed| {
        let mut cluster = calm(3, seed);
        // More than the log keeps.
        for _ in 0..40 {
            cluster.confirm_one(SOON);
        }
        cluster.join(4);
        cluster.change_to(ADDED, 4, &[1, 2, 3, 4]);
        assert!(cluster.coverage.checkpoints_sent > 0, "it was sent a checkpoint");
        cluster.confirm_one(SOON);
        cluster.agree(&[1, 2, 3, 4]);
        // Its vote counts: with one of the first three down, three of four are needed.
        cluster.crash(1);
        cluster.confirm_one(SOON);
        cluster.agree(&[2, 3, 4]);
    });
}

#[test]
fn changes_asked_for_at_once_are_all_made() {
    for_seeds(10, |seed| {
        let mut cluster = calm(3, seed);
        cluster.join(4);
        cluster.join(5);
        for id in [4, 5] {
            cluster.until_wanted(ADDED, id);
        }
        cluster.until_wanted(REMOVED, 2);
        cluster.until_voters(&[1, 3, 4, 5]);
        cluster.agree(&[1, 3, 4, 5]);
    });
}

#[test]
fn a_leader_that_is_removed_hands_over_first() {
    for_seeds(10, |seed| {
        let mut cluster = calm(3, seed);
        let leader = cluster.leader().unwrap();
        let left: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
        cluster.change_to(REMOVED, leader, &left);
        assert_ne!(cluster.leader(), Some(leader));
        cluster.confirm_one(SOON);
        cluster.agree(&left);
        // What is left of it cannot disturb the others.
        let term = |cluster: &mut Cluster| {
            let leader = cluster.leader().unwrap();
            cluster.node(leader).unwrap().status().term
        };
        let before = term(&mut cluster);
        for _ in 0..2000 {
            cluster.step();
        }
        assert_eq!(term(&mut cluster), before);
    });
}

#[test]
fn one_without_whom_there_were_no_quorum_stays_until_there_is() {
    for_seeds(10, |seed| {
        let mut cluster = calm(3, seed);
        let leader = cluster.leader().unwrap();
        let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
        cluster.crash(others[0]);
        // Until the leader has missed it.
        for _ in 0..300 {
            cluster.step();
        }
        cluster.until_wanted(REMOVED, others[1]);
        for _ in 0..2000 {
            cluster.step();
        }
        assert_eq!(cluster.voters(), Some(vec![1, 2, 3]));
        cluster.start(others[0]);
        let mut left = vec![leader, others[0]];
        left.sort_unstable();
        cluster.until_voters(&left);
        cluster.confirm_one(SOON);
        cluster.agree(&left);
    });
}

#[test]
fn a_joint_state_is_left_by_the_next_leader() {
    let mut left_by_another = 0;
    for_seeds(40, |seed| {
        let mut cluster = calm(3, seed);
        cluster.join(4);
        cluster.until_wanted(ADDED, 4);
        let joint = |cluster: &mut Cluster| {
            let leader = cluster.leader();
            leader.filter(|&id| cluster.node(id).is_some_and(|node| node.status().joint))
        };
        cluster.run_until(SOON, "the votes change", |cluster| joint(cluster).is_some());
        let leader = joint(&mut cluster).unwrap();
        cluster.crash(leader);
        cluster.until_voters(&[1, 2, 3, 4]);
        left_by_another += 1;
        cluster.start(leader);
        cluster.confirm_one(SOON);
        cluster.agree(&[1, 2, 3, 4]);
    });
    assert!(left_by_another > 0);
}

#[test]
fn members_change_on_bad_days_and_nothing_is_lost() {
    for_seeds(60, |seed| {
        let mut cluster = Cluster::new(3, seed, Weather::FOUL);
        cluster.join(4);
        cluster.join(5);
        let changes = [(ADDED, 4), (ADDED, 5), (REMOVED, 1), (REMOVED, 2)];
        for round in 0..80 {
            let (mark, id) = changes[round / 20];
            cluster.want(mark, id);
            misfortune(&mut cluster);
            for _ in 0..cluster.rng.below(60) {
                cluster.step();
            }
        }
        cluster.calm_down();
        for (mark, id) in changes {
            cluster.until_wanted(mark, id);
        }
        cluster.until_voters(&[3, 4, 5]);
        cluster.confirm_one(SOON);
        cluster.agree(&[3, 4, 5]);
    });
}
