//! config.json of the family, taken or refused.

use serde_json::{Value, json};

use super::{fixture, set, spec};
use crate::layout::Layout;
use crate::spec::*;

fn parse(value: &Value) -> Result<(ModelSpec, Vec<String>), SpecError> {
    let path = Path::new("config.json");
    parse::parse(value.to_string().as_bytes(), path, Layout::HuggingFace)
}

fn published(name: &str) -> Value {
    fixture(&format!("tests/fixtures/params/hugging-face/{name}.json"))
}

/// What is wrong with the configuration after one change, as text.
fn refused(name: &str, path: &str, value: Value) -> String {
    let mut config = published(name);
    set(&mut config, path, value.clone());
    match parse(&config) {
        Err(SpecError::Invalid { faults, .. }) => {
            assert_eq!(faults.len(), 1, "{path} = {value}: {faults:?}");
            faults[0].to_string()
        }
        other => panic!("{path} = {value}: expected faults, got {other:?}"),
    }
}

#[test]
fn both_layouts_describe_the_same_models() {
    for name in [
        "ministral-3-3b",
        "ministral-3-8b",
        "ministral-3-14b",
        "small-4-119b",
    ] {
        let (found, unknown) = parse(&published(name)).expect("valid");
        assert_eq!(unknown, Vec::<String>::new());
        let rope_rows = match name {
            "small-4-119b" => RopeRows::Interleaved,
            _ => RopeRows::HalfSplit,
        };
        let expected = ModelSpec {
            rope_rows,
            has_vision: name != "small-4-119b",
            ..spec(&format!("tests/fixtures/params/{name}.json"))
        };
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn older_spellings_are_taken() {
    let expected = parse(&published("ministral-3-8b")).expect("valid").0;
    let mut config = published("ministral-3-8b");
    let mut rope = config["text_config"]["rope_parameters"].take();
    set(&mut config, "text_config.rope_theta", rope["rope_theta"].take());
    set(&mut rope, "rope_type", Value::Null);
    set(&mut config, "text_config.rope_scaling", rope);
    set(&mut config, "text_config.tie_word_embeddings", json!(false));
    set(&mut config, "tie_word_embeddings", Value::Null);
    assert_eq!(parse(&config).expect("valid").0, expected);

    let mut config = published("ministral-3-8b");
    let rope = config["text_config"]["rope_parameters"].clone();
    set(&mut config, "text_config.rope_theta", rope["rope_theta"].clone());
    set(&mut config, "text_config.rope_scaling", rope);
    set(&mut config, "text_config.rope_parameters.truncate", json!(true));
    set(&mut config, "text_config.rope_scaling.truncate", json!(true));
    assert_eq!(parse(&config).expect("valid"), (expected, vec![]));

    let mut config = published("small-4-119b");
    set(&mut config, "model_type", json!("deepseek_v3"));
    set(&mut config, "scoring_func", json!("softmax"));
    set(&mut config, "rope_interleave", Value::Null);
    set(&mut config, "rope_parameters.mscale", Value::Null);
    set(&mut config, "rope_parameters.mscale_all_dim", Value::Null);
    set(&mut config, "rope_parameters.attention_factor", json!(1));
    let interleaved = parse(&config).expect("valid").0;
    assert_eq!(interleaved, parse(&published("small-4-119b")).expect("valid").0);
    set(&mut config, "rope_interleave", json!(false));
    let halves = ModelSpec {
        rope_rows: RopeRows::HalfSplit,
        ..interleaved
    };
    assert_eq!(parse(&config).expect("valid").0, halves);

    let mut config = published("ministral-3-8b");
    let plain = json!({"rope_type": "default", "rope_theta": 10_000.0});
    set(&mut config, "text_config.rope_parameters", plain);
    let plain = parse(&config).expect("valid").0;
    assert_eq!((plain.rope.yarn, plain.query_scaling), (None, None));
}

#[test]
fn quantised_weights_are_told_in_either_spelling() {
    for (value, expected) in [
        (
            json!({"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": null}),
            Quantization::Fp8Tensor,
        ),
        (
            json!({"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}),
            Quantization::Fp8Block,
        ),
        (
            fixture("tests/fixtures/micro-fp8/params.json")["quantization"].take(),
            Quantization::Fp8Block,
        ),
        (
            fixture("tests/fixtures/micro-nvfp4/params.json")["quantization"].take(),
            Quantization::Nvfp4,
        ),
    ] {
        let mut config = published("ministral-3-8b");
        set(&mut config, "quantization_config", value);
        let (spec, unknown) = parse(&config).expect("valid");
        assert_eq!((spec.quantization, unknown), (expected, vec![]));
    }
}

#[test]
fn what_is_not_served_is_refused_naming_the_field() {
    for (path, value, expected) in [
        (
            "text_config.model_type",
            json!("llama"),
            "text_config.model_type is \"llama\", expected ministral3, mistral4 or deepseek_v3",
        ),
        (
            "text_config.model_type",
            Value::Null,
            "text_config.model_type is null, expected ministral3",
        ),
        (
            "text_config.hidden_size",
            json!(4100),
            "text_config.hidden_size is 4100, expected a multiple of 16 from 16 to 65536",
        ),
        (
            "text_config.num_key_value_heads",
            json!(5),
            "text_config.num_key_value_heads is 5, expected a divisor of the number of heads, which is 32",
        ),
        (
            "text_config.head_dim",
            Value::Null,
            "text_config.head_dim is missing, expected a multiple of 16",
        ),
        (
            "text_config.intermediate_size",
            json!(0),
            "text_config.intermediate_size is 0, expected a multiple of 16",
        ),
        (
            "text_config.rms_norm_eps",
            json!("1e-5"),
            "text_config.rms_norm_eps is \"1e-5\", expected a number",
        ),
        (
            "text_config.hidden_act",
            json!("gelu"),
            "text_config.hidden_act is \"gelu\", expected \"silu\"",
        ),
        (
            "text_config.sliding_window",
            json!(4096),
            "text_config.sliding_window is 4096, expected null: every token is attended to",
        ),
        (
            "text_config.tie_word_embeddings",
            json!(1),
            "text_config.tie_word_embeddings is 1, expected true or false",
        ),
        (
            "text_config.rope_parameters",
            Value::Null,
            "text_config.rope_parameters is missing, expected an object with rope_theta",
        ),
        (
            "text_config.rope_parameters.rope_type",
            json!("linear"),
            "text_config.rope_parameters.rope_type is \"linear\", expected \"yarn\" or \"default\"",
        ),
        (
            "text_config.rope_parameters.mscale_all_dim",
            json!(0.5),
            "text_config.rope_parameters.mscale_all_dim is 0.5, expected 1",
        ),
        (
            "text_config.rope_parameters.mscale",
            Value::Null,
            "text_config.rope_parameters.mscale is missing",
        ),
        (
            "text_config.rope_parameters.attention_factor",
            json!(1.3),
            "text_config.rope_parameters.attention_factor is 1.3, expected 1",
        ),
        (
            "text_config.rope_parameters.truncate",
            json!(false),
            "text_config.rope_parameters.truncate is false, expected true: the borders of yarn's ramp are whole pairs",
        ),
        (
            "text_config.rope_parameters.type",
            json!("default"),
            "text_config.rope_parameters.type is \"default\", expected \"yarn\": what rope_type says",
        ),
        (
            "text_config.rope_parameters.partial_rotary_factor",
            json!(0.5),
            "text_config.rope_parameters.partial_rotary_factor is 0.5, expected 1: all of a head is rotated",
        ),
        (
            "text_config.rope_theta",
            json!(10_000),
            "text_config.rope_parameters.rope_theta is 1000000.0, expected 10000",
        ),
        (
            "text_config.rope_scaling",
            json!({"rope_type": "yarn", "factor": 8.0}),
            "text_config.rope_scaling is {\"rope_type\":\"yarn\",\"factor\":8.0}, expected {",
        ),
        (
            "text_config.rope_parameters.beta_fast",
            json!(0.5),
            "text_config.rope_parameters.beta_fast is 0.5, expected more than text_config.rope_parameters.beta_slow, which is 1",
        ),
        (
            "text_config.rope_parameters.llama_4_scaling_beta",
            json!(-1),
            "text_config.rope_parameters.llama_4_scaling_beta is -1, expected a number from 0 to 16",
        ),
        ("text_config", json!(7), "text_config is 7, expected an object"),
        (
            "quantization_config",
            json!({"quant_method": "awq"}),
            "quantization_config",
        ),
        (
            "quantization_config",
            json!({"quant_method": "fp8", "weight_block_size": [64, 64]}),
            "quantization_config.weight_block_size is [64,64], expected",
        ),
    ] {
        if path == "quantization_config" && value["quant_method"] == "awq" {
            let mut config = published("ministral-3-8b");
            set(&mut config, path, value);
            let error = parse(&config).expect_err("refused").to_string();
            assert!(
                error.contains("quantization_config.quant_method is \"awq\""),
                "{error}"
            );
            continue;
        }
        let found = refused("ministral-3-8b", path, value);
        assert!(found.starts_with(expected), "{found}");
    }
    for (path, value, expected) in [
        (
            "n_routed_experts",
            json!(0),
            "n_routed_experts is 0, expected a whole number from 1 to 1024",
        ),
        (
            "num_experts_per_tok",
            json!(200),
            "num_experts_per_tok is 200, expected a whole number from 1 to 32",
        ),
        (
            "num_key_value_heads",
            json!(8),
            "num_key_value_heads is 8, expected 32: num_attention_heads",
        ),
        (
            "norm_topk_prob",
            json!(false),
            "norm_topk_prob is false, expected true",
        ),
        (
            "scoring_func",
            json!("sigmoid"),
            "scoring_func is \"sigmoid\", expected \"softmax\": the router of this family",
        ),
        ("n_group", json!(8), "n_group is 8, expected 1"),
        (
            "rope_parameters.partial_rotary_factor",
            json!(0.25),
            "rope_parameters.partial_rotary_factor is 0.25, expected 0.5, the part of a head that qk_rope_head_dim is",
        ),
        (
            "q_lora_rank",
            Value::Null,
            "q_lora_rank is missing, expected a multiple of 16",
        ),
        (
            "n_shared_experts",
            json!(17),
            "n_shared_experts is 17, expected a whole number from 0 to 16",
        ),
        (
            "attention_bias",
            json!(true),
            "attention_bias is true, expected false",
        ),
    ] {
        let found = refused("small-4-119b", path, value);
        assert!(found.starts_with(expected), "{found}");
    }
}

/// DeepSeek-V3 scores experts by a sigmoid, and scales the scores of tokens by what `mscale_all_dim` gives; Mistral's
/// models do neither.
#[test]
fn scores_of_deepseek_are_refused() {
    let mut config = published("small-4-119b");
    set(&mut config, "model_type", json!("deepseek_v3"));
    set(&mut config, "rope_parameters.attention_factor", json!(1));
    let error = parse(&config).expect_err("refused").to_string();
    assert!(
        error.contains("scoring_func is missing, expected \"softmax\""),
        "{error}"
    );
    set(&mut config, "scoring_func", json!("softmax"));
    let error = parse(&config).expect_err("refused").to_string();
    let expected = "rope_parameters.mscale_all_dim is 1.0, expected 0";
    assert!(error.contains(expected), "{error}");
    set(&mut config, "rope_parameters.mscale_all_dim", json!(0));
    set(&mut config, "rope_parameters.attention_factor", Value::Null);
    let error = parse(&config).expect_err("refused").to_string();
    let expected = "rope_parameters.attention_factor is missing, expected 1";
    assert!(error.contains(expected), "{error}");
    set(&mut config, "rope_parameters.attention_factor", json!(1.0));
    let plain = parse(&published("small-4-119b")).expect("valid").0;
    assert_eq!(parse(&config).expect("valid").0, plain);
}
