//! What stays where it is.

use super::*;

const TWO_BY_TWO: Wishes = Wishes {
    stages: Some(2),
    expert_groups: Some(2),
    ..WISHES
};

#[test]
fn planning_again_changes_nothing() {
    for memory in [vec![100_000; 4], vec![90_000, 50_000, 70_000, 60_000]] {
        for wishes in [TWO_BY_TWO, WISHES] {
            let first = run(&footprint(6), &workers(&memory), wishes, None)
                .unwrap()
                .replica;
            let again = run(&footprint(6), &workers(&memory), wishes, Some(&first))
                .unwrap()
                .replica;
            assert_eq!((again.stages, again.kv), (first.stages, first.kv));
        }
    }
}

#[test]
fn a_standby_takes_the_place_of_the_lost_alone() {
    let five = workers(&[100_000; 5]);
    let before = run(&footprint(6), &five[..4], TWO_BY_TWO, None).unwrap().replica;
    for lost in 0..4 {
        let mut left = five.clone();
        left.remove(lost);
        let after = run(&footprint(6), &left, TWO_BY_TWO, Some(&before))
            .unwrap()
            .replica;
        let replaced = |one: &DeviceRef| {
            if *one == five[lost].device {
                device("w5", 0)
            } else {
                one.clone()
            }
        };
        for (old, new) in before.stages.iter().zip(&after.stages) {
            assert_eq!(new.layers, old.layers);
            assert_eq!(new.owner, replaced(&old.owner));
            for (old, new) in old.groups.iter().zip(&new.groups) {
                assert_eq!(new.holder, replaced(&old.holder));
            }
        }
    }
}

#[test]
fn nearly_equal_devices_are_not_exchanged() {
    let before = run(&footprint(6), &workers(&[100_000; 4]), TWO_BY_TWO, None)
        .unwrap()
        .replica;
    let newer = workers(&[100_000, 100_000, 100_000, 100_000, 100_500]);
    let after = run(&footprint(6), &newer, TWO_BY_TWO, Some(&before))
        .unwrap()
        .replica;
    assert_eq!(after.stages, before.stages);
    // One that is a lot larger is worth it.
    let larger = workers(&[100_000, 100_000, 100_000, 100_000, 400_000]);
    let after = run(&footprint(6), &larger, TWO_BY_TWO, Some(&before))
        .unwrap()
        .replica;
    assert!(after.devices().contains(&device("w5", 0)));
}
