//! How heads are rotated, and queries scaled. A file that asks for any other rotation than [`crate::rope`] computes is
//! refused.

use serde_json::json;

use super::super::fields::{Fields, Report};
use super::super::parse::{rotated, transpose};
use super::super::{AttentionSpec, MAX_CONTEXT, QueryScaling, RopeSpec, YarnSpec};

/// `rope_parameters`, or the older `rope_theta` beside `rope_scaling`.
pub(super) fn read(
    fields: &mut Fields<'_>,
    report: &mut Report,
    attention: Option<&AttentionSpec>,
) -> Option<(RopeSpec, Option<QueryScaling>)> {
    let theta_range = 2.0..=1e12;
    let outer_theta = match fields.has("rope_theta") {
        true => fields.real(report, "rope_theta", theta_range.clone()),
        false => {
            fields.ignore(&["rope_theta"]);
            None
        }
    };
    // DeepSeek-V3 scales scores as well, Mistral4 does not.
    let scales_scores = fields.text("model_type") == Some("deepseek_v3");
    let mut object = match fields.has("rope_parameters") {
        true => {
            if let Some(told) = fields.value("rope_parameters") {
                let why = "what rope_parameters says, or nothing";
                fields.fixed_if_there(report, "rope_scaling", told, why);
            }
            fields.object(report, "rope_parameters")?
        }
        false if fields.has("rope_scaling") => fields.object(report, "rope_scaling")?,
        false => fields.required_object(
            report,
            "rope_parameters",
            "an object with rope_theta and yarn's keys",
        )?,
    };
    let theta = match outer_theta {
        Some(theta) if !object.has("rope_theta") => Some(theta),
        Some(theta) => object.real(report, "rope_theta", theta..=theta),
        None => object.real(report, "rope_theta", theta_range),
    };
    object.ignore(&["max_position_embeddings"]);
    let why = "the borders of yarn's ramp are whole pairs";
    object.fixed_if_there(report, "truncate", &json!(true), why);
    read_rotated_part(&mut object, report, attention);
    let kind = object.text("rope_type").or(object.text("type"));
    object.ignore(&["type", "rope_type"]);
    let yarn = match kind {
        Some("yarn") => Some(read_yarn(&mut object, report, scales_scores)),
        Some("default") => {
            object.ignore(&["original_max_position_embeddings", "factor"]);
            None
        }
        found @ (Some(_) | None) => {
            report.refuse(object.key("rope_type"), json!(found), "\"yarn\" or \"default\"");
            return None;
        }
    };
    if let Some(kind) = kind {
        object.fixed_if_there(report, "type", &json!(kind), "what rope_type says, or nothing");
    }
    let query_scaling = object
        .has("llama_4_scaling_beta")
        .then(|| read_scaling(&mut object, report));
    object.finish(report);
    let rope = RopeSpec {
        dim: attention.map(rotated)?,
        theta: theta?,
        yarn: transpose(yarn)?,
    };
    Some((rope, transpose(query_scaling)?))
}

/// How much of a head is rotated: of a latent one what `qk_rope_head_dim` says, as a part of the whole head or of
/// itself; of any other all.
fn read_rotated_part(object: &mut Fields<'_>, report: &mut Report, attention: Option<&AttentionSpec>) {
    let of_head = match attention {
        Some(AttentionSpec::Mla(mla)) => {
            let rotated = f64::from(mla.qk_rope_head_dim);
            rotated / (rotated + f64::from(mla.qk_nope_head_dim))
        }
        Some(AttentionSpec::Gqa(_)) => 1.0,
        None => {
            object.ignore(&["partial_rotary_factor"]);
            return;
        }
    };
    let part = object.real_or(report, "partial_rotary_factor", 0.0..=1.0, 1.0);
    if let Some(part) = part
        && part != 1.0
        && (part - of_head).abs() > 1e-6
    {
        let expected = match of_head {
            1.0 => "1: all of a head is rotated".to_owned(),
            of_head => format!("{of_head}, the part of a head that qk_rope_head_dim is, or 1"),
        };
        report.refuse(object.key("partial_rotary_factor"), part, expected);
    }
}

fn read_yarn(object: &mut Fields<'_>, report: &mut Report, scales_scores: bool) -> Option<YarnSpec> {
    let factor = object.real(report, "factor", 1.0..=65536.0);
    let original_context = object.count(report, "original_max_position_embeddings", 1..=MAX_CONTEXT);
    let beta_fast = object.real_or(report, "beta_fast", 1e-6..=1e6, 32.0);
    let beta_slow = object.real_or(report, "beta_slow", 1e-6..=1e6, 1.0);
    if let (Some(fast), Some(slow)) = (beta_fast, beta_slow)
        && fast <= slow
    {
        let expected = format!("more than {}, which is {slow}", object.key("beta_slow"));
        report.refuse(object.key("beta_fast"), fast, expected);
    }
    // Rotations are scaled by attention_factor, else by what mscale gives over what mscale_all_dim gives; scores, where
    // they are, by what mscale_all_dim gives.
    if factor == Some(1.0) {
        object.real_or(report, "attention_factor", 1.0..=1.0, 1.0);
    } else if scales_scores {
        object.real(report, "attention_factor", 1.0..=1.0);
        object.real_or(report, "mscale_all_dim", 0.0..=0.0, 0.0);
    } else if object.has("attention_factor") {
        object.real(report, "attention_factor", 1.0..=1.0);
    } else if let Some(mscale) = object.real(report, "mscale", 1e-6..=1e6) {
        object.real(report, "mscale_all_dim", mscale..=mscale);
    }
    object.ignore(&["mscale", "mscale_all_dim", "attention_factor"]);
    Some(YarnSpec {
        factor: factor?,
        original_context: original_context?,
        beta_fast: beta_fast?,
        beta_slow: beta_slow?,
    })
}

fn read_scaling(object: &mut Fields<'_>, report: &mut Report) -> Option<QueryScaling> {
    let original_context = object.count(report, "original_max_position_embeddings", 1..=MAX_CONTEXT);
    let beta = object.real(report, "llama_4_scaling_beta", 0.0..=16.0);
    Some(QueryScaling {
        original_context: original_context?,
        beta: beta?,
    })
}
