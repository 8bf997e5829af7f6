//! Copies in spare memory, and what becomes of them when a worker is lost.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tramontane_model::standby::Standby;

use super::super::standbys::{Spare, fill, read_after};
use super::*;
use crate::control::footprint::usage;
use crate::control::standby::{share_bytes, shares_bytes};

/// Bytes of the halves of the model with six layers, as their owners hold them with a cache of 64 tokens.
const FIRST: u64 = 3 * 1000 + 2 * 16 * 100 + 500;
const LAST: u64 = 3 * 1000 + 3 * 16 * 100 + 500;
const BESIDE: u64 = 50 + 3 * 64;

fn small(stages: u32, expert_groups: u32) -> Wishes {
    Wishes {
        stages: Some(stages),
        expert_groups: Some(expert_groups),
        kv_tokens_max: 64,
        ..WISHES
    }
}

fn filled(candidates: &[Candidate], replicas: &[&Replica], present: &[Standby]) -> Vec<Standby> {
    let footprint = footprint(6);
    let spare = |present| {
        fill(&Spare {
            footprint: &footprint,
            replicas,
            candidates,
            left_out: &BTreeSet::new(),
            present,
        })
    };
    let found = spare(present);
    assert_eq!(spare(&found), found, "it is no fixed point");
    check_copies(&footprint, candidates, replicas, &found);
    found
}

/// PL-2 with copies; each is of what another worker computes with, none of what the device does, none is there twice.
fn check_copies(
    footprint: &ModelFootprint,
    candidates: &[Candidate],
    replicas: &[&Replica],
    standbys: &[Standby],
) {
    for Standby { device, shares } in standbys {
        let used = replicas
            .iter()
            .filter_map(|replica| usage(footprint, replica).get(device).copied());
        let used: u64 = used.map(|used| used.total_bytes()).sum();
        let has = candidates
            .iter()
            .find(|one| one.device == *device)
            .unwrap()
            .memory_bytes;
        assert!(
            used + shares_bytes(footprint, shares) <= has,
            "{device} is over-filled"
        );
        let mut own = replicas.iter().flat_map(|replica| replica.shares_of(device));
        assert!(own.all(|own| !shares.iter().any(|share| share.overlaps(&own))));
        for (index, share) in shares.iter().enumerate() {
            assert!(!shares[..index].contains(share));
            let mut places = replicas.iter().flat_map(|replica| replica.places());
            assert!(places.any(|place| place.share == *share && place.device.worker != device.worker));
        }
    }
}

fn shown(standbys: &[Standby]) -> Vec<String> {
    let shares = |one: &Standby| {
        one.shares
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    standbys
        .iter()
        .map(|one| format!("{}: {}", one.device, shares(one)))
        .collect()
}

#[test]
fn spare_memory_is_filled_with_what_is_worth_most() {
    let roomy = 100_000;
    // Room for the copy of the larger half as its owner would need it, one byte less, for the smaller, for none.
    let larger = LAST + BESIDE;
    for (memory, wishes, expected) in [
        (
            vec![roomy, roomy, roomy],
            small(2, 1),
            vec!["w3/0: layers 0..3 with experts 0..16, layers 3..6 with experts 0..16"],
        ),
        (
            vec![roomy, roomy, larger],
            small(2, 1),
            vec!["w1/0: layers 3..6 with experts 0..16"],
        ),
        (
            vec![9000, 9000, larger],
            small(2, 1),
            vec!["w3/0: layers 3..6 with experts 0..16"],
        ),
        (
            vec![9000, 9000, larger - 1],
            small(2, 1),
            vec!["w3/0: layers 0..3 with experts 0..16"],
        ),
        (vec![9000, 9000, FIRST + BESIDE - 1], small(2, 1), vec![]),
        // Each stands by for the other: either could own all layers.
        (
            vec![roomy, roomy],
            small(2, 1),
            vec![
                "w1/0: layers 3..6 with experts 0..16",
                "w2/0: layers 0..3 with experts 0..16",
            ],
        ),
        // Nothing is spared by a copy on the worker that would be lost.
        (vec![roomy], small(1, 1), vec![]),
    ] {
        let candidates = workers(&memory);
        let replica = run(&footprint(6), &candidates[..memory.len().min(2)], wishes, None)
            .unwrap()
            .replica;
        let found = shown(&filled(&candidates, &[&replica], &[]));
        if memory == [roomy, roomy, larger] {
            // The third has room for one of the halves, and the other lies with an owner.
            assert_eq!(found.len(), 2, "{found:?}");
            continue;
        }
        assert_eq!(found, expected, "{memory:?}");
    }
}

#[test]
fn all_of_one_worker_comes_before_parts_of_two() {
    // Two workers with a stage and a group of experts each, of two devices.
    let four: Vec<Candidate> = ["w1", "w2"]
        .into_iter()
        .flat_map(|worker| [candidate(worker, 0, 10_000), candidate(worker, 1, 10_000)])
        .collect();
    let replica = run(&footprint(6), &four, small(2, 2), None).unwrap().replica;
    let of = |worker: &str| {
        let places = replica
            .places()
            .filter(|place| place.device.worker.as_str() == worker);
        let bytes = places.map(|place| share_bytes(&footprint(6), &place.share) + BESIDE);
        bytes.sum::<u64>()
    };
    let mut candidates = four.clone();
    candidates.push(candidate("w3", 0, of("w1").max(of("w2"))));
    candidates.push(candidate("w3", 1, 1000));
    let standbys = filled(&candidates, &[&replica], &[]);
    let limits = |device: &DeviceRef| {
        let known = candidates.iter().find(|one| one.device == *device)?;
        Some(DeviceLimits {
            memory_bytes: known.memory_bytes,
            max_binding_bytes: known.max_binding_bytes,
        })
    };
    let lost = ["w1", "w2"].map(|worker| {
        let worker = WorkerId::new(worker).unwrap();
        read_after(&footprint(6), &replica, &worker, &standbys, limits)
    });
    assert!(lost.contains(&0), "{lost:?} {:?}", shown(&standbys));
}

#[test]
fn a_standby_of_a_group_takes_its_place() {
    let five = workers(&[20_000; 5]);
    let replica = run(&footprint(6), &five[..4], small(2, 2), None).unwrap().replica;
    let standbys = filled(&five, &[&replica], &[]);
    for lost in 0..4 {
        let mut left = five.clone();
        left.remove(lost);
        let after = plan(&request(&left, small(2, 2), &replica, &standbys)).unwrap();
        assert!(after.wishes_met);
        let mut expected = replica.clone();
        expected.generation = after.replica.generation;
        for stage in &mut expected.stages {
            let next = |device: &mut DeviceRef| {
                if *device == five[lost].device {
                    *device = device_of("w5");
                }
            };
            next(&mut stage.owner);
            stage.groups.iter_mut().for_each(|group| next(&mut group.holder));
        }
        assert_eq!(after.replica, expected);
    }
}

#[test]
fn an_owner_that_stands_by_for_the_next_stage_owns_both() {
    let two = workers(&[100_000; 2]);
    let replica = run(&footprint(6), &two, small(2, 1), None).unwrap().replica;
    let standbys = filled(&two, &[&replica], &[]);
    assert_eq!(standbys.len(), 2);
    for lost in 0..2 {
        let mut left = two.clone();
        left.remove(lost);
        let after = plan(&request(&left, small(2, 1), &replica, &standbys)).unwrap();
        assert!(after.falls_short);
        assert_eq!(layers(&after.replica), [6]);
        assert_eq!(after.replica.kv, replica.kv);
        // A device that is free makes the wished shape, although it has to read.
        left.push(candidate("w9", 0, 100_000));
        let after = plan(&request(&left, small(2, 1), &replica, &standbys)).unwrap();
        assert!(after.wishes_met);
    }
}

#[test]
fn a_device_that_is_free_takes_copies_over_from_one_that_computes() {
    let three = workers(&[100_000; 3]);
    let replica = run(&footprint(6), &three[..2], small(2, 1), None)
        .unwrap()
        .replica;
    let before = filled(&three[..2], &[&replica], &[]);
    let after = filled(&three, &[&replica], &before);
    assert_eq!(shown(&after).len(), 1, "{after:?}");
    assert_eq!(after[0].device, device_of("w3"));
    // And keeps them when another comes that is as good.
    let four = workers(&[100_000; 4]);
    assert_eq!(filled(&four, &[&replica], &after), after);
}

#[test]
fn many_devices_are_filled_within_bounds() {
    let footprint = super::large::large_3();
    let all = super::large::gpus(128, 16, 80_000_000_000);
    let wishes = Wishes {
        stages: Some(8),
        kv_tokens_min: 4096,
        kv_tokens_max: 8192,
        ..WISHES
    };
    let replica = run(&footprint, &all[..64], wishes, None).unwrap().replica;
    let standbys = fill(&Spare {
        footprint: &footprint,
        replicas: &[&replica],
        candidates: &all,
        left_out: &BTreeSet::new(),
        present: &[],
    });
    check_copies(&footprint, &all, &[&replica], &standbys);
    let places: BTreeSet<_> = replica.places().map(|place| place.share).collect();
    let copied: BTreeSet<_> = standbys.iter().flat_map(|one| one.shares.clone()).collect();
    assert_eq!(copied, places, "half of the devices are free");
}

fn device_of(worker: &str) -> DeviceRef {
    device(worker, 0)
}

fn request<'a>(
    candidates: &'a [Candidate],
    wishes: Wishes,
    previous: &'a Replica,
    standbys: &'a [Standby],
) -> Request<'a> {
    static FOOTPRINT: std::sync::LazyLock<ModelFootprint> = std::sync::LazyLock::new(|| footprint(6));
    Request {
        id: previous.id,
        generation: Generation(previous.generation.0 + 1),
        footprint: &FOOTPRINT,
        candidates,
        wishes,
        steps: previous.steps,
        previous: Some(previous),
        standbys,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the devices: copies fit and are elsewhere, and a worker of which nothing would have to be read can be
    /// lost without any device reading anything.
    #[test]
    fn what_is_said_to_need_no_reading_needs_none(
        memory in proptest::collection::vec(4_000u64..40_000, 2..7),
        devices in 1u32..3,
        stages in proptest::option::of(1u32..4),
        groups in proptest::option::of(1u32..3),
        used in 1usize..8,
    ) {
        let each = memory.iter().enumerate();
        let all: Vec<Candidate> = each
            .flat_map(|(number, &bytes)| (0..devices).map(move |index| candidate(&format!("w{number}"), index, bytes)))
            .collect();
        let wishes = Wishes { stages, expert_groups: groups, kv_tokens_max: 128, ..WISHES };
        let Ok(Plan { replica, .. }) = run(&footprint(6), &all[..used.min(all.len())], wishes, None) else {
            return Ok(());
        };
        let standbys = filled(&all, &[&replica], &[]);
        let limits = |device: &DeviceRef| {
            let known = all.iter().find(|one| one.device == *device)?;
            Some(DeviceLimits { memory_bytes: known.memory_bytes, max_binding_bytes: known.max_binding_bytes })
        };
        let workers: BTreeSet<&WorkerId> = replica.devices().into_iter().map(|device| &device.worker).collect();
        for worker in workers {
            if read_after(&footprint(6), &replica, worker, &standbys, limits) > 0 {
                continue;
            }
            let left: Vec<Candidate> = all.iter().filter(|one| one.device.worker != *worker).cloned().collect();
            let after = plan(&request(&left, Wishes { stages: None, expert_groups: None, ..wishes }, &replica, &standbys));
            let after = after.expect("it can be placed").replica;
            check(&footprint(6), &left, &after);
            for place in after.places() {
                let layers = place.share.layers();
                // What it computes with now it held, perhaps in two parts.
                let had: Vec<_> = replica
                    .shares_of(place.device)
                    .chain(standbys.iter().filter(|one| one.device == *place.device).flat_map(|one| one.shares.clone()))
                    .filter(|share| share.owned() == place.share.owned() || !place.share.owned())
                    .collect();
                let owned: u32 = had
                    .iter()
                    .filter(|share| share.overlaps(&place.share))
                    .map(|share| share.layers().end().min(layers.end()) - share.layers().start().max(layers.start()))
                    .sum();
                prop_assert!(owned >= layers.len(), "{:?} reads for {}", place.device, place.share);
            }
        }
    }
}
