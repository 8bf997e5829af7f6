//! How caches store their values.

use super::*;

/// As [`footprint`], with a cache of 24 bytes a token as f32.
fn model() -> ModelFootprint {
    let mut model = footprint(6);
    for layer in &mut model.layers {
        layer.kv_token_bytes = 4;
    }
    model
}

/// Room for all weights and a cache of 512 tokens as f32.
const WHOLE: u64 = 6 * 1000 + 5 * 16 * 100 + 1000 + 50 + 512 * 24;

fn gpu(worker: &str, memory_bytes: u64) -> Candidate {
    Candidate {
        is_cpu: false,
        ..candidate(worker, 0, memory_bytes)
    }
}

fn planned(candidates: &[Candidate], wishes: Wishes) -> (KvFormat, u32) {
    let plan = run(&model(), candidates, wishes, None).unwrap();
    (plan.replica.kv.format, plan.replica.kv.blocks)
}

#[test]
fn gpus_cache_twice_the_tokens_as_f16_unless_f32_is_wished() {
    let with = |kv_format| Wishes { kv_format, ..WISHES };
    let (gpus, processors) = ([gpu("w1", WHOLE)], workers(&[WHOLE]));
    assert_eq!(planned(&gpus, with(None)), (KvFormat::F16, 64));
    assert_eq!(planned(&processors, with(None)), (KvFormat::F32, 32));
    for candidates in [&gpus[..], &processors] {
        assert_eq!(
            planned(candidates, with(Some(KvFormat::F16))),
            (KvFormat::F16, 64)
        );
        assert_eq!(
            planned(candidates, with(Some(KvFormat::F32))),
            (KvFormat::F32, 32)
        );
    }
}

#[test]
fn what_binds_the_cache_of_a_layer_binds_more_tokens_of_f16() {
    let mut narrow = gpu("w1", 100_000);
    narrow.max_binding_bytes = 4 * 256;
    assert_eq!(planned(&[narrow.clone()], WISHES), (KvFormat::F16, 32));
    narrow.is_cpu = true;
    assert_eq!(planned(&[narrow], WISHES), (KvFormat::F32, 16));
}

#[test]
fn a_processor_that_owns_a_stage_makes_it_f32_and_one_that_holds_experts_does_not() {
    let stages = Wishes {
        stages: Some(2),
        ..WISHES
    };
    let mixed = [gpu("w1", 60_000), candidate("w2", 0, 60_000)];
    assert_eq!(planned(&mixed, stages).0, KvFormat::F32);
    let groups = Wishes {
        stages: Some(1),
        expert_groups: Some(2),
        ..WISHES
    };
    let mixed = [gpu("w1", 60_000), candidate("w2", 0, 20_000)];
    let plan = run(&model(), &mixed, groups, None).unwrap();
    assert_eq!(plan.replica.devices().len(), 2);
    assert_eq!(plan.replica.kv.format, KvFormat::F16);
    // What fits as f16 alone, and only with a processor, does not fit.
    let least = Wishes {
        kv_tokens_min: 1024,
        ..WISHES
    };
    assert_eq!(
        planned(&[gpu("w1", WHOLE), candidate("w2", 0, 500)], least).0,
        KvFormat::F16
    );
    let missing = run(
        &model(),
        &[gpu("w1", 500), candidate("w2", 0, WHOLE)],
        least,
        None,
    )
    .unwrap_err();
    assert!(missing.reason.contains("1024 tokens"), "{missing}");
}

#[test]
fn a_generation_has_the_format_of_the_devices_that_are_left() {
    let stages = Wishes {
        stages: Some(2),
        ..WISHES
    };
    let gpus = [gpu("w1", 60_000), gpu("w2", 60_000)];
    let first = run(&model(), &gpus, stages, None).unwrap().replica;
    assert_eq!(first.kv.format, KvFormat::F16);
    let mixed = [gpu("w1", 60_000), candidate("w3", 0, 60_000)];
    let second = run(&model(), &mixed, stages, Some(&first)).unwrap().replica;
    assert_eq!(second.kv.format, KvFormat::F32);
    let third = run(&model(), &gpus, stages, Some(&second)).unwrap().replica;
    assert_eq!(third.kv, first.kv);
}

#[test]
fn standbys_take_over_in_the_format_that_is_wished() {
    let with = |kv_format| Wishes { kv_format, ..WISHES };
    let gpus = [gpu("w1", 60_000), gpu("w2", 60_000)];
    let first = run(&model(), &gpus[..1], with(Some(KvFormat::F32)), None)
        .unwrap()
        .replica;
    let shares = first.shares_of(&device("w1", 0)).collect();
    let standbys = [tramontane_model::standby::Standby {
        device: device("w2", 0),
        shares,
    }];
    for (wished, format) in [(None, KvFormat::F16), (Some(KvFormat::F32), KvFormat::F32)] {
        let request = Request {
            id: ReplicaId(1),
            generation: Generation(2),
            footprint: &model(),
            candidates: &gpus[1..],
            wishes: with(wished),
            steps: StepBounds::default(),
            previous: Some(&first),
            standbys: &standbys,
        };
        let next = plan(&request).unwrap().replica;
        assert_eq!(next.stages[0].owner, device("w2", 0));
        assert_eq!(next.kv.format, format);
    }
}
