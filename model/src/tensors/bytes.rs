//! The bytes that tensors take on devices, and so each part of the model that can be placed.
//!
//! As devices hold them: codes as stored, and their scales. Caches and scratch are not weights and not here.

use super::{TensorId, TensorSpec, WeightFormat, expert_tensors, owner_tensors, record_bytes, tensor_spec};
use crate::spec::ModelSpec;

/// Bytes on devices of each part that can be placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelBytes {
    /// The embedding, held by the owner of the first stage.
    pub embedding: u64,
    /// The final norm and the output matrix, held by the owner of the last stage. Where the output matrix is the
    /// embedding this is the norm alone: the owner then holds the embedding as well.
    pub head: u64,
    /// Each layer in order.
    pub layers: Vec<LayerBytes>,
}

/// Bytes on devices of one layer's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerBytes {
    /// What the stage's owner holds: attention, norms, dense feed-forward or router and shared experts.
    pub owner: u64,
    /// One routed expert; 0 in a dense layer. All experts of a layer have the same formats and so one size.
    pub expert: u64,
}

impl ModelBytes {
    /// The bytes when every tensor has its usual format: for planning without the checkpoint at hand.
    pub fn usual(spec: &ModelSpec) -> Self {
        Self::with_formats(spec, |tensor| tensor.usual_format)
    }

    /// The bytes when each tensor has the format that `format_of` gives; of a layer's experts it is asked the first.
    pub fn with_formats(spec: &ModelSpec, format_of: impl Fn(&TensorSpec) -> WeightFormat) -> Self {
        let one = |tensor: &TensorSpec| format_of(tensor).device_bytes(tensor.shape);
        let layer = |layer| LayerBytes {
            owner: owner_tensors(spec, layer).iter().map(one).sum(),
            expert: match spec.moe_at(layer) {
                Some(_) => {
                    let matrices = expert_tensors(spec, layer, 0);
                    record_bytes(matrices.iter().map(one).sum(), matrices.iter().map(&format_of))
                }
                None => 0,
            },
        };
        let whole = |id| one(&tensor_spec(spec, id));
        Self {
            embedding: whole(TensorId::Embedding),
            head: match spec.tied_embeddings {
                true => whole(TensorId::FinalNorm),
                false => whole(TensorId::FinalNorm) + whole(TensorId::Head),
            },
            layers: (0..spec.n_layers).map(layer).collect(),
        }
    }

    /// The whole model on one device, each expert once.
    pub fn total(&self, n_experts: u32) -> u64 {
        let layers = self
            .layers
            .iter()
            .map(|layer| layer.owner + layer.expert * u64::from(n_experts));
        self.embedding + self.head + layers.sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::spec::Quantization;

    fn spec(path: &str) -> ModelSpec {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        ModelSpec::from_json(&std::fs::read(&file).expect("a fixture"), &file).expect("a valid spec")
    }

    #[test]
    fn large_3_in_fp8_has_its_published_bytes() {
        let spec = spec("tests/fixtures/params/large-3.json");
        let bytes = ModelBytes::usual(&spec);
        // An expert: three matrices of 29,360,128 bytes and 32 x 56 f32 scales each.
        assert_eq!(bytes.layers[60].expert, 3 * (29_360_128 + 32 * 56 * 4));
        assert_eq!(bytes.layers[0].expert, 0);
        assert_eq!(bytes.embedding, 131_072 * 7168 * 2);
        assert_eq!(bytes.head, 131_072 * 7168 * 2 + 7168 * 2);
        // 681.5 GB with a vision tower of 2.5 billion parameters in BF16.
        let total = bytes.total(128) + 5_000_000_000;
        assert!((680..684).contains(&(total / 1_000_000_000)), "{total}");
        let layer = bytes.layers[30].owner + 128 * bytes.layers[30].expert;
        assert_eq!(layer / 100_000_000, 115, "one layer is 11.6 GB");
    }

    #[test]
    fn large_3_in_nvfp4_has_its_published_bytes() {
        let spec = ModelSpec {
            quantization: Quantization::Nvfp4,
            ..spec("tests/fixtures/params/large-3.json")
        };
        let bytes = ModelBytes::usual(&spec);
        // Codes of half a byte, a scale per 16 of them, a multiplier per matrix.
        assert_eq!(
            bytes.layers[60].expert,
            3 * (29_360_128 / 2 + 29_360_128 / 16 + 16)
        );
        // 403 GB with the tower.
        let total = bytes.total(128) + 5_000_000_000;
        assert!((400..406).contains(&(total / 1_000_000_000)), "{total}");
    }
}
