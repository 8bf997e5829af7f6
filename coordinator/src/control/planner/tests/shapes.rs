//! Which shape comes out.

use super::*;

#[test]
fn four_equal_workers_give_two_by_two() {
    let wishes = Wishes {
        stages: Some(2),
        expert_groups: Some(2),
        ..WISHES
    };
    let found = run(&footprint(6), &workers(&[100_000; 4]), wishes, None).unwrap();
    assert!(found.wishes_met);
    let replica = found.replica;
    assert_eq!(layers(&replica), [3, 3]);
    assert_eq!(experts(&replica, 0), [8, 8]);
    assert_eq!(experts(&replica, 1), [8, 8]);
    assert_eq!(replica.devices().len(), 4);
    assert_eq!(replica.kv.blocks, 64);
}

#[test]
fn a_fifth_worker_is_a_standby() {
    let wishes = Wishes {
        stages: Some(2),
        expert_groups: Some(2),
        ..WISHES
    };
    let found = run(&footprint(6), &workers(&[100_000; 5]), wishes, None).unwrap();
    assert!(!found.replica.devices().contains(&device("w5", 0)));
}

#[test]
fn after_a_loss_stages_are_kept_before_groups() {
    let wishes = Wishes {
        stages: Some(2),
        expert_groups: Some(2),
        ..WISHES
    };
    for (count, stages, groups) in [(3, 2, 1), (2, 2, 1), (1, 1, 1)] {
        let found = run(&footprint(6), &workers(&vec![100_000; count]), wishes, None).unwrap();
        assert!(!found.wishes_met, "{count}");
        assert_eq!(found.replica.stages.len(), stages, "{count}");
        assert_eq!(experts(&found.replica, 0).len(), groups, "{count}");
    }
}

#[test]
fn without_wishes_as_little_as_fits_is_used() {
    // 15 500 bytes of weights, 384 of cache, 50 of scratch.
    let whole = 6 * 1000 + 5 * 16 * 100 + 1000 + 6 * 64 + 50;
    let found = run(&footprint(6), &workers(&[whole, whole]), WISHES, None).unwrap();
    assert_eq!(layers(&found.replica), [6]);
    assert!(found.wishes_met);
    assert_eq!(found.replica.kv.blocks, 4);
    let found = run(&footprint(6), &workers(&[whole - 1; 2]), WISHES, None).unwrap();
    assert_eq!(layers(&found.replica).len(), 2);
}

#[test]
fn three_unequal_stages_go_by_memory() {
    let wishes = Wishes {
        stages: Some(3),
        ..WISHES
    };
    let devices = workers(&[20_000, 40_000, 20_000]);
    let found = run(&footprint(12), &devices, wishes, None).unwrap();
    let replica = found.replica;
    let of = |worker| {
        let owned = |stage: &&tramontane_model::placement::Stage| stage.owner == device(worker, 0);
        replica.stages.iter().find(owned).unwrap().layers.len()
    };
    assert_eq!((of("w1") + of("w3"), of("w2")), (6, 6));
    assert!(of("w1") >= 2 && of("w3") >= 2);
}

#[test]
fn groups_go_by_memory() {
    let wishes = Wishes {
        stages: Some(1),
        expert_groups: Some(2),
        ..WISHES
    };
    let found = run(&footprint(6), &workers(&[30_000, 90_000]), wishes, None).unwrap();
    assert_eq!(found.replica.stages[0].owner, device("w2", 0));
    assert_eq!(experts(&found.replica, 0), [12, 4]);
}

#[test]
fn workers_are_used_before_second_devices() {
    let two = Wishes {
        stages: Some(2),
        ..WISHES
    };
    let candidates: Vec<_> = ["a", "b"]
        .into_iter()
        .flat_map(|worker| (0..2).map(move |index| candidate(worker, index, 100_000)))
        .collect();
    let found = run(&footprint(6), &candidates, two, None).unwrap();
    let workers: std::collections::BTreeSet<_> = found
        .replica
        .devices()
        .into_iter()
        .map(|one| one.worker.clone())
        .collect();
    assert_eq!(workers.len(), 2);
    // Two devices of one worker serve as well, if there is no other.
    let found = run(&footprint(6), &candidates[..2], two, None).unwrap();
    assert_eq!(found.replica.stages.len(), 2);
    let four = Wishes {
        expert_groups: Some(2),
        ..two
    };
    let found = run(&footprint(6), &candidates, four, None).unwrap();
    assert_eq!(found.replica.devices().len(), 4);
}

#[test]
fn experts_are_split_where_a_layer_does_not_fit() {
    // A MoE layer has 2 600 bytes; no device holds one.
    let found = run(&footprint(2), &workers(&[2_500; 4]), WISHES, None).unwrap();
    assert!(found.replica.stages.iter().any(|stage| stage.groups.len() > 1));
}

#[test]
fn a_device_that_binds_too_little_owns_nothing() {
    let mut devices = workers(&[100_000, 50_000]);
    devices[0].max_binding_bytes = 63;
    let found = run(&footprint(6), &devices, WISHES, None).unwrap();
    assert_eq!(found.replica.stages[0].owner, device("w2", 0));
    devices[1].max_binding_bytes = 100;
    let found = run(&footprint(6), &devices, WISHES, None).unwrap();
    assert_eq!(found.replica.kv.blocks, 6);
    devices[1].max_binding_bytes = 63;
    let missing = run(&footprint(6), &devices, WISHES, None).unwrap_err();
    assert_eq!(missing.missing_bytes, 0);
    assert!(missing.reason.contains("bind"), "{missing}");
}

#[test]
fn what_is_missing_is_counted() {
    let missing = run(&footprint(6), &workers(&[7_000, 7_000]), WISHES, None).unwrap_err();
    let needed = 6 * 1000 + 5 * 16 * 100 + 1000 + 6 * 64 + 2 * 50;
    assert_eq!(missing.missing_bytes, needed - 14_000);
    assert_eq!(
        missing.reason,
        format!(
            "the model needs {needed} bytes with a cache of 64 tokens; 2 devices have 14000; {} are missing",
            needed - 14_000
        )
    );
    let none = run(&footprint(6), &[], WISHES, None).unwrap_err();
    assert_eq!(none.missing_bytes, needed - 50);
    // Enough in all, but a layer's owner part fits nowhere.
    let parts = run(&footprint(6), &workers(&[900; 40]), WISHES, None).unwrap_err();
    assert!(
        parts.missing_bytes > 0 && parts.reason.contains("on each device"),
        "{parts}"
    );
}
