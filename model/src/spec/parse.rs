//! params.json, key by key: ranges of each value, then what they must be to each other.
//!
//! Whole numbers and their bounds are those of config.json as well (`hugging_face`).

use std::path::Path;

use serde_json::{Map, Value, json};

use super::fields::{Fields, Report};
use super::{
    AttentionSpec, GqaSpec, Layout, MAX_CONTEXT, MAX_DIM, MAX_EXPERTS, MAX_EXPERTS_PER_TOKEN, MAX_HEAD_DIM,
    MAX_HEADS, MAX_HIDDEN_DIM, MAX_LAYERS, MAX_SHARED_EXPERTS, MAX_VOCAB, MlaSpec, ModelSpec, MoeSpec,
    Quantization, QueryScaling, RopeRows, RopeSpec, SpecError, WIDTH_MULTIPLE, YarnSpec, hugging_face,
    quantization,
};

/// The keys that only a model with latent attention has.
const MLA_KEYS: [&str; 5] = [
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
];

/// Parses and checks; gives the spec and the keys that nobody knows.
pub(super) fn parse(
    bytes: &[u8],
    path: &Path,
    layout: Layout,
) -> Result<(ModelSpec, Vec<String>), SpecError> {
    let map: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| SpecError::Json {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    let mut report = Report::default();
    let mut fields = Fields::new("", &map);
    let spec = match layout {
        Layout::Consolidated => read_model(&mut fields, &mut report),
        Layout::HuggingFace => hugging_face::read_model(&mut fields, &mut report),
    };
    fields.finish(&mut report);
    match spec {
        Some(spec) if report.faults.is_empty() => Ok((spec, report.unknown)),
        Some(_) | None => Err(SpecError::Invalid {
            path: path.to_owned(),
            faults: report.faults,
        }),
    }
}

/// Every part is read before any is missed, so that all faults are noted.
fn read_model(fields: &mut Fields<'_>, report: &mut Report) -> Option<ModelSpec> {
    // The first three are hints for training or other servers; the tower's sizes matter only to who runs it.
    fields.ignore(&["max_seq_len", "max_batch_size", "model_type", "vision_encoder"]);
    let has_vision = fields.has("vision_encoder");
    let dim = fields.multiple(report, "dim", WIDTH_MULTIPLE, WIDTH_MULTIPLE..=MAX_DIM);
    let n_layers = fields.count(report, "n_layers", 1..=MAX_LAYERS);
    let vocab_size = fields.count(report, "vocab_size", 1..=MAX_VOCAB);
    let norm_eps = fields.real(report, "norm_eps", 1e-12..=0.1);
    let max_context = fields.count(report, "max_position_embeddings", 1..=MAX_CONTEXT);
    let tied_embeddings = fields.flag(report, "tied_embeddings", false);
    let attention = read_attention(fields, report);
    let rope = read_rope(fields, report, attention.as_ref().map(rotated));
    let why = "every token is attended to";
    fields.fixed_if_there(report, "sliding_window", &Value::Null, why);
    let query_scaling = fields
        .object(report, "llama_4_scaling")
        .map(|object| read_scaling(object, report));
    let moe = fields
        .object(report, "moe")
        .map(|object| read_moe(object, report, n_layers));
    let any_dense = match &moe {
        Some(Some(moe)) => moe.first_layer > 0,
        Some(None) => false,
        None => true,
    };
    let dense_hidden_dim = if any_dense {
        fields.multiple(
            report,
            "hidden_dim",
            WIDTH_MULTIPLE,
            WIDTH_MULTIPLE..=MAX_HIDDEN_DIM,
        )
    } else {
        fields.ignore(&["hidden_dim"]);
        Some(0)
    };
    let quantization = match fields.object(report, "quantization") {
        Some(object) => quantization::read(object, report),
        None => Some(Quantization::None),
    };
    Some(ModelSpec {
        dim: dim?,
        n_layers: n_layers?,
        vocab_size: vocab_size?,
        norm_eps: norm_eps? as f32,
        max_context: max_context?,
        attention: attention?,
        rope: rope?,
        rope_rows: RopeRows::Interleaved,
        query_scaling: transpose(query_scaling)?,
        tied_embeddings: tied_embeddings?,
        dense_hidden_dim: dense_hidden_dim?,
        moe: transpose(moe)?,
        quantization: quantization?,
        has_vision,
    })
}

/// Nothing where the object is missing; gives up where it is there and bad.
pub(super) fn transpose<T>(part: Option<Option<T>>) -> Option<Option<T>> {
    match part {
        Some(read) => read.map(Some),
        None => Some(None),
    }
}

/// Rotated values of a head.
pub(super) fn rotated(attention: &AttentionSpec) -> u32 {
    match attention {
        AttentionSpec::Mla(mla) => mla.qk_rope_head_dim,
        AttentionSpec::Gqa(gqa) => gqa.head_dim,
    }
}

fn read_attention(fields: &mut Fields<'_>, report: &mut Report) -> Option<AttentionSpec> {
    let n_heads = fields.count(report, "n_heads", 1..=MAX_HEADS);
    if MLA_KEYS.iter().any(|key| fields.has(key)) {
        return read_mla(fields, report, n_heads).map(AttentionSpec::Mla);
    }
    fields.ignore(&MLA_KEYS);
    let keys = ["n_kv_heads", "head_dim"];
    read_gqa(fields, report, n_heads, keys).map(AttentionSpec::Gqa)
}

/// `keys`: those of the heads of keys and values, and of a head's width.
pub(super) fn read_gqa(
    fields: &mut Fields<'_>,
    report: &mut Report,
    n_heads: Option<u32>,
    keys: [&'static str; 2],
) -> Option<GqaSpec> {
    let n_kv_heads = fields.count(report, keys[0], 1..=n_heads.unwrap_or(MAX_HEADS));
    let head_dim = fields.multiple(report, keys[1], WIDTH_MULTIPLE, WIDTH_MULTIPLE..=MAX_HEAD_DIM);
    if let (Some(n_heads), Some(n_kv_heads)) = (n_heads, n_kv_heads)
        && n_heads % n_kv_heads != 0
    {
        let expected = format!("a divisor of the number of heads, which is {n_heads}");
        report.refuse(fields.key(keys[0]), n_kv_heads, expected);
    }
    Some(GqaSpec {
        n_heads: n_heads?,
        n_kv_heads: n_kv_heads?,
        head_dim: head_dim?,
    })
}

fn read_mla(fields: &mut Fields<'_>, report: &mut Report, n_heads: Option<u32>) -> Option<MlaSpec> {
    let rank = WIDTH_MULTIPLE..=MAX_DIM;
    let head = WIDTH_MULTIPLE..=MAX_HEAD_DIM;
    let q_lora_rank = fields.multiple(report, "q_lora_rank", WIDTH_MULTIPLE, rank.clone());
    let kv_lora_rank = fields.multiple(report, "kv_lora_rank", WIDTH_MULTIPLE, rank);
    let nope = fields.multiple(report, "qk_nope_head_dim", WIDTH_MULTIPLE, head.clone());
    let rope = fields.multiple(report, "qk_rope_head_dim", WIDTH_MULTIPLE, head.clone());
    let v_head_dim = fields.multiple(report, "v_head_dim", WIDTH_MULTIPLE, head);
    fields.ignore(&["n_kv_heads", "head_dim"]);
    if let Some(n_heads) = n_heads {
        let why = "n_heads, since latent attention has keys and values for every head";
        fields.fixed_if_there(report, "n_kv_heads", &json!(n_heads), why);
    }
    if let (Some(nope), Some(rope)) = (nope, rope) {
        let why = "qk_nope_head_dim plus qk_rope_head_dim";
        fields.fixed_if_there(report, "head_dim", &json!(nope + rope), why);
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

fn read_rope(fields: &mut Fields<'_>, report: &mut Report, dim: Option<u32>) -> Option<RopeSpec> {
    let theta = fields.real(report, "rope_theta", 2.0..=1e12);
    let yarn = fields
        .object(report, "yarn")
        .map(|object| read_yarn(object, report));
    Some(RopeSpec {
        dim: dim?,
        theta: theta?,
        yarn: transpose(yarn)?,
    })
}

fn read_yarn(mut fields: Fields<'_>, report: &mut Report) -> Option<YarnSpec> {
    let factor = fields.real(report, "factor", 1.0..=65536.0);
    let original_context = fields.count(report, "original_max_position_embeddings", 1..=MAX_CONTEXT);
    let beta_fast = fields.real(report, "beta", 1e-6..=1e6);
    let beta_slow = fields.real(report, "alpha", 1e-6..=1e6);
    let why = "scores and rotations are not scaled by yarn's attention factor";
    fields.fixed(report, "apply_scale", &json!(false), why);
    if let (Some(fast), Some(slow)) = (beta_fast, beta_slow)
        && fast <= slow
    {
        report.refuse(
            fields.key("beta"),
            fast,
            format!("more than {}, which is {slow}", fields.key("alpha")),
        );
    }
    fields.finish(report);
    Some(YarnSpec {
        factor: factor?,
        original_context: original_context?,
        beta_fast: beta_fast?,
        beta_slow: beta_slow?,
    })
}

fn read_scaling(mut fields: Fields<'_>, report: &mut Report) -> Option<QueryScaling> {
    let original_context = fields.count(report, "original_max_position_embeddings", 1..=MAX_CONTEXT);
    let beta = fields.real(report, "beta", 0.0..=16.0);
    fields.finish(report);
    Some(QueryScaling {
        original_context: original_context?,
        beta: beta?,
    })
}

fn read_moe(mut fields: Fields<'_>, report: &mut Report, n_layers: Option<u32>) -> Option<MoeSpec> {
    // How the training run was split over devices.
    fields.ignore(&["expert_parallel", "expert_model_parallel"]);
    let last_layer = n_layers.unwrap_or(MAX_LAYERS).saturating_sub(1);
    let first_layer = fields.count(report, "first_k_dense_replace", 0..=last_layer);
    let n_experts = fields.count(report, "num_experts", 1..=MAX_EXPERTS);
    let most = n_experts.unwrap_or(MAX_EXPERTS).min(MAX_EXPERTS_PER_TOKEN);
    let n_experts_per_token = fields.count(report, "num_experts_per_tok", 1..=most);
    let expert_hidden_dim = fields.multiple(
        report,
        "expert_hidden_dim",
        WIDTH_MULTIPLE,
        WIDTH_MULTIPLE..=MAX_HIDDEN_DIM,
    );
    let n_shared_experts = fields.count(report, "num_shared_experts", 0..=MAX_SHARED_EXPERTS);
    let routed_scale = fields.real(report, "routed_scale", 1e-6..=1e6);
    fields.fixed_if_there(
        report,
        "route_every_n",
        &json!(1),
        "every layer from the first has experts",
    );
    let why = "a token's experts are chosen among all";
    fields.fixed_if_there(report, "num_expert_groups", &json!(1), why);
    fields.fixed_if_there(report, "num_expert_groups_per_tok", &json!(1), why);
    if let (Some(shared), Some(width)) = (n_shared_experts, expert_hidden_dim)
        && shared * width > MAX_HIDDEN_DIM
    {
        let expected = format!("at most {} at expert_hidden_dim {width}", MAX_HIDDEN_DIM / width);
        report.refuse(fields.key("num_shared_experts"), shared, expected);
    }
    fields.finish(report);
    Some(MoeSpec {
        first_layer: first_layer?,
        n_experts: n_experts?,
        n_experts_per_token: n_experts_per_token?,
        expert_hidden_dim: expert_hidden_dim?,
        n_shared_experts: n_shared_experts?,
        routed_scale: routed_scale? as f32,
    })
}
