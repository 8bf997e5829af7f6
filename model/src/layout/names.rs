//! What Hugging Face calls the tensors of the consolidated layout.
//!
//! A name is `module.parameter`. Modules are translated both ways by one table; experts that are stored as one tensor
//! of three dimensions are cut by the caller at the places that [`HuggingFaceNames::place`] gives.

use std::fmt;

/// Modules of a layer: consolidated, then Hugging Face.
const LAYER_MODULES: [(&str, &str); 13] = [
    ("attention_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attention.wq", "self_attn.q_proj"),
    ("attention.wk", "self_attn.k_proj"),
    ("attention.wv", "self_attn.v_proj"),
    ("attention.wo", "self_attn.o_proj"),
    ("attention.wq_a", "self_attn.q_a_proj"),
    ("attention.q_a_norm", "self_attn.q_a_layernorm"),
    ("attention.wq_b", "self_attn.q_b_proj"),
    ("attention.wkv_a_with_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attention.kv_a_norm", "self_attn.kv_a_layernorm"),
    ("attention.wkv_b", "self_attn.kv_b_proj"),
    ("gate", "mlp.gate"),
];
/// Feed-forwards of a layer.
const FEED_FORWARDS: [(&str, &str); 2] = [("feed_forward", "mlp"), ("shared_experts", "mlp.shared_experts")];
/// Feed-forwards of a layer's routed experts: a number follows.
const EXPERTS: (&str, &str) = ("experts.", "mlp.experts.");
/// Matrices of a feed-forward.
const MATRICES: [(&str, &str); 3] = [("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")];
/// Modules beside the layers and the head.
const WHOLE_MODULES: [(&str, &str); 2] = [("tok_embeddings", "embed_tokens"), ("norm", "norm")];
/// The head.
const HEAD: &str = "output";
/// What begins the names of the language model, and what its head is called: of the model alone and inside others.
const PREFIXES: [(&str, &str); 3] = [
    ("language_model.model.", "language_model.lm_head"),
    ("model.language_model.", "lm_head"),
    ("model.", "lm_head"),
];

/// Where a stored tensor belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is the tensor of this consolidated name.
    Whole(String),
    /// It holds a matrix or a scale of every routed expert of a layer, the expert as its first dimension.
    Experts {
        /// What the consolidated names begin with: `layers.3.experts.`
        prefix: String,
        /// The matrices that it holds of an expert, one after the other.
        matrices: &'static [&'static str],
        /// The last part of the consolidated names.
        parameter: String,
    },
}

/// The names in one checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HuggingFaceNames {
    prefix: &'static str,
    head: &'static str,
}

impl HuggingFaceNames {
    /// The names of a checkpoint that has the tensors for which `has` is true.
    pub fn find(has: impl Fn(&str) -> bool) -> Self {
        let there = |(prefix, _): &&(&str, &str)| has(&format!("{prefix}embed_tokens.weight"));
        let &(prefix, head) = PREFIXES.iter().find(there).unwrap_or(&PREFIXES[2]);
        Self { prefix, head }
    }

    /// Where a tensor of this shape belongs; nowhere if it is none of the language model's.
    pub fn place(&self, name: &str, shape: &[u64]) -> Option<Place> {
        if let Some(place) = self.fused(name, shape) {
            return Some(place);
        }
        let (module, parameter) = name.rsplit_once('.')?;
        let module = if module == self.head {
            HEAD.to_owned()
        } else {
            translate(module.strip_prefix(self.prefix)?, Direction::ToConsolidated)?
        };
        Some(Place::Whole(format!(
            "{module}.{}",
            parameter_of(parameter, shape.len() == 2)
        )))
    }

    /// All experts of a layer in one tensor: `layers.3.mlp.experts.gate_up_proj`, and what belongs to it.
    fn fused(&self, name: &str, shape: &[u64]) -> Option<Place> {
        let (layer, rest) = name
            .strip_prefix(self.prefix)?
            .strip_prefix("layers.")?
            .split_once('.')?;
        let rest = rest.strip_prefix(EXPERTS.1)?;
        let (matrices, rest): (&'static [&'static str], &str) =
            if let Some(rest) = rest.strip_prefix("gate_up_proj") {
                (&["w1", "w3"], rest)
            } else {
                (&["w2"], rest.strip_prefix("down_proj")?)
            };
        let parameter = match rest {
            "" => "weight",
            _ => {
                let of_expert = shape.get(1..)?;
                parameter_of(rest.strip_prefix('_')?, of_expert.iter().any(|&dim| dim > 1))
            }
        };
        is_number(layer).then(|| Place::Experts {
            prefix: format!("layers.{layer}.{}", EXPERTS.0),
            matrices,
            parameter: parameter.to_owned(),
        })
    }

    /// What the checkpoint calls the tensor of a consolidated name; the name itself if it is not known.
    pub fn name_of(&self, consolidated: &str) -> String {
        let Some((module, parameter)) = consolidated.rsplit_once('.') else {
            return consolidated.to_owned();
        };
        if module == HEAD {
            return format!("{}.{parameter}", self.head);
        }
        match translate(module, Direction::ToHuggingFace) {
            Some(module) => format!("{}{module}.{parameter}", self.prefix),
            None => consolidated.to_owned(),
        }
    }
}

/// A parameter's consolidated name. A multiplier of the whole tensor is a `qscale_weight` there, a table of them a
/// `weight_scale`; here both are the inverse of what weights were once multiplied with.
fn parameter_of(parameter: &str, is_table: bool) -> &str {
    match parameter {
        "weight_scale_inv" | "scale_inv" if is_table => "weight_scale",
        "weight_scale_inv" | "scale_inv" => "qscale_weight",
        "activation_scale" => "qscale_act",
        other => other,
    }
}

#[derive(Clone, Copy)]
enum Direction {
    ToConsolidated,
    ToHuggingFace,
}

impl Direction {
    /// The two sides of a pair: from, then to.
    fn order<'a>(self, pair: &(&'a str, &'a str)) -> (&'a str, &'a str) {
        match self {
            Self::ToConsolidated => (pair.1, pair.0),
            Self::ToHuggingFace => (pair.0, pair.1),
        }
    }

    fn find<'a>(self, table: &[(&'a str, &'a str)], name: &str) -> Option<&'a str> {
        let mut pairs = table.iter().map(|pair| self.order(pair));
        pairs.find_map(|(from, to)| (from == name).then_some(to))
    }
}

/// A module other than the head, without what begins all names.
fn translate(module: &str, direction: Direction) -> Option<String> {
    if let Some(whole) = direction.find(&WHOLE_MODULES, module) {
        return Some(whole.to_owned());
    }
    let (layer, rest) = module.strip_prefix("layers.")?.split_once('.')?;
    if !is_number(layer) {
        return None;
    }
    let in_layer = |rest: fmt::Arguments<'_>| Some(format!("layers.{layer}.{rest}"));
    if let Some(rest) = direction.find(&LAYER_MODULES, rest) {
        return in_layer(format_args!("{rest}"));
    }
    let (parent, matrix) = rest.rsplit_once('.')?;
    let matrix = direction.find(&MATRICES, matrix)?;
    if let Some(parent) = direction.find(&FEED_FORWARDS, parent) {
        return in_layer(format_args!("{parent}.{matrix}"));
    }
    let (from, to) = direction.order(&EXPERTS);
    let expert = parent.strip_prefix(from).filter(|expert| is_number(expert))?;
    in_layer(format_args!("{to}{expert}.{matrix}"))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ModelSpec;
    use crate::tensors::language_tensors;

    fn alone() -> HuggingFaceNames {
        HuggingFaceNames::find(|_| false)
    }

    #[test]
    fn names_of_the_whole_family_are_translated_both_ways() {
        for params in ["params/large-3.json", "params/ministral-3-8b.json"] {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../tests/fixtures")
                .join(params);
            let spec = ModelSpec::from_json(&std::fs::read(&path).expect("a fixture"), &path).expect("valid");
            let inside = HuggingFaceNames::find(|name| name == "language_model.model.embed_tokens.weight");
            let beside = HuggingFaceNames::find(|name| name == "model.language_model.embed_tokens.weight");
            for names in [alone(), inside, beside] {
                for tensor in language_tensors(&spec) {
                    let name = tensor.id.to_string();
                    let other = names.name_of(&name);
                    assert_ne!(other, name);
                    assert_eq!(names.place(&other, &[2, 3]), Some(Place::Whole(name)));
                }
            }
        }
    }

    #[test]
    fn names_are_those_that_are_published() {
        for (consolidated, published) in [
            ("output.weight", "lm_head.weight"),
            ("tok_embeddings.weight", "model.embed_tokens.weight"),
            ("norm.weight", "model.norm.weight"),
            (
                "layers.7.attention.wkv_a_with_mqa.weight",
                "model.layers.7.self_attn.kv_a_proj_with_mqa.weight",
            ),
            (
                "layers.7.attention.kv_a_norm.weight",
                "model.layers.7.self_attn.kv_a_layernorm.weight",
            ),
            (
                "layers.0.feed_forward.w2.weight",
                "model.layers.0.mlp.down_proj.weight",
            ),
            ("layers.7.gate.weight", "model.layers.7.mlp.gate.weight"),
            (
                "layers.7.shared_experts.w3.weight_scale",
                "model.layers.7.mlp.shared_experts.up_proj.weight_scale",
            ),
            (
                "layers.7.experts.15.w1.weight_packed",
                "model.layers.7.mlp.experts.15.gate_proj.weight_packed",
            ),
        ] {
            assert_eq!(alone().name_of(consolidated), published);
            assert_eq!(
                alone().place(published, &[2, 3]),
                Some(Place::Whole(consolidated.to_owned()))
            );
        }
        let whole = |name: &str| Some(Place::Whole(name.to_owned()));
        let q_proj = "model.layers.1.self_attn.q_proj.weight_scale_inv";
        assert_eq!(
            alone().place(q_proj, &[1, 1]),
            whole("layers.1.attention.wq.weight_scale")
        );
        assert_eq!(
            alone().place(q_proj, &[]),
            whole("layers.1.attention.wq.qscale_weight")
        );
        assert_eq!(
            alone().place("model.layers.1.mlp.up_proj.activation_scale", &[]),
            whole("layers.1.feed_forward.w3.qscale_act")
        );
    }

    #[test]
    fn experts_in_one_tensor_are_known_and_other_tensors_are_not() {
        let experts = |matrices: &'static [&'static str], parameter: &str| {
            Some(Place::Experts {
                prefix: "layers.3.experts.".to_owned(),
                matrices,
                parameter: parameter.to_owned(),
            })
        };
        let of =
            |rest: &str, shape: &[u64]| alone().place(&format!("model.layers.3.mlp.experts.{rest}"), shape);
        assert_eq!(of("gate_up_proj", &[8, 64, 32]), experts(&["w1", "w3"], "weight"));
        assert_eq!(of("down_proj", &[8, 32, 32]), experts(&["w2"], "weight"));
        assert_eq!(
            of("down_proj_scale_inv", &[8, 2, 1]),
            experts(&["w2"], "weight_scale")
        );
        assert_eq!(
            of("gate_up_proj_activation_scale", &[8]),
            experts(&["w1", "w3"], "qscale_act")
        );
        for other in [
            "model.vision_tower.transformer.layers.0.attention.q_proj.weight",
            "model.layers.x.self_attn.q_proj.weight",
            "model.layers.3.mlp.experts.up_proj.weight",
            "model.layers.3.self_attn.rotary_emb.inv_freq",
            "embed_tokens.weight",
            "norm",
        ] {
            assert_eq!(alone().place(other, &[2, 3]), None, "{other}");
        }
    }
}
