//! params.json of the family, taken or refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn fixture(path: &str) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    serde_json::from_slice(&std::fs::read(file).expect("a fixture")).expect("json")
}

fn parse(value: &Value) -> Result<(ModelSpec, Vec<String>), SpecError> {
    parse_bytes(value.to_string().as_bytes())
}

fn parse_bytes(bytes: &[u8]) -> Result<(ModelSpec, Vec<String>), SpecError> {
    parse::parse(bytes, Path::new("params.json"), Layout::Consolidated)
}

fn spec(path: &str) -> ModelSpec {
    let (spec, unknown) = parse(&fixture(path)).expect("a valid params.json");
    assert_eq!(unknown, Vec::<String>::new());
    spec
}

/// Sets the value at a dotted path; `Value::Null` counts as missing.
fn set(params: &mut Value, path: &str, value: Value) {
    let pointer = format!("/{}", path.replace('.', "/"));
    let (parent, key) = pointer.rsplit_once('/').expect("a slash");
    params.pointer_mut(parent).expect("the parent")[key] = value;
}

fn faults(params: &Value) -> Vec<Fault> {
    match parse(params) {
        Err(SpecError::Invalid { faults, .. }) => faults,
        other => panic!("expected faults, got {other:?}"),
    }
}

const MINI: &str = "cli/assets/mini-large-3/params.json";

#[test]
fn large_3_has_its_published_numbers() {
    let spec = spec("tests/fixtures/params/large-3.json");
    let mla = MlaSpec {
        n_heads: 128,
        q_lora_rank: 1536,
        kv_lora_rank: 512,
        qk_nope_head_dim: 128,
        qk_rope_head_dim: 64,
        v_head_dim: 128,
    };
    assert_eq!(
        (spec.dim, spec.n_layers, spec.vocab_size, spec.max_context),
        (7168, 61, 131_072, 294_912)
    );
    assert_eq!(spec.attention.mla(), Some(&mla));
    assert_eq!((spec.norm_eps, spec.dense_hidden_dim), (1e-6, 16384));
    assert_eq!(spec.attention.softmax_scale(), 0.072_168_78);
    assert_eq!(spec.kv_values_per_token(), 35_136);
    let moe = spec.moe.as_ref().expect("experts");
    assert_eq!(
        (moe.n_experts, moe.n_experts_per_token, moe.expert_hidden_dim),
        (128, 4, 4096)
    );
    assert_eq!((moe.shared_hidden_dim(), moe.routed_scale), (4096, 1.0));
    assert_eq!(spec.moe_layers(), 3..61);
    assert_eq!(
        (spec.is_moe_layer(2), spec.is_moe_layer(3), spec.is_moe_layer(61)),
        (false, true, false)
    );
    let yarn = YarnSpec {
        factor: 36.0,
        original_context: 8192,
        beta_fast: 32.0,
        beta_slow: 1.0,
    };
    assert_eq!(
        spec.rope,
        RopeSpec {
            dim: 64,
            theta: 10_000.0,
            yarn: Some(yarn)
        }
    );
    assert_eq!(
        spec.query_scaling,
        Some(QueryScaling {
            original_context: 8192,
            beta: 0.1
        })
    );
    assert_eq!(spec.quantization, Quantization::Fp8Block);
    assert!(spec.has_vision);
}

#[test]
fn the_served_family_is_taken() {
    let bf16 = spec("tests/fixtures/micro-bf16/params.json");
    assert_eq!(bf16.quantization, Quantization::None);
    let fp8 = spec("tests/fixtures/micro-fp8/params.json");
    assert_eq!(
        ModelSpec {
            quantization: Quantization::None,
            ..fp8
        },
        bf16
    );
    for (path, quantization) in [
        ("micro-fp8-tensor", Quantization::Fp8Tensor),
        ("micro-nvfp4", Quantization::Nvfp4),
    ] {
        let same_graph = ModelSpec {
            quantization,
            ..bf16.clone()
        };
        assert_eq!(spec(&format!("tests/fixtures/{path}/params.json")), same_graph);
    }
    let small4 = spec("tests/fixtures/micro-small4/params.json");
    assert_eq!((small4.moe_layers(), small4.dense_hidden_dim), (0..3, 0));
    assert_eq!(spec(MINI).moe_layers(), 1..6);
}

#[test]
fn dense_models_are_taken() {
    let file = |name: &str| spec(&format!("tests/fixtures/params/{name}.json"));
    for (name, dim, n_layers, hidden_dim, theta, tied) in [
        ("ministral-3-3b", 3072, 26, 9216, 1e6, true),
        ("ministral-3-8b", 4096, 34, 14336, 1e6, false),
        ("ministral-3-14b", 5120, 40, 16384, 1e9, false),
    ] {
        let spec = file(name);
        let attention = AttentionSpec::Gqa(GqaSpec {
            n_heads: 32,
            n_kv_heads: 8,
            head_dim: 128,
        });
        assert_eq!(
            (spec.dim, spec.n_layers, spec.dense_hidden_dim),
            (dim, n_layers, hidden_dim)
        );
        assert_eq!(spec.attention, attention);
        assert_eq!((spec.rope.theta, spec.rope.dim), (theta, 128));
        assert_eq!((spec.tied_embeddings, spec.norm_eps), (tied, 1e-5));
        assert_eq!((spec.n_experts(), spec.moe_layers().len()), (0, 0));
        assert_eq!(spec.attention.softmax_scale(), 0.088_388_346);
        assert_eq!(spec.kv_values_per_token_layer(), 2 * 8 * 128);
        assert!(spec.attention.mla().is_none() && spec.has_vision);
        let yarn = spec.rope.yarn.as_ref().expect("yarn");
        assert_eq!((yarn.factor, yarn.original_context), (16.0, 16384));
        let scaling = spec.query_scaling.as_ref().expect("scaling");
        assert_eq!((scaling.beta, scaling.original_context), (0.1, 16384));
    }
    let small = file("small-4-119b");
    assert_eq!((small.n_layers, small.moe_layers()), (36, 0..36));
    assert_eq!(small.kv_values_per_token_layer(), 320);
}

#[test]
fn impossible_heads_are_refused_naming_the_key() {
    for (path, value, expected) in [
        (
            "n_kv_heads",
            json!(3),
            "a divisor of the number of heads, which is 32",
        ),
        ("n_kv_heads", json!(64), "a whole number from 1 to 32"),
        ("n_kv_heads", Value::Null, "a whole number from 1 to 32"),
        ("head_dim", json!(100), "a multiple of 16 from 16 to 1024"),
        ("head_dim", Value::Null, "a multiple of 16 from 16 to 1024"),
        ("hidden_dim", Value::Null, "a multiple of 16 from 16 to 262144"),
    ] {
        let mut params = fixture("tests/fixtures/params/ministral-3-8b.json");
        set(&mut params, path, value);
        let faults = faults(&params);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(
            (faults[0].key.as_str(), faults[0].expected.as_str()),
            (path, expected)
        );
    }
}

#[test]
fn formats_that_are_not_served_are_refused_by_name() {
    let group = "quantization.config_groups.NVFP4.weights";
    for (path, key, value, expected) in [
        (
            "micro-fp8-tensor",
            "quantization.qformat_weight",
            json!("fp8_e5m2"),
            "fp8 weights with one scale per tensor (qformat_weight fp8_e4m3)",
        ),
        (
            "micro-nvfp4",
            "quantization.format",
            json!("pack-quantized"),
            "nvfp4 weights (nvfp4-pack-quantized)",
        ),
        (
            "micro-nvfp4",
            &*format!("{group}.group_size"),
            json!(32),
            "16: the columns",
        ),
        ("micro-nvfp4", &*format!("{group}.num_bits"), json!(8), "4: "),
        (
            "micro-nvfp4",
            &*format!("{group}.strategy"),
            json!("group"),
            "\"tensor_group\": ",
        ),
        (
            "micro-nvfp4",
            &*format!("{group}.symmetric"),
            json!(false),
            "no zero point",
        ),
    ] {
        let mut params = fixture(&format!("tests/fixtures/{path}/params.json"));
        set(&mut params, key, value);
        let faults = faults(&params);
        let fault = faults.iter().find(|fault| fault.key == key);
        let fault = fault.unwrap_or_else(|| panic!("{key}: {faults:?}"));
        assert!(fault.expected.contains(expected), "{fault}");
    }
}

#[test]
fn what_is_said_of_activations_does_not_matter() {
    for (path, key) in [
        ("micro-fp8-tensor", "quantization.qscheme_act"),
        (
            "micro-nvfp4",
            "quantization.config_groups.NVFP4.input_activations",
        ),
        ("micro-nvfp4", "quantization.ignore"),
    ] {
        let path = format!("tests/fixtures/{path}/params.json");
        let mut params = fixture(&path);
        for value in [Value::Null, json!("NO_SCALES")] {
            set(&mut params, key, value);
            assert_eq!(parse(&params).expect("served"), (spec(&path), Vec::new()));
        }
    }
}

#[test]
fn all_faults_are_given_at_once() {
    let mut params = fixture(MINI);
    set(&mut params, "dim", json!("wide"));
    set(&mut params, "n_layers", json!(0));
    set(&mut params, "moe.num_expert_groups", json!(2));
    set(&mut params, "yarn.apply_scale", json!(true));
    set(
        &mut params,
        "quantization.config_groups.FP8_BLOCK.weights.block_structure",
        json!([128]),
    );
    set(&mut params, "norm_eps", Value::Null);
    let faults = faults(&params);
    let mut keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
    keys.sort_unstable();
    let block = "quantization.config_groups.FP8_BLOCK.weights.block_structure";
    assert_eq!(
        keys,
        [
            "dim",
            "moe.num_expert_groups",
            "n_layers",
            "norm_eps",
            block,
            "yarn.apply_scale"
        ]
    );
    let error = SpecError::Invalid {
        path: "params.json".into(),
        faults,
    };
    let text = error.to_string();
    assert!(
        text.starts_with("params.json: dim is \"wide\", expected a multiple of 16 from 16 to 65536; "),
        "{text}"
    );
    assert!(
        text.contains("n_layers is 0, expected a whole number from 1 to 1024"),
        "{text}"
    );
    assert!(
        text.contains("norm_eps is missing, expected a number from "),
        "{text}"
    );
}

#[test]
fn impossible_values_are_refused_naming_the_key() {
    let bad: [(&str, Value); 41] = [
        ("dim", json!(258)),
        ("dim", json!(-256)),
        ("dim", json!(1_u64 << 40)),
        ("n_layers", json!(1025)),
        ("n_layers", json!(6.5)),
        ("vocab_size", json!((1 << 20) + 1)),
        ("norm_eps", json!(0)),
        ("norm_eps", json!("1e-6")),
        ("max_position_embeddings", json!(0)),
        ("max_position_embeddings", Value::Null),
        ("tied_embeddings", json!("no")),
        ("sliding_window", json!(4096)),
        ("n_heads", json!(0)),
        ("n_kv_heads", json!(2)),
        ("head_dim", json!(64)),
        ("hidden_dim", Value::Null),
        ("hidden_dim", json!(0)),
        ("q_lora_rank", Value::Null),
        ("kv_lora_rank", json!(0)),
        ("qk_rope_head_dim", json!(1)),
        ("v_head_dim", json!(4096)),
        ("rope_theta", json!(0)),
        ("yarn", json!(7)),
        ("yarn.factor", json!(0.5)),
        ("yarn.beta", json!(0.5)),
        ("yarn.apply_scale", Value::Null),
        ("yarn.original_max_position_embeddings", json!(0)),
        ("llama_4_scaling.beta", json!(-1)),
        ("llama_4_scaling.original_max_position_embeddings", json!(0)),
        ("moe.first_k_dense_replace", json!(6)),
        ("moe.num_experts", json!(0)),
        ("moe.num_experts_per_tok", json!(17)),
        ("moe.expert_hidden_dim", json!(130)),
        ("moe.num_shared_experts", json!(17)),
        ("moe.routed_scale", json!(0)),
        ("moe.route_every_n", json!(2)),
        ("moe.num_expert_groups", json!(8)),
        ("quantization.quant_method", json!("awq")),
        ("quantization.config_groups", json!({})),
        (
            "quantization.config_groups.FP8_BLOCK.weights.strategy",
            json!("tensor"),
        ),
        ("quantization.config_groups.FP8_BLOCK.weights.num_bits", json!(4)),
    ];
    for (path, value) in bad {
        let mut params = fixture(MINI);
        set(&mut params, path, value.clone());
        let faults = faults(&params);
        assert!(
            faults.iter().any(|fault| fault.key == path),
            "{path} = {value}: {faults:?}"
        );
        // A changed head size rightly disagrees with head_dim as well; nothing else brings a second fault.
        let others = faults
            .iter()
            .filter(|fault| fault.key != path && fault.key != "head_dim")
            .count();
        assert_eq!(others, 0, "{path} = {value}: {faults:?}");
    }
}

#[test]
fn shared_experts_stay_within_the_widest_layer() {
    let mut params = fixture(MINI);
    set(&mut params, "moe.expert_hidden_dim", json!(MAX_HIDDEN_DIM));
    set(&mut params, "moe.num_shared_experts", json!(2));
    assert_eq!(
        faults(&params)[0].expected,
        "at most 1 at expert_hidden_dim 262144"
    );
}

#[test]
fn unknown_keys_are_noted_and_not_refused() {
    let mut params = fixture(MINI);
    set(&mut params, "brand_new", json!({"a": 1}));
    set(&mut params, "moe.router_jitter", json!(0.1));
    set(&mut params, "yarn.note", json!(null));
    let (_, mut unknown) = parse(&params).expect("still valid");
    unknown.sort_unstable();
    assert_eq!(unknown, ["brand_new", "moe.router_jitter", "yarn.note"]);
}

#[test]
fn a_model_without_experts_is_dense_throughout() {
    let mut params = fixture(MINI);
    set(&mut params, "moe", Value::Null);
    let (spec, _) = parse(&params).expect("a dense model");
    assert_eq!(
        (spec.n_experts(), spec.moe_layers().len(), spec.dense_hidden_dim),
        (0, 0, 768)
    );
    assert!(!spec.is_moe_layer(0) && spec.moe_at(0).is_none());
}

#[test]
fn what_is_not_an_object_is_refused() {
    let deep = "[".repeat(100_000);
    for text in ["", "7", "[]", "{\"dim\": ", "\u{fffd}", &deep] {
        let error = parse_bytes(text.as_bytes()).expect_err("refused");
        assert!(matches!(error, SpecError::Json { .. }), "{error}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    assert!(matches!(
        ModelSpec::load(folder.path()),
        Err(SpecError::Read { .. })
    ));
    std::fs::write(folder.path().join("params.json"), vec![b' '; (1 << 20) + 1]).expect("written");
    assert!(matches!(
        ModelSpec::load(folder.path()),
        Err(SpecError::TooLong { .. })
    ));
}

mod hugging_face;

proptest! {
    /// Whatever bytes params.json has, nothing panics, and what is taken keeps its bounds.
    #[test]
    fn mutated_params_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..6),
    ) {
        let mut bytes = fixture(MINI).to_string().into_bytes();
        for (at, byte, kind) in changes {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = b"0123456789-.e[]{}"[usize::from(byte) % 17],
                1 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
        }
        if let Ok((spec, _)) = parse_bytes(&bytes) {
            prop_assert!(spec.dim <= MAX_DIM && spec.n_layers <= MAX_LAYERS && spec.vocab_size <= MAX_VOCAB);
            prop_assert!(spec.moe_layers().end <= spec.n_layers);
            // Overflow in here would panic: the profile checks for it.
            crate::tensors::ModelBytes::usual(&spec).total(spec.n_experts());
        }
    }
}
