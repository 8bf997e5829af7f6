//! A consolidated checkpoint written anew as Hugging Face's code would: other names, rotated rows half by half, experts in
//! one tensor. Shares nothing with what reads them.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

/// A tensor in memory.
#[derive(Clone)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: String,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

/// All tensors of a folder.
pub(super) fn read_all(dir: &Path) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path
            .extension()
            .is_none_or(|extension| extension != "safetensors")
        {
            continue;
        }
        let bytes = std::fs::read(&path).expect("a file");
        let (length, rest) = bytes.split_first_chunk().expect("a length");
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let header: Map<String, Value> = serde_json::from_slice(header).expect("a header");
        for (name, entry) in header.iter().filter(|(name, _)| *name != "__metadata__") {
            let number = |value: &Value| value.as_u64().expect("a number") as usize;
            let offset = |index: usize| number(&entry["data_offsets"][index]);
            let shape = entry["shape"].as_array().expect("a shape");
            tensors.push(Tensor {
                name: name.clone(),
                dtype: entry["dtype"].as_str().expect("a dtype").to_owned(),
                shape: shape.iter().map(number).collect(),
                bytes: data[offset(0)..offset(1)].to_vec(),
            });
        }
    }
    tensors
}

/// Writes tensors as one file.
pub(super) fn write(path: &Path, tensors: &[Tensor]) {
    let (mut header, mut data) = (Map::new(), Vec::<u8>::new());
    for tensor in tensors {
        let start = data.len();
        data.extend(&tensor.bytes);
        let entry = json!({
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [start, data.len()],
        });
        header.insert(tensor.name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).expect("written");
}

/// The name of a tensor of the language model or the vision tower.
pub(super) fn renamed(name: &str, prefix: &str, head: &str) -> String {
    let vision = [
        ("vision_encoder.", "vision_tower."),
        ("vision_language_adapter.w_in", "multi_modal_projector.linear_1"),
        ("vision_language_adapter.w_out", "multi_modal_projector.linear_2"),
        ("patch_merger.", "multi_modal_projector.patch_merger."),
        ("pre_mm_projector_norm", "multi_modal_projector.norm"),
    ];
    if let Some((from, to)) = vision.iter().find(|(from, _)| name.starts_with(from)) {
        return name.replacen(from, to, 1);
    }
    if let Some(rest) = name.strip_prefix("output.") {
        return format!("{head}.{rest}");
    }
    let mut new = name.replacen("tok_embeddings.", "embed_tokens.", 1);
    for (from, to) in [
        (".attention_norm.", ".input_layernorm."),
        (".ffn_norm.", ".post_attention_layernorm."),
        (".attention.wq_a.", ".self_attn.q_a_proj."),
        (".attention.wq_b.", ".self_attn.q_b_proj."),
        (".attention.q_a_norm.", ".self_attn.q_a_layernorm."),
        (".attention.wkv_a_with_mqa.", ".self_attn.kv_a_proj_with_mqa."),
        (".attention.kv_a_norm.", ".self_attn.kv_a_layernorm."),
        (".attention.wkv_b.", ".self_attn.kv_b_proj."),
        (".attention.wo.", ".self_attn.o_proj."),
        (".feed_forward.", ".mlp."),
        (".shared_experts.", ".mlp.shared_experts."),
        (".experts.", ".mlp.experts."),
        (".gate.", ".mlp.gate."),
        (".w1.", ".gate_proj."),
        (".w2.", ".down_proj."),
        (".w3.", ".up_proj."),
        (".qscale_weight", ".weight_scale_inv"),
        (".qscale_act", ".activation_scale"),
    ] {
        new = new.replacen(from, to, 1);
    }
    format!("{prefix}{new}")
}

/// Puts the last `rotated` rows of each head of `head` rows half by half: first the even ones, then the odd ones.
pub(super) fn split_in_halves(tensor: &mut Tensor, head: usize, rotated: usize) {
    let row_bytes = tensor.bytes.len() / tensor.shape[0];
    for rows in tensor.bytes.chunks_exact_mut(head * row_bytes) {
        let turned = &mut rows[(head - rotated) * row_bytes..];
        let pairs: Vec<Vec<u8>> = turned.chunks_exact(2 * row_bytes).map(<[u8]>::to_vec).collect();
        let first = pairs.iter().map(|pair| &pair[..row_bytes]);
        let second = pairs.iter().map(|pair| &pair[row_bytes..]);
        let halves: Vec<&[u8]> = first.chain(second).collect();
        turned.copy_from_slice(&halves.concat());
    }
}

/// Puts the experts of each layer in one tensor of gates and ups and one of downs.
pub(super) fn fuse_experts(tensors: Vec<Tensor>) -> Vec<Tensor> {
    let (experts, mut others): (Vec<Tensor>, Vec<Tensor>) = tensors
        .into_iter()
        .partition(|tensor| tensor.name.contains(".mlp.experts."));
    let layers = experts
        .iter()
        .filter_map(|tensor| tensor.name.split_once(".experts."));
    let layers: BTreeSet<&str> = layers.map(|(layer, _)| layer).collect();
    for layer in layers {
        add_fused(layer, &experts, &mut others);
    }
    others
}

fn add_fused(prefix: &str, experts: &[Tensor], others: &mut Vec<Tensor>) {
    let of = |expert: usize, matrix: &str| {
        let name = format!("{prefix}.experts.{expert}.{matrix}.weight");
        experts.iter().find(|tensor| tensor.name == name)
    };
    let count = (0..)
        .take_while(|&expert| of(expert, "up_proj").is_some())
        .count();
    let all = |matrices: &[&str], name: &str| {
        let parts: Vec<&Tensor> = (0..count)
            .flat_map(|expert| matrices.iter().map(move |matrix| (expert, *matrix)))
            .map(|(expert, matrix)| of(expert, matrix).expect("an expert's matrix"))
            .collect();
        Tensor {
            name: format!("{prefix}.experts.{name}"),
            dtype: parts[0].dtype.clone(),
            shape: vec![count, parts[0].shape[0] * matrices.len(), parts[0].shape[1]],
            bytes: parts.iter().flat_map(|tensor| tensor.bytes.clone()).collect(),
        }
    };
    others.push(all(&["gate_proj", "up_proj"], "gate_up_proj"));
    others.push(all(&["down_proj"], "down_proj"));
}

/// The config.json of a model with latent attention.
pub(super) fn config(params: &Value, rope_interleave: bool) -> Value {
    let (yarn, moe) = (&params["yarn"], &params["moe"]);
    let mut config = json!({
        "model_type": "mistral4",
        "hidden_size": params["dim"],
        "num_hidden_layers": params["n_layers"],
        "intermediate_size": params["hidden_dim"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params["n_kv_heads"],
        "rms_norm_eps": params["norm_eps"],
        "vocab_size": params["vocab_size"],
        "max_position_embeddings": params["max_position_embeddings"],
        "tie_word_embeddings": false,
        "hidden_act": "silu",
        "q_lora_rank": params["q_lora_rank"],
        "kv_lora_rank": params["kv_lora_rank"],
        "qk_nope_head_dim": params["qk_nope_head_dim"],
        "qk_rope_head_dim": params["qk_rope_head_dim"],
        "v_head_dim": params["v_head_dim"],
        "n_routed_experts": moe["num_experts"],
        "num_experts_per_tok": moe["num_experts_per_tok"],
        "moe_intermediate_size": moe["expert_hidden_dim"],
        "n_shared_experts": moe["num_shared_experts"],
        "first_k_dense_replace": moe["first_k_dense_replace"],
        "routed_scaling_factor": moe["routed_scale"],
        "norm_topk_prob": true,
        "n_group": 1,
        "topk_group": 1,
        "rope_interleave": rope_interleave,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": params["rope_theta"],
            "factor": yarn["factor"],
            "original_max_position_embeddings": yarn["original_max_position_embeddings"],
            "beta_fast": yarn["beta"],
            "beta_slow": yarn["alpha"],
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": params["llama_4_scaling"]["beta"],
        },
    });
    if params["quantization"]["qformat_weight"].is_string() {
        config["quantization_config"] = json!({
            "quant_method": "fp8",
            "activation_scheme": "static",
            "weight_block_size": null,
            "modules_to_not_convert": ["lm_head"],
        });
    } else if !params["quantization"].is_null() {
        config["quantization_config"] = params["quantization"].clone();
    }
    config
}
