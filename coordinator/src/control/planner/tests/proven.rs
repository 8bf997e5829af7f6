//! Against brute force on tiny cases, and against the checks on random ones.

use proptest::prelude::*;

use super::*;
use crate::control::planner::demand::{Demand, Limits, Room};

/// The shortest slowest stage over every choice, order and cut, without expert groups; `None` if nothing fits.
fn brute_force(footprint: &ModelFootprint, devices: &[Candidate], stages: usize) -> Option<u128> {
    fn go(
        demand: &Demand<'_>,
        devices: &[Candidate],
        used: &mut Vec<usize>,
        start: usize,
        left: usize,
    ) -> Option<u128> {
        let layers = demand.layers();
        if left == 0 {
            return (start == layers).then_some(0);
        }
        let mut best: Option<u128> = None;
        for index in 0..devices.len() {
            if used.contains(&index) {
                continue;
            }
            let room = Room {
                memory: devices[index].memory_bytes,
                binding: devices[index].max_binding_bytes,
            };
            for end in start + 1..=layers {
                let sums = demand.sums(start..end);
                let limits = Limits::new(u128::MAX, 64);
                let Some(fit) = demand.fit(&sums, (start, end), &[room], limits) else {
                    continue;
                };
                used.push(index);
                let rest = go(demand, devices, used, end, left - 1);
                used.pop();
                if let Some(rest) = rest {
                    let slowest = rest.max(fit.time);
                    best = Some(best.map_or(slowest, |best| best.min(slowest)));
                }
            }
        }
        best
    }
    let demand = Demand {
        footprint,
        format: KvFormat::F32,
    };
    go(&demand, devices, &mut Vec::new(), 0, stages)
}

fn slowest(footprint: &ModelFootprint, devices: &[Candidate], replica: &Replica) -> u128 {
    let demand = Demand {
        footprint,
        format: KvFormat::F32,
    };
    let room = |device: &DeviceRef| {
        let known = devices.iter().find(|one| one.device == *device).unwrap();
        Room {
            memory: known.memory_bytes,
            binding: known.max_binding_bytes,
        }
    };
    let limits = Limits::new(u128::MAX, 64);
    let time = |stage: &tramontane_model::placement::Stage| {
        let range = (stage.layers.start() as usize, stage.layers.end() as usize);
        let sums = demand.sums(range.0..range.1);
        demand
            .fit(&sums, range, &[room(&stage.owner)], limits)
            .unwrap()
            .time
    };
    replica.stages.iter().map(time).max().unwrap()
}

fn any_footprint(layers: std::ops::Range<usize>) -> impl Strategy<Value = ModelFootprint> {
    (
        layers.prop_flat_map(|count| proptest::collection::vec((1u64..2000, 1u64..200, 0u64..4), count)),
        0usize..3,
        1u32..9,
        (0u64..3000, 0u64..3000, 0u64..300, 0u64..300),
    )
        .prop_map(
            |(layers, dense, n_experts, (embedding_bytes, head_bytes, owner, holder))| {
                let layer =
                    |(index, (owner_bytes, expert_bytes, kv_token_bytes)): (usize, (u64, u64, u64))| {
                        LayerFootprint {
                            owner_bytes,
                            expert_bytes: if index < dense { 0 } else { expert_bytes },
                            kv_token_bytes,
                        }
                    };
                ModelFootprint {
                    layers: layers.into_iter().enumerate().map(layer).collect(),
                    n_experts,
                    experts_per_token: n_experts.min(2),
                    embedding_bytes,
                    head_bytes,
                    // Every other model's head is its embedding, or a part of it.
                    tied_bytes: embedding_bytes.min(head_bytes) * (owner % 2),
                    scratch: ScratchModel {
                        owner_bytes: owner,
                        head_bytes: 3 * holder,
                        holder_bytes: holder,
                    },
                }
            },
        )
}

fn any_devices(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Candidate>> {
    let one = (
        prop_oneof![Just(4000u64), Just(9000), 500u64..20_000],
        0u32..8,
        40u64..4000,
        any::<bool>(),
    );
    proptest::collection::vec(one, count).prop_map(|devices| {
        let mut next = std::collections::BTreeMap::new();
        let device = |(memory_bytes, worker, max_binding_bytes, is_cpu): (u64, u32, u64, bool)| {
            let index: &mut u32 = next.entry(worker).or_default();
            *index += 1;
            Candidate {
                max_binding_bytes,
                is_cpu,
                ..candidate(&format!("w{worker}"), *index - 1, memory_bytes)
            }
        };
        devices.into_iter().map(device).collect()
    })
}

fn any_wishes() -> impl Strategy<Value = Wishes> {
    (
        proptest::option::of(1u32..5),
        proptest::option::of(1u32..4),
        1u32..20,
        1u32..200,
        0u32..400,
        proptest::option::of(prop_oneof![Just(KvFormat::F32), Just(KvFormat::F16)]),
    )
        .prop_map(
            |(stages, expert_groups, kv_block_tokens, kv_tokens_min, more, kv_format)| Wishes {
                stages,
                expert_groups,
                kv_block_tokens,
                kv_tokens_min,
                kv_tokens_max: kv_tokens_min + more,
                kv_format,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// `run` checks PL-1 and PL-2 of every plan, and that it comes out again.
    #[test]
    fn every_plan_holds_up(
        footprint in any_footprint(1..12),
        devices in any_devices(0..10),
        wishes in any_wishes(),
        lost in 0usize..10,
    ) {
        if let Ok(first) = run(&footprint, &devices, wishes, None) {
            let replica = first.replica;
            let tokens = replica.kv.blocks * replica.kv.block_tokens;
            prop_assert!(tokens >= wishes.kv_tokens_min);
            prop_assert!(tokens < wishes.kv_tokens_max + wishes.kv_block_tokens);
            let is_gpu = |owner: &DeviceRef| devices.iter().any(|one| one.device == *owner && !one.is_cpu);
            let on_gpus = replica.stages.iter().all(|stage| is_gpu(&stage.owner));
            let usual = KvFormat::usual(!on_gpus);
            prop_assert_eq!(replica.kv.format, wishes.kv_format.unwrap_or(usual));
            let again = run(&footprint, &devices, wishes, Some(&replica)).unwrap();
            prop_assert_eq!(again.wishes_met, first.wishes_met);
            let mut left = devices.clone();
            if lost < left.len() {
                left.remove(lost);
            }
            let _ = run(&footprint, &left, wishes, Some(&replica));
        }
    }

    #[test]
    fn stages_alone_are_found_wherever_there_are_any(
        footprint in any_footprint(1..6),
        devices in any_devices(1..5),
        stages in 1u32..4,
    ) {
        let any_shape = Wishes { kv_format: Some(KvFormat::F32), ..WISHES };
        let wishes = Wishes { stages: Some(stages), expert_groups: Some(1), ..any_shape };
        let count = stages as usize;
        let best = (count <= devices.len()).then(|| brute_force(&footprint, &devices, count)).flatten();
        let found = run(&footprint, &devices, wishes, None);
        let met = found.as_ref().ok().filter(|plan| {
            plan.replica.stages.len() == count && plan.replica.stages.iter().all(|one| one.groups.len() < 2)
        });
        prop_assert_eq!(met.is_some(), best.is_some(), "{:?}", found);
        if let (Some(plan), Some(best)) = (met, best) {
            prop_assert_eq!(slowest(&footprint, &devices, &plan.replica), best);
        }
        let any = (1..=devices.len()).any(|count| brute_force(&footprint, &devices, count).is_some());
        if any {
            prop_assert!(run(&footprint, &devices, any_shape, None).is_ok());
        }
    }
}
