//! config.json of Hugging Face's layout, key by key: Ministral3, Mistral4 and what is written as DeepSeek-V3.
//!
//! A model with a vision tower has the language model's parameters in `text_config`. As in params.json, neither scores
//! nor rotations are scaled by YaRN's attention factor: a file that asks for it is refused.

mod rope;

use serde_json::{Value, json};

use super::fields::{Fields, Report};
use super::parse::read_gqa;
use super::{
    AttentionSpec, FP8_BLOCK, MAX_CONTEXT, MAX_DIM, MAX_EXPERTS, MAX_EXPERTS_PER_TOKEN, MAX_HEAD_DIM,
    MAX_HEADS, MAX_HIDDEN_DIM, MAX_LAYERS, MAX_SHARED_EXPERTS, MAX_VOCAB, MlaSpec, ModelSpec, MoeSpec,
    Quantization, RopeRows, WIDTH_MULTIPLE, quantization,
};

/// Keys of training, of other programs, or that repeat what the tokenizer says.
const IGNORED: [&str; 33] = [
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "id2label",
    "image_token_id",
    "image_token_index",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "max_window_layers",
    "multimodal_projector_bias",
    "num_nextn_predict_layers",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "projector_hidden_act",
    "qk_head_dim",
    "return_dict",
    "spatial_merge_size",
    "tf_legacy_loss",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vision_config",
    "vision_feature_layer",
    "topk_method",
    "aux_loss_alpha",
];

/// Models whose language part is read.
const MODEL_TYPES: &str = "ministral3, mistral4 or deepseek_v3, alone or as text_config of a mistral3";

/// Every part is read before any is missed, so that all faults are noted.
pub(super) fn read_model(fields: &mut Fields<'_>, report: &mut Report) -> Option<ModelSpec> {
    fields.ignore(&IGNORED);
    let has_vision = fields.has("vision_config");
    let quantization = match fields.object(report, "quantization_config") {
        Some(object) => read_quantization(object, report),
        None => Some(Quantization::None),
    };
    let spec = if fields.has("text_config") {
        fields.ignore(&["model_type"]);
        let tied = fields.flag(report, "tie_word_embeddings", false);
        let mut text = fields.object(report, "text_config")?;
        let spec = read_text(&mut text, report, tied.unwrap_or(false));
        text.finish(report);
        spec
    } else {
        read_text(fields, report, false)
    };
    Some(ModelSpec {
        has_vision,
        quantization: quantization?,
        ..spec?
    })
}

/// `tied`: what the key of tied embeddings is where it is missing.
fn read_text(fields: &mut Fields<'_>, report: &mut Report, tied: bool) -> Option<ModelSpec> {
    fields.ignore(&IGNORED);
    let is_latent = match fields.text("model_type") {
        Some("ministral3") => false,
        Some("mistral4" | "deepseek_v3") => true,
        found @ (Some(_) | None) => {
            report.refuse(fields.key("model_type"), json!(found), MODEL_TYPES);
            return None;
        }
    };
    let dim = fields.multiple(report, "hidden_size", WIDTH_MULTIPLE, WIDTH_MULTIPLE..=MAX_DIM);
    let n_layers = fields.count(report, "num_hidden_layers", 1..=MAX_LAYERS);
    let vocab_size = fields.count(report, "vocab_size", 1..=MAX_VOCAB);
    let norm_eps = fields.real(report, "rms_norm_eps", 1e-12..=0.1);
    let max_context = fields.count(report, "max_position_embeddings", 1..=MAX_CONTEXT);
    let tied_embeddings = fields.flag(report, "tie_word_embeddings", tied);
    for (key, right, why) in [
        ("hidden_act", json!("silu"), "the only one that is served"),
        ("sliding_window", Value::Null, "every token is attended to"),
        ("attention_bias", json!(false), "projections have no bias"),
        ("mlp_bias", json!(false), "projections have no bias"),
    ] {
        fields.fixed_if_there(report, key, &right, why);
    }
    let (attention, rope_rows, moe) = if is_latent {
        let interleaved = fields.flag(report, "rope_interleave", true);
        let rows = interleaved.map(|is| match is {
            true => RopeRows::Interleaved,
            false => RopeRows::HalfSplit,
        });
        let attention = read_mla(fields, report).map(AttentionSpec::Mla);
        (attention, rows, read_moe(fields, report, n_layers).map(Some))
    } else {
        let n_heads = fields.count(report, "num_attention_heads", 1..=MAX_HEADS);
        let gqa = read_gqa(fields, report, n_heads, ["num_key_value_heads", "head_dim"]);
        (gqa.map(AttentionSpec::Gqa), Some(RopeRows::HalfSplit), Some(None))
    };
    let rope = rope::read(fields, report, attention.as_ref());
    let any_dense = match &moe {
        Some(Some(moe)) => moe.first_layer > 0,
        Some(None) => true,
        None => false,
    };
    let dense_hidden_dim = if any_dense {
        let range = WIDTH_MULTIPLE..=MAX_HIDDEN_DIM;
        fields.multiple(report, "intermediate_size", WIDTH_MULTIPLE, range)
    } else {
        fields.ignore(&["intermediate_size"]);
        Some(0)
    };
    let (rope, query_scaling) = rope?;
    Some(ModelSpec {
        dim: dim?,
        n_layers: n_layers?,
        vocab_size: vocab_size?,
        norm_eps: norm_eps? as f32,
        max_context: max_context?,
        attention: attention?,
        rope,
        rope_rows: rope_rows?,
        query_scaling,
        tied_embeddings: tied_embeddings?,
        dense_hidden_dim: dense_hidden_dim?,
        moe: moe?,
        quantization: Quantization::None,
        has_vision: false,
    })
}

fn read_mla(fields: &mut Fields<'_>, report: &mut Report) -> Option<MlaSpec> {
    let rank = WIDTH_MULTIPLE..=MAX_DIM;
    let head = WIDTH_MULTIPLE..=MAX_HEAD_DIM;
    let n_heads = fields.count(report, "num_attention_heads", 1..=MAX_HEADS);
    let q_lora_rank = fields.multiple(report, "q_lora_rank", WIDTH_MULTIPLE, rank.clone());
    let kv_lora_rank = fields.multiple(report, "kv_lora_rank", WIDTH_MULTIPLE, rank);
    let nope = fields.multiple(report, "qk_nope_head_dim", WIDTH_MULTIPLE, head.clone());
    let rope = fields.multiple(report, "qk_rope_head_dim", WIDTH_MULTIPLE, head.clone());
    let v_head_dim = fields.multiple(report, "v_head_dim", WIDTH_MULTIPLE, head);
    // The width of the whole head or of its rotated part, as the program that wrote it understood the key.
    fields.ignore(&["head_dim"]);
    if let Some(n_heads) = n_heads {
        let why = "num_attention_heads, since latent attention has keys and values for every head";
        fields.fixed_if_there(report, "num_key_value_heads", &json!(n_heads), why);
    }
    Some(MlaSpec {
        n_heads: n_heads?,
        q_lora_rank: q_lora_rank?,
        kv_lora_rank: kv_lora_rank?,
        qk_nope_head_dim: nope?,
        qk_rope_head_dim: rope?,
        v_head_dim: v_head_dim?,
    })
}

fn read_moe(fields: &mut Fields<'_>, report: &mut Report, n_layers: Option<u32>) -> Option<MoeSpec> {
    let last_layer = n_layers.unwrap_or(MAX_LAYERS).saturating_sub(1);
    let first_layer = fields.count(report, "first_k_dense_replace", 0..=last_layer);
    let n_experts = fields.count(report, "n_routed_experts", 1..=MAX_EXPERTS);
    let most = n_experts.unwrap_or(MAX_EXPERTS).min(MAX_EXPERTS_PER_TOKEN);
    let n_experts_per_token = fields.count(report, "num_experts_per_tok", 1..=most);
    let range = WIDTH_MULTIPLE..=MAX_HIDDEN_DIM;
    let expert_hidden_dim = fields.multiple(report, "moe_intermediate_size", WIDTH_MULTIPLE, range);
    let n_shared_experts = fields.count(report, "n_shared_experts", 0..=MAX_SHARED_EXPERTS);
    let routed_scale = fields.real_or(report, "routed_scaling_factor", 1e-6..=1e6, 1.0);
    for (key, right, why) in [
        ("n_group", json!(1), "a token's experts are chosen among all"),
        ("topk_group", json!(1), "a token's experts are chosen among all"),
        (
            "norm_topk_prob",
            json!(true),
            "weights of the chosen experts sum to 1",
        ),
        (
            "moe_layer_freq",
            json!(1),
            "every layer from the first has experts",
        ),
    ] {
        fields.fixed_if_there(report, key, &right, why);
    }
    let (softmax, why) = (json!("softmax"), "the router of this family");
    // DeepSeek-V3 itself scores by a sigmoid and says nothing.
    if fields.text("model_type") == Some("deepseek_v3") {
        fields.fixed(report, "scoring_func", &softmax, why);
    } else {
        fields.fixed_if_there(report, "scoring_func", &softmax, why);
    }
    if let (Some(shared), Some(width)) = (n_shared_experts, expert_hidden_dim)
        && shared * width > MAX_HIDDEN_DIM
    {
        let most = MAX_HIDDEN_DIM / width;
        let expected = format!("at most {most} at moe_intermediate_size {width}");
        report.refuse(fields.key("n_shared_experts"), shared, expected);
    }
    Some(MoeSpec {
        first_layer: first_layer?,
        n_experts: n_experts?,
        n_experts_per_token: n_experts_per_token?,
        expert_hidden_dim: expert_hidden_dim?,
        n_shared_experts: n_shared_experts?,
        routed_scale: routed_scale? as f32,
    })
}

/// What params.json calls `quantization`, or the format that Hugging Face's own code writes.
fn read_quantization(mut fields: Fields<'_>, report: &mut Report) -> Option<Quantization> {
    if fields.text("quant_method") != Some("fp8") {
        return quantization::read(fields, report);
    }
    fields.ignore(&[
        "activation_scheme",
        "dequantize",
        "fmt",
        "modules_to_not_convert",
        "scale_fmt",
    ]);
    let format = match fields.has("weight_block_size") {
        true => Quantization::Fp8Block,
        false => Quantization::Fp8Tensor,
    };
    let block = json!([FP8_BLOCK, FP8_BLOCK]);
    let why = "the only block that is served, or null for one scale per tensor";
    fields.fixed_if_there(report, "weight_block_size", &block, why);
    fields.finish(report);
    Some(format)
}
