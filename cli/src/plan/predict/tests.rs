//! Predictions against sums by hand.

use tramontane_coordinator::control::footprint::ScratchModel;
use tramontane_model::ids::{DeviceIndex, Generation, ReplicaId, WorkerId};
use tramontane_model::placement::{ExpertGroup, ExpertRange, KvFormat, KvShape, LayerRange};
use tramontane_model::step::StepBounds;

use super::*;

fn line(part: &str, op: &str, rows: u32, seconds: f64, bytes: u64) -> String {
    let (weight, cache, context) = match op {
        "attention" => (0, bytes, ", \"context\": 100"),
        "layer" => (bytes, 0, ", \"context\": 100"),
        _ => (bytes, 0, ""),
    };
    format!(
        r#"{{"part": "{part}", "op": "{op}", "role": "generated", "rows": {rows}, "seconds": {seconds}{context},
            "weight_bytes": {weight}, "cache_bytes": {cache}, "input_bytes": 0, "output_bytes": 0, "flops": 1}}"#
    )
}

/// A device that reads an owner's weights at 1 GB/s with one row and half of that with 64, experts at 2 GB/s, cached
/// values and the output matrix at 1 GB/s.
fn figures() -> KernelFigures {
    let lines: Vec<String> = [(1, 1.0), (64, 2.0)]
        .into_iter()
        .flat_map(|(rows, seconds)| {
            [
                line("moe_layer", "linear", rows, seconds, 1_000_000_000),
                line("moe_layer", "experts", rows, 0.5, 1_000_000_000),
                line("moe_layer", "attention", rows, 0.001, 1_000_000),
                line("moe_layer", "layer", rows, seconds + 0.501, 1),
                line("ends", "linear", rows, 1.0, 1_000_000_000),
            ]
        })
        .collect();
    let text = format!(
        r#"{{"version": 1, "clock": "device", "missing": [], "run_seconds": 1, "lines": [{}],
            "device": {{"name": "x", "driver": "y", "kind": "z", "is_cpu": false, "memory_bytes": 1}},
            "model": {{"shape": "s", "format": "fp8", "experts": 16, "experts_per_row": 2, "layers": 1,
                      "cache_format": "f32"}},
            "ceilings": {{"copy_bytes_per_s": 2e9, "copy_by": "c", "product_flops_per_s": 1e9, "product_by": "p"}}}}"#,
        lines.join(", ")
    );
    serde_json::from_str(&text).expect("figures")
}

fn footprint() -> ModelFootprint {
    let layer = LayerFootprint {
        owner_bytes: 1_000_000,
        expert_bytes: 100_000,
        kv_token_bytes: 1000,
    };
    ModelFootprint {
        layers: vec![layer; 2],
        n_experts: 16,
        experts_per_token: 2,
        embedding_bytes: 0,
        head_bytes: 1_000_000,
        tied_bytes: 0,
        scratch: ScratchModel {
            head_bytes: 0,
            owner_bytes: 0,
            holder_bytes: 0,
        },
    }
}

fn device(host: &str) -> DeviceRef {
    DeviceRef {
        worker: WorkerId::new(host).expect("a name"),
        device: DeviceIndex(0),
    }
}

fn stage(layers: (u32, u32), owner: &str, holders: &[(u32, u32, &str)]) -> Stage {
    Stage {
        layers: LayerRange::new(layers.0, layers.1).expect("layers"),
        owner: device(owner),
        groups: holders
            .iter()
            .map(|&(start, end, holder)| ExpertGroup {
                experts: ExpertRange::new(start, end).expect("experts"),
                holder: device(holder),
            })
            .collect(),
    }
}

fn predicted(stages: Vec<Stage>, kind: &str) -> Result<Vec<Prediction>, String> {
    predicted_by(figures(), stages, kind)
}

fn predicted_by(figures: KernelFigures, stages: Vec<Stage>, kind: &str) -> Result<Vec<Prediction>, String> {
    let replica = Replica {
        id: ReplicaId(1),
        generation: Generation(1),
        stages,
        kv: KvShape {
            block_tokens: 16,
            blocks: 1000,
            format: KvFormat::F32,
        },
        steps: StepBounds::default(),
    };
    let candidates = ["a", "b"].map(|host| Candidate {
        device: device(host),
        memory_bytes: 1 << 30,
        max_binding_bytes: 1 << 30,
        kind: kind.to_owned(),
        is_cpu: false,
    });
    let link = |latency_s| Link {
        bytes_per_s: 1e9,
        latency_s,
    };
    let links = Links {
        within_host: link(0.0),
        between_hosts: link(200e-6),
        assumed: false,
    };
    let basis = Basis {
        footprint: &footprint(),
        dim: 1000,
        candidates: &candidates,
        links: &links,
        figures: &BTreeMap::from([("gpu".to_owned(), figures)]),
    };
    predict(&basis, &replica)
}

fn is_about(found: f64, expected: f64) -> bool {
    (found / expected - 1.0).abs() < 1e-9
}

#[test]
fn one_sequence_takes_what_its_weights_and_links_take() {
    let stages = vec![stage((0, 2), "a", &[(0, 8, "a"), (8, 16, "b")])];
    let one = &predicted(stages, "gpu").expect("figures of all")[0];
    // Each of two layers: 1 MB of the owner, 100 tokens of 1000 bytes, and the slower group, which is the other host's:
    // one expert of the eight, 4000 bytes there and back.
    let layer = 1e-3 + 1e-4 + (0.5e-4 + 2.0 * (200e-6 + 4e-6));
    assert!(is_about(one.step_seconds, 2.0 * layer + 1e-3), "{one:?}");
    assert!(
        is_about(one.tokens_per_second, 1.0 / (2.0 * layer + 1e-3)),
        "{one:?}"
    );
    assert_eq!(one.bound, "weights of attention and shared experts, by memory");
    assert!(is_about(one.parts[&Resource::Links], 2.0 * 408e-6), "{one:?}");
}

#[test]
fn a_layer_takes_less_than_its_ops_where_the_whole_was_measured_to() {
    let mut figures = figures();
    let layers = figures.lines.iter_mut().filter(|line| line.op == "layer");
    layers.for_each(|line| line.seconds /= 2.0);
    let stages = vec![stage((0, 2), "a", &[(0, 8, "a"), (8, 16, "b")])];
    let one = &predicted_by(figures, stages, "gpu").expect("figures of all")[0];
    // Not the links, nor the output matrix.
    let layer = (1e-3 + 1e-4 + 0.5e-4) / 2.0 + 2.0 * (200e-6 + 4e-6);
    assert!(is_about(one.step_seconds, 2.0 * layer + 1e-3), "{one:?}");
}

#[test]
fn many_sequences_are_split_into_a_step_for_each_stage() {
    let all = |host| [(0, 16, host)];
    let stages = vec![stage((0, 1), "a", &all("a")), stage((1, 2), "b", &all("b"))];
    let many = &predicted(stages, "gpu").expect("figures of all")[1];
    assert_eq!(many.sequences, 64);
    // 32 rows in each of two steps: between 1 and 64 rows in proportion.
    let owner = 1e-3 * (1.0 + 31.0 / 63.0);
    let experts = 16.0 * (1.0 - (14.0_f64 / 16.0).powi(32)) * 1e5 * 0.5e-9;
    let layer = owner + 32.0 * 1e-4 + experts;
    let hops = (200e-6 + 32.0 * 4e-6) + (200e-6 + 32.0 * 64e-9);
    assert!(is_about(many.step_seconds, 2.0 * layer + 1e-3 + hops), "{many:?}");
    let slowest = layer + 1e-3;
    assert!(
        is_about(
            many.tokens_per_second,
            64.0 / (2.0 * slowest).max(many.step_seconds)
        ),
        "{many:?}"
    );
    assert_eq!(many.bound, "cached keys and values, by memory");
}

#[test]
fn what_is_missing_is_said() {
    let stages = vec![stage((0, 2), "a", &[(0, 16, "a")])];
    let reason = predicted(stages, "other").expect_err("no figures");
    assert!(reason.contains("no figures of \"other\""), "{reason}");
}
