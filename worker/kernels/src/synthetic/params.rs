//! params.json of a model with fewer layers and experts than the published one, or with weights stored in another way.

use serde_json::{Value, json};

use super::Format;

/// Parameters that cannot be changed as was asked.
#[derive(Debug, thiserror::Error)]
pub enum ParamsError {
    /// They are no JSON.
    #[error("no parameters of a model: {0}")]
    Json(#[from] serde_json::Error),
    /// A model without experts has no number of them.
    #[error("--experts: this model has none")]
    NoExperts,
}

/// The parameters without the vision tower. What is not given stays as it is.
pub fn changed(
    params: &str,
    layers: Option<u32>,
    experts: Option<u32>,
    format: Option<Format>,
) -> Result<Value, ParamsError> {
    let mut params: Value = serde_json::from_str(params)?;
    if let Some(all) = params.as_object_mut() {
        all.remove("vision_encoder");
        if let Some(format) = format {
            all.remove("quantization");
            if let Some(quantization) = quantization(format) {
                all.insert("quantization".to_owned(), quantization);
            }
        }
    }
    if let Some(layers) = layers {
        params["n_layers"] = json!(layers);
        if let Some(dense) = params.pointer_mut("/moe/first_k_dense_replace") {
            let usual = dense.as_u64().unwrap_or(0);
            *dense = json!(usual.min(u64::from(layers) - 1));
        }
    }
    if let Some(experts) = experts {
        let known = params.pointer_mut("/moe/num_experts");
        *known.ok_or(ParamsError::NoExperts)? = json!(experts);
    }
    Ok(params)
}

/// The object that says how weights are stored, as Mistral publishes it.
fn quantization(format: Format) -> Option<Value> {
    let compressed = |name: &str, weights: Value| {
        json!({
            "quant_method": "compressed-tensors",
            "format": name,
            "ignore": [],
            "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } },
        })
    };
    match format {
        Format::Bf16 => None,
        Format::Fp8 => Some(compressed(
            "float-quantized",
            json!({
                "num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128],
                "symmetric": true, "dynamic": false,
            }),
        )),
        Format::Fp8Tensor => Some(json!({ "qformat_weight": "fp8_e4m3", "qscheme_act": "NO_SCALES" })),
        Format::Nvfp4 => Some(compressed(
            "nvfp4-pack-quantized",
            json!({
                "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
                "symmetric": true, "dynamic": false,
            }),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Shape;
    use super::*;

    #[test]
    fn shapes_are_those_of_the_published_models() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/params");
        for (name, shape) in [
            ("large-3", Shape::MistralLarge3),
            ("small-4-119b", Shape::Small4),
            ("ministral-3-8b", Shape::Ministral8b),
        ] {
            let text = std::fs::read_to_string(fixtures.join(format!("{name}.json"))).expect("a fixture");
            let published: Value = serde_json::from_str(&text).expect("JSON");
            let known: Value = serde_json::from_str(shape.params()).expect("JSON");
            assert_eq!(known, published, "{name}");
        }
    }

    #[test]
    fn every_format_and_size_is_one_that_is_served() {
        use clap::ValueEnum;
        for format in Format::value_variants() {
            for (shape, experts) in [
                (Shape::MistralLarge3, Some(8)),
                (Shape::Small4, None),
                (Shape::Ministral8b, None),
            ] {
                for layers in [Some(1), Some(5), None] {
                    let params = changed(shape.params(), layers, experts, Some(*format)).expect("parameters");
                    let text = serde_json::to_vec(&params).expect("JSON");
                    let spec = tramontane_model::spec::ModelSpec::from_json(&text, Path::new("params.json"));
                    let spec = spec.expect("served");
                    assert_eq!(spec.quantization, format.quantization());
                    assert!(spec.n_experts() == 0 || spec.is_moe_layer(spec.n_layers - 1));
                }
            }
        }
        let dense = Shape::Ministral8b.params();
        assert!(matches!(
            changed(dense, None, Some(8), None),
            Err(ParamsError::NoExperts)
        ));
    }
}
