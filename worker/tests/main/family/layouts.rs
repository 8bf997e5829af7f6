//! Models with latent attention in Hugging Face's layout give the bits of the same weights in the consolidated one.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use tramontane_model::checkpoint::{Checkpoint, MANIFEST_FILE, Manifest};
use tramontane_model::ids::{Origin, SequenceId};
use tramontane_model::layout::Layout;
use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_model::step::{Opening, RowRole, SequenceChunk};
use tramontane_worker::weights::ModelFiles;

use super::rewritten::{Tensor, config, fuse_experts, read_all, renamed, split_in_halves, write};
use crate::batch::{executor_of, run};
use crate::cluster::repository;

/// The best 20 after a prompt beyond the original context, and after a token more.
fn answers(dir: &Path) -> Vec<SampledToken> {
    let mut executor = executor_of(dir, &[(0, 4, "w1/0", &[(8, "w1/0")])]);
    let sampling = SamplingParams {
        logprobs: Some(20),
        ..SamplingParams::GREEDY
    };
    let prompt: Vec<u32> = (0..300_u32).map(|i| 3 + i * 37 % 2000).collect();
    let chunk = |first_position: u32, tokens: &[u32], role| SequenceChunk {
        sequence: SequenceId(1),
        open: Some(Opening::new(Origin::NOBODY, &sampling, &[], 0, 0)),
        first_position,
        tokens: tokens.to_vec(),
        role,
        sample: true,
        scored: vec![],
        block_table: (0..20).map(|block| block * 7 % 20).collect(),
    };
    let mut answers = Vec::new();
    for (start, tokens) in (0..).step_by(100).zip(prompt.chunks(100)) {
        answers.extend(run(&mut executor, vec![chunk(start, tokens, RowRole::Given)]));
    }
    let next = answers.last().expect("sampled").token;
    answers.extend(run(&mut executor, vec![chunk(300, &[next], RowRole::Generated)]));
    answers
}

fn fixture(name: &str) -> std::path::PathBuf {
    repository().join("tests/fixtures").join(name)
}

fn params(name: &str) -> Value {
    let text = std::fs::read_to_string(fixture(name).join("params.json")).expect("params");
    serde_json::from_str(&text).expect("json")
}

/// The tensors of a fixture under Hugging Face's names, rotated rows as asked for.
fn rewritten(name: &str, prefix: &str, head: &str, halves: bool) -> Vec<Tensor> {
    let params = params(name);
    let number = |key: &str| params[key].as_u64().expect("a number") as usize;
    let rope = number("qk_rope_head_dim");
    let mut tensors = read_all(&fixture(name));
    for tensor in &mut tensors {
        if halves && tensor.name.ends_with(".wq_b.weight") {
            split_in_halves(tensor, number("qk_nope_head_dim") + rope, rope);
        } else if halves && tensor.name.ends_with(".wkv_a_with_mqa.weight") {
            split_in_halves(tensor, number("kv_lora_rank") + rope, rope);
        }
        tensor.name = renamed(&tensor.name, prefix, head);
    }
    tensors
}

fn folder(tokenizer_of: &str, config: &Value) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
    let tokenizer = fixture(tokenizer_of).join("tekken.json");
    std::fs::copy(tokenizer, dir.path().join("tekken.json")).expect("copied");
    dir
}

#[test]
fn one_file_with_rows_interleaved_or_in_halves() {
    for name in ["micro-bf16", "micro-fp8", "micro-fp8-tensor", "micro-nvfp4"] {
        let expected = answers(&fixture(name));
        for halves in [false, true] {
            let dir = folder(name, &config(&params(name), !halves));
            let tensors = rewritten(name, "model.", "lm_head", halves);
            write(&dir.path().join("model.safetensors"), &tensors);
            assert_eq!(answers(dir.path()), expected, "{name}, in halves: {halves}");
        }
    }
}

#[test]
fn shards_with_experts_in_one_tensor_inside_a_model_with_a_vision_tower() {
    let name = "micro-bf16";
    let text = config(&params(name), false);
    let outer = json!({"model_type": "mistral3", "text_config": text, "vision_config": {}});
    for (prefix, head) in [
        ("language_model.model.", "language_model.lm_head"),
        ("model.language_model.", "lm_head"),
    ] {
        let dir = folder(name, &outer);
        let tensors = fuse_experts(rewritten(name, prefix, head, true));
        assert!(
            tensors
                .iter()
                .any(|tensor| tensor.name.ends_with("experts.gate_up_proj"))
        );
        let mut map = BTreeMap::new();
        for (index, part) in tensors.chunks(tensors.len() / 2).enumerate() {
            let file = format!("model-{index:05}-of-00003.safetensors");
            write(&dir.path().join(&file), part);
            map.extend(part.iter().map(|tensor| (tensor.name.clone(), file.clone())));
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
        std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).expect("written");
        let checkpoint = Checkpoint::open(dir.path()).expect("opened");
        assert_eq!(checkpoint.layout(), Layout::HuggingFace);
        // Tensors that are cut from one have sums of their own.
        let manifest = Manifest::of(&checkpoint, &|_| {}).expect("sums");
        let manifest = serde_json::to_vec(&manifest).expect("json");
        std::fs::write(dir.path().join(MANIFEST_FILE), manifest).expect("written");
        let inventory = checkpoint
            .validate(&checkpoint.spec().expect("a spec"))
            .expect("complete");
        assert_eq!((inventory.vision_tensors, inventory.unknown_tensors), (24, 0));
        assert_eq!(answers(dir.path()), answers(&fixture(name)), "{prefix}");
    }
}

#[test]
fn where_both_layouts_are_the_consolidated_one_is_opened() {
    let name = "micro-bf16";
    let dir = folder(name, &json!({"model_type": "something else"}));
    std::fs::write(dir.path().join("model.safetensors"), "not weights").expect("written");
    for file in ["params.json", "consolidated.safetensors"] {
        std::fs::copy(fixture(name).join(file), dir.path().join(file)).expect("copied");
    }
    let model = ModelFiles::open(dir.path()).expect("the consolidated one");
    assert_eq!(model.checkpoint.layout(), Layout::Consolidated);
}

#[test]
fn what_is_missing_is_named_as_the_files_name_it() {
    let name = "micro-bf16";
    let dir = folder(name, &config(&params(name), false));
    let mut tensors = rewritten(name, "model.", "lm_head", true);
    let missing = "model.layers.2.self_attn.kv_b_proj.weight";
    tensors.retain(|tensor| tensor.name != missing);
    let wrong = "model.layers.1.mlp.experts.3.up_proj.weight";
    for tensor in tensors.iter_mut().filter(|tensor| tensor.name == wrong) {
        tensor.shape.reverse();
    }
    write(&dir.path().join("model.safetensors"), &tensors);
    let error = ModelFiles::open(dir.path()).expect_err("refused").to_string();
    for part in [
        &format!("tensor {missing} is missing, expected with shape [256, 32]"),
        &format!("model.safetensors: tensor {wrong} has shape [128, 64], the model needs [64, 128]"),
    ] {
        assert!(error.contains(part.as_str()), "{error}");
    }
    std::fs::remove_file(dir.path().join("model.safetensors")).expect("removed");
    let error = ModelFiles::open(dir.path()).expect_err("refused").to_string();
    assert!(
        error.contains("has neither model.safetensors.index.json nor model.safetensors"),
        "{error}"
    );
}
