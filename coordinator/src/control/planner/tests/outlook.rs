//! A whole cluster filled, and what goes on without each worker.

use super::super::outlook::{Cluster, Outlook};
use super::*;

/// Bytes of weights of the small model with ten layers.
const WEIGHTS: u64 = 10 * 1000 + 9 * 16 * 100 + 2 * 500;

fn outlook(candidates: &[Candidate], replicas: Option<u32>, standbys: bool) -> Outlook {
    let footprint = footprint(10);
    let cluster = Cluster {
        footprint: &footprint,
        candidates,
        wishes: WISHES,
        steps: StepBounds::default(),
        replicas,
        standbys,
    };
    let outlook = cluster.outlook();
    let mut taken = std::collections::BTreeSet::new();
    for Plan { replica, .. } in &outlook.replicas {
        check(&footprint, candidates, replica);
        for device in replica.devices() {
            assert!(taken.insert(device.clone()), "{device} is in two replicas");
        }
    }
    outlook
}

#[test]
fn a_cluster_is_filled_with_as_many_as_fit_or_are_wanted() {
    let room = WEIGHTS + 2000;
    let found = outlook(&workers(&[room; 3]), None, false);
    assert_eq!(found.replicas.len(), 3);
    assert!(found.missing.is_some(), "a fourth lacks a device");
    let found = outlook(&workers(&[room; 3]), Some(2), false);
    assert_eq!(found.replicas.len(), 2);
    assert_eq!(found.missing, None);
    let found = outlook(&workers(&[room / 4; 3]), None, false);
    assert!(found.replicas.is_empty());
    assert!(found.missing.unwrap().missing_bytes > 0);
}

#[test]
fn a_lost_replica_takes_what_is_free_and_touches_no_other() {
    let room = WEIGHTS + 2000;
    let found = outlook(&workers(&[room; 3]), Some(2), false);
    assert_eq!(found.losses.len(), 2, "nothing lies on the third worker");
    for loss in &found.losses {
        assert_eq!((loss.untouched, loss.broken.len()), (1, 1));
        // The free worker reads all of it.
        assert_eq!(loss.broken[0].outcome, Ok(WEIGHTS));
    }
    // With copies in its memory it reads nothing.
    let found = outlook(&workers(&[room; 3]), Some(2), true);
    assert_eq!(found.standbys.len(), 1);
    for loss in &found.losses {
        assert_eq!(loss.broken[0].outcome, Ok(0));
    }
    let found = outlook(&workers(&[room; 2]), None, false);
    for loss in &found.losses {
        let missing = loss.broken[0].outcome.as_ref().unwrap_err();
        assert!(missing.missing_bytes > 0, "{missing}");
    }
}

#[test]
fn what_remains_keeps_what_it_has() {
    // Two of three could hold it all: what the lost one held is read, and little else is moved.
    let found = outlook(&workers(&[WEIGHTS * 2 / 3; 3]), Some(1), false);
    let used = found.replicas[0].replica.devices().len();
    for loss in &found.losses {
        let read = *loss.broken[0].outcome.as_ref().unwrap();
        assert!(
            read > 0 && read < WEIGHTS,
            "{used} devices, {read} of {WEIGHTS} are read"
        );
    }
}
