//! The model that all this is for, in its real sizes, and many devices.

use std::path::Path;

use tramontane_model::spec::ModelSpec;
use tramontane_model::tensors::ModelBytes;

use super::super::demand::TRIED;
use super::*;

const GB: u64 = 1_000_000_000;

pub(super) fn large_3() -> ModelFootprint {
    real("tests/fixtures/params/large-3.json", GB)
}

/// A model in its real sizes; `scratch` is what an owner needs beside them.
fn real(path: &str, scratch: u64) -> ModelFootprint {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    let spec = ModelSpec::from_json(&std::fs::read(&file).unwrap(), &file).unwrap();
    let bytes = ModelBytes::usual(&spec);
    let layer = |layer: &tramontane_model::tensors::LayerBytes| LayerFootprint {
        owner_bytes: layer.owner,
        expert_bytes: layer.expert,
        kv_token_bytes: u64::from(spec.kv_values_per_token_layer()) * 4,
    };
    ModelFootprint {
        layers: bytes.layers.iter().map(layer).collect(),
        n_experts: spec.n_experts(),
        experts_per_token: spec.moe.as_ref().map_or(0, |moe| moe.n_experts_per_token),
        embedding_bytes: bytes.embedding,
        head_bytes: bytes.head,
        tied_bytes: 0,
        scratch: ScratchModel {
            head_bytes: 0,
            owner_bytes: scratch,
            holder_bytes: scratch / 2,
        },
    }
}

const LARGE_WISHES: Wishes = Wishes {
    kv_tokens_min: 4096,
    kv_tokens_max: 1 << 20,
    ..WISHES
};

pub(super) fn gpus(count: usize, per_worker: u32, bytes: u64) -> Vec<Candidate> {
    let place = |index: u32| (index / per_worker, index % per_worker);
    let places = (0..u32::try_from(count).unwrap()).map(place);
    places
        .map(|(worker, index)| candidate(&format!("w{worker:03}"), index, bytes))
        .collect()
}

#[test]
fn the_miniature_is_halved_twice() {
    let footprint = real("cli/assets/mini-large-3/params.json", 1 << 20);
    let wishes = Wishes {
        stages: Some(2),
        expert_groups: Some(2),
        ..LARGE_WISHES
    };
    let found = run(&footprint, &gpus(4, 1, GB), wishes, None).unwrap();
    assert!(found.wishes_met);
    assert_eq!(layers(&found.replica), [3, 3]);
    assert_eq!(
        (experts(&found.replica, 0), experts(&found.replica, 1)),
        (vec![8, 8], vec![8, 8])
    );
}

#[test]
fn eight_devices_of_141_gb_hold_it() {
    let footprint = large_3();
    assert_eq!(footprint.layers.len(), 61);
    assert_eq!(footprint.first_moe_layer(), 3);
    let found = run(&footprint, &gpus(8, 8, 141 * GB), LARGE_WISHES, None).unwrap();
    assert!(found.replica.stages.len() <= 8);
    let wishes = Wishes {
        stages: Some(8),
        ..LARGE_WISHES
    };
    let found = run(&footprint, &gpus(8, 8, 141 * GB), wishes, None).unwrap();
    assert!(found.wishes_met);
    assert!(
        layers(&found.replica)
            .iter()
            .all(|&layers| (7..=8).contains(&layers))
    );
    assert_eq!(found.replica.kv.blocks, (1 << 20) / 16);
}

#[test]
fn sixteen_devices_of_80_gb_hold_it() {
    let footprint = large_3();
    for (stages, expert_groups) in [
        (None, None),
        (Some(16), None),
        (Some(8), Some(2)),
        (Some(2), Some(8)),
    ] {
        let wishes = Wishes {
            stages,
            expert_groups,
            ..LARGE_WISHES
        };
        let found = run(&footprint, &gpus(16, 8, 80 * GB), wishes, None).unwrap();
        assert!(found.wishes_met, "{stages:?} {expert_groups:?}");
    }
}

#[test]
fn four_devices_of_80_gb_lack_the_rest() {
    let footprint = large_3();
    let missing = run(&footprint, &gpus(4, 4, 80 * GB), LARGE_WISHES, None).unwrap_err();
    let weights: u64 = footprint
        .layers
        .iter()
        .map(|layer| layer.owner_bytes + 128 * layer.expert_bytes)
        .sum::<u64>()
        + footprint.embedding_bytes
        + footprint.head_bytes;
    // The language model's FP8 checkpoint, give or take what is kept in BF16.
    assert!((670 * GB..690 * GB).contains(&weights), "{weights}");
    let needed = weights + 4096 * 61 * 576 * 4 + 4 * GB;
    assert_eq!(missing.missing_bytes, needed - 320 * GB);
    assert!(
        missing.reason.contains(&missing.missing_bytes.to_string()),
        "{missing}"
    );
}

#[test]
fn a_thousand_layers_over_many_devices_are_planned_at_once() {
    let footprint = footprint(1000);
    let whole = 1000 * 1000 + 999 * 1600 + 1000 + 1000 * 64;
    let uneven = |count: usize| {
        let sizes = (0..count).map(|index| whole / (count as u64 / 2) + 37 * (index as u64 % 11));
        workers(&sizes.collect::<Vec<_>>())
    };
    let wish = |stages| Wishes { stages, ..WISHES };
    let before = TRIED.get();
    let first = run(&footprint, &uneven(512), wish(Some(512)), None)
        .unwrap()
        .replica;
    assert_eq!(first.stages.len(), 512);
    let found = run(&footprint, &uneven(512)[1..], wish(Some(512)), Some(&first)).unwrap();
    assert_eq!(found.replica.stages.len(), 511);
    run(&footprint, &uneven(512), WISHES, None).unwrap();
    run(&footprint, &workers(&[3_000; 512]), WISHES, None).unwrap_err();
    run(&footprint, &workers(&[6_000; 512]), WISHES, None).unwrap();
    // Room enough in all, but not for two layers on one device.
    run(&footprint, &workers(&[5_290; 512]), WISHES, None).unwrap_err();
    let tried = TRIED.get() - before;
    // It guards against a search that grows with the number of placements.
    assert!(tried < 4_000_000, "the search tried {tried} stages");
}
