//! The language model's tensors: their names, shapes and places, and the bytes of each part of the model.
//!
//! Follows from the spec alone; no file is read here. The vision tower's tensors are known by their prefix only.

mod bytes;
mod format;
mod rows;

use std::fmt;

pub use bytes::{LayerBytes, ModelBytes};
pub use format::{CHUNK_COLS, NVFP4_GROUP, SECTION_ALIGN, WeightFormat, record_bytes};
pub use rows::HalfSplit;

use crate::spec::{AttentionSpec, ModelSpec, Quantization, RopeRows};

/// What begins the name of every tensor of the vision tower and its adapter, in either layout.
pub const VISION_PREFIXES: [&str; 8] = [
    "vision_encoder.",
    "pre_mm_projector_norm.",
    "patch_merger.",
    "vision_language_adapter.",
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
];

/// Whether a tensor belongs to the vision tower or its adapter.
pub fn is_vision_tensor(name: &str) -> bool {
    VISION_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// One matrix of a feed-forward: `w2(silu(w1 x) * w3 x)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FfnMatrix {
    /// Gate, `[hidden, dim]`.
    W1,
    /// Down, `[dim, hidden]`.
    W2,
    /// Up, `[hidden, dim]`.
    W3,
}

impl FfnMatrix {
    /// All three, in the order of their names.
    pub const ALL: [Self; 3] = [Self::W1, Self::W2, Self::W3];

    fn name(self) -> &'static str {
        match self {
            Self::W1 => "w1",
            Self::W2 => "w2",
            Self::W3 => "w3",
        }
    }

    fn shape(self, dim: u32, hidden: u32) -> Shape {
        match self {
            Self::W1 | Self::W3 => Shape::Matrix {
                rows: hidden,
                cols: dim,
            },
            Self::W2 => Shape::Matrix {
                rows: dim,
                cols: hidden,
            },
        }
    }
}

/// A tensor of a layer that its stage's owner holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerTensor {
    /// Norm before attention, `[dim]`.
    AttentionNorm,
    /// Compresses the query, `[q_lora_rank, dim]`.
    WqA,
    /// Norm of the compressed query, `[q_lora_rank]`.
    QANorm,
    /// Expands the query, per head `[nope | rope]` rows: `[heads * (nope + rope), q_lora_rank]`.
    WqB,
    /// Latent and rotated key: `[kv_lora_rank + rope, dim]`.
    WkvAWithMqa,
    /// Norm of the latent, `[kv_lora_rank]`.
    KvANorm,
    /// Expands the latent, per head `[nope | v]` rows: `[heads * (nope + v), kv_lora_rank]`.
    WkvB,
    /// Queries of grouped-query attention, `[heads * head_dim, dim]`.
    Wq,
    /// Its keys, `[kv_heads * head_dim, dim]`.
    Wk,
    /// Its values, `[kv_heads * head_dim, dim]`.
    Wv,
    /// Output of attention, `[dim, heads * v]`; a head's value is `v` or `head_dim` wide.
    Wo,
    /// Norm before the feed-forward, `[dim]`.
    FfnNorm,
    /// Feed-forward of a dense layer.
    Dense(FfnMatrix),
    /// Router, `[n_experts, dim]`.
    Gate,
    /// The shared experts as one feed-forward.
    Shared(FfnMatrix),
}

/// Which tensor of the language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorId {
    /// Embedding, `[vocab, dim]`; held by the owner of the first stage.
    Embedding,
    /// A tensor of a layer that the stage's owner holds.
    Layer {
        /// The layer.
        layer: u32,
        /// Which of its tensors.
        tensor: LayerTensor,
    },
    /// A matrix of a routed expert.
    Expert {
        /// The layer.
        layer: u32,
        /// The expert, counted within the layer.
        expert: u32,
        /// Which of its matrices.
        matrix: FfnMatrix,
    },
    /// Norm after the last layer, `[dim]`; held by the owner of the last stage.
    FinalNorm,
    /// Output matrix, `[vocab, dim]`; held by the owner of the last stage. Where embeddings are tied it is not stored.
    Head,
}

/// The tensor's name in the consolidated layout.
impl fmt::Display for TensorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("tok_embeddings.weight"),
            Self::FinalNorm => f.write_str("norm.weight"),
            Self::Head => f.write_str("output.weight"),
            Self::Expert {
                layer,
                expert,
                matrix,
            } => {
                write!(f, "layers.{layer}.experts.{expert}.{}.weight", matrix.name())
            }
            Self::Layer { layer, tensor } => {
                write!(f, "layers.{layer}.")?;
                match tensor {
                    LayerTensor::AttentionNorm => f.write_str("attention_norm.weight"),
                    LayerTensor::WqA => f.write_str("attention.wq_a.weight"),
                    LayerTensor::QANorm => f.write_str("attention.q_a_norm.weight"),
                    LayerTensor::WqB => f.write_str("attention.wq_b.weight"),
                    LayerTensor::WkvAWithMqa => f.write_str("attention.wkv_a_with_mqa.weight"),
                    LayerTensor::KvANorm => f.write_str("attention.kv_a_norm.weight"),
                    LayerTensor::WkvB => f.write_str("attention.wkv_b.weight"),
                    LayerTensor::Wq => f.write_str("attention.wq.weight"),
                    LayerTensor::Wk => f.write_str("attention.wk.weight"),
                    LayerTensor::Wv => f.write_str("attention.wv.weight"),
                    LayerTensor::Wo => f.write_str("attention.wo.weight"),
                    LayerTensor::FfnNorm => f.write_str("ffn_norm.weight"),
                    LayerTensor::Dense(matrix) => write!(f, "feed_forward.{}.weight", matrix.name()),
                    LayerTensor::Gate => f.write_str("gate.weight"),
                    LayerTensor::Shared(matrix) => write!(f, "shared_experts.{}.weight", matrix.name()),
                }
            }
        }
    }
}

/// A tensor's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// One dimension.
    Vector(u32),
    /// Two dimensions, row-major: outputs, then inputs.
    Matrix {
        /// Outputs.
        rows: u32,
        /// Inputs.
        cols: u32,
    },
}

impl Shape {
    /// The dimensions, as a safetensors header lists them.
    pub fn dims(self) -> Vec<u64> {
        match self {
            Self::Vector(len) => vec![len.into()],
            Self::Matrix { rows, cols } => vec![rows.into(), cols.into()],
        }
    }

    /// How many values.
    pub fn elements(self) -> u64 {
        match self {
            Self::Vector(len) => len.into(),
            Self::Matrix { rows, cols } => u64::from(rows) * u64::from(cols),
        }
    }
}

/// A tensor that the model must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Which one.
    pub id: TensorId,
    /// Its shape.
    pub shape: Shape,
    /// Whether it may be quantised; norms, the router and the embedding are always BF16.
    pub may_be_quantised: bool,
    /// Its format in a checkpoint quantised as the spec says, when nothing more is known.
    pub usual_format: WeightFormat,
    /// How the stored rows are ordered, if not as devices hold them.
    pub half_split: Option<HalfSplit>,
}

/// The tensors of a layer that its stage's owner holds, in the order of the forward pass.
pub fn owner_tensors(spec: &ModelSpec, layer: u32) -> Vec<TensorSpec> {
    let attention: &[LayerTensor] = match spec.attention {
        AttentionSpec::Mla(_) => &[
            LayerTensor::WqA,
            LayerTensor::QANorm,
            LayerTensor::WqB,
            LayerTensor::WkvAWithMqa,
            LayerTensor::KvANorm,
            LayerTensor::WkvB,
        ],
        AttentionSpec::Gqa(_) => &[LayerTensor::Wq, LayerTensor::Wk, LayerTensor::Wv],
    };
    let feed_forward = match spec.moe_at(layer) {
        None => FfnMatrix::ALL.map(LayerTensor::Dense).to_vec(),
        Some(moe) if moe.n_shared_experts == 0 => vec![LayerTensor::Gate],
        Some(_) => {
            let shared = FfnMatrix::ALL.into_iter().map(LayerTensor::Shared);
            std::iter::once(LayerTensor::Gate).chain(shared).collect()
        }
    };
    std::iter::once(LayerTensor::AttentionNorm)
        .chain(attention.iter().copied())
        .chain([LayerTensor::Wo, LayerTensor::FfnNorm])
        .chain(feed_forward)
        .map(|tensor| tensor_spec(spec, TensorId::Layer { layer, tensor }))
        .collect()
}

/// The three matrices of a routed expert. The shapes are the same for every expert of the model.
pub fn expert_tensors(spec: &ModelSpec, layer: u32, expert: u32) -> [TensorSpec; 3] {
    FfnMatrix::ALL.map(|matrix| {
        tensor_spec(
            spec,
            TensorId::Expert {
                layer,
                expert,
                matrix,
            },
        )
    })
}

/// Every stored tensor of the language model: embedding, layer by layer the owner's part and the experts, norm, head.
pub fn language_tensors(spec: &ModelSpec) -> impl Iterator<Item = TensorSpec> + '_ {
    let layers = (0..spec.n_layers).flat_map(move |layer| {
        let experts = if spec.is_moe_layer(layer) {
            spec.n_experts()
        } else {
            0
        };
        let experts = (0..experts).flat_map(move |expert| expert_tensors(spec, layer, expert));
        owner_tensors(spec, layer).into_iter().chain(experts)
    });
    let head = (!spec.tied_embeddings).then(|| tensor_spec(spec, TensorId::Head));
    std::iter::once(tensor_spec(spec, TensorId::Embedding))
        .chain(layers)
        .chain([tensor_spec(spec, TensorId::FinalNorm)])
        .chain(head)
}

/// Shape and formats of one tensor. The layer and expert are taken as they are: whether the model has them is what
/// [`language_tensors`] says.
pub fn tensor_spec(spec: &ModelSpec, id: TensorId) -> TensorSpec {
    let shape = shape_of(spec, id);
    use WeightFormat::{Bf16, Fp8Block, Fp8Tensor, Nvfp4};
    // The formats it usually has in checkpoints that say FP8 with blocks, FP8 per tensor, NVFP4.
    let feed_forward = Some([Fp8Block, Fp8Tensor, Nvfp4]);
    let attention = Some([Fp8Block, Fp8Tensor, Bf16]);
    let left_alone = Some([Bf16; 3]);
    let usually = match id {
        TensorId::Embedding | TensorId::FinalNorm => None,
        TensorId::Head => left_alone,
        TensorId::Expert { .. } => feed_forward,
        TensorId::Layer { tensor, .. } => match tensor {
            LayerTensor::AttentionNorm
            | LayerTensor::QANorm
            | LayerTensor::KvANorm
            | LayerTensor::FfnNorm
            | LayerTensor::Gate => None,
            LayerTensor::WqA | LayerTensor::WkvAWithMqa => left_alone,
            LayerTensor::WqB
            | LayerTensor::WkvB
            | LayerTensor::Wq
            | LayerTensor::Wk
            | LayerTensor::Wv
            | LayerTensor::Wo => attention,
            LayerTensor::Dense(_) | LayerTensor::Shared(_) => feed_forward,
        },
    };
    let [fp8_block, fp8_tensor, nvfp4] = usually.unwrap_or([Bf16; 3]);
    let usual_format = match spec.quantization {
        Quantization::None => Bf16,
        Quantization::Fp8Block => fp8_block,
        Quantization::Fp8Tensor => fp8_tensor,
        Quantization::Nvfp4 => nvfp4,
    };
    TensorSpec {
        id,
        shape,
        may_be_quantised: usually.is_some(),
        usual_format,
        half_split: half_split(spec, id),
    }
}

/// Which rows of a tensor are rotated, where they are stored half by half.
fn half_split(spec: &ModelSpec, id: TensorId) -> Option<HalfSplit> {
    let TensorId::Layer { tensor, .. } = id else {
        return None;
    };
    let split = match (&spec.attention, tensor) {
        (AttentionSpec::Mla(mla), LayerTensor::WqB) => {
            HalfSplit::new(mla.qk_nope_head_dim, mla.qk_rope_head_dim)
        }
        (AttentionSpec::Mla(mla), LayerTensor::WkvAWithMqa) => {
            HalfSplit::new(mla.kv_lora_rank, mla.qk_rope_head_dim)
        }
        (AttentionSpec::Gqa(gqa), LayerTensor::Wq | LayerTensor::Wk) => HalfSplit::new(0, gqa.head_dim),
        (AttentionSpec::Mla(_) | AttentionSpec::Gqa(_), _) => return None,
    };
    (spec.rope_rows == RopeRows::HalfSplit).then_some(split)
}

fn shape_of(spec: &ModelSpec, id: TensorId) -> Shape {
    let dim = spec.dim;
    let (expert_hidden, shared_hidden) = spec
        .moe
        .as_ref()
        .map_or((0, 0), |moe| (moe.expert_hidden_dim, moe.shared_hidden_dim()));
    let matrix = |rows, cols| Shape::Matrix { rows, cols };
    match id {
        TensorId::Embedding | TensorId::Head => matrix(spec.vocab_size, dim),
        TensorId::FinalNorm => Shape::Vector(dim),
        TensorId::Expert { matrix, .. } => matrix.shape(dim, expert_hidden),
        TensorId::Layer { tensor, .. } => match tensor {
            LayerTensor::AttentionNorm | LayerTensor::FfnNorm => Shape::Vector(dim),
            LayerTensor::WqA
            | LayerTensor::QANorm
            | LayerTensor::WqB
            | LayerTensor::WkvAWithMqa
            | LayerTensor::KvANorm
            | LayerTensor::WkvB
            | LayerTensor::Wq
            | LayerTensor::Wk
            | LayerTensor::Wv
            | LayerTensor::Wo => attention_shape(spec, tensor),
            LayerTensor::Dense(matrix) => matrix.shape(dim, spec.dense_hidden_dim),
            LayerTensor::Gate => matrix(spec.n_experts(), dim),
            LayerTensor::Shared(matrix) => matrix.shape(dim, shared_hidden),
        },
    }
}

/// A tensor of attention. What the model's kind of attention does not have is empty.
fn attention_shape(spec: &ModelSpec, tensor: LayerTensor) -> Shape {
    let dim = spec.dim;
    let matrix = |rows, cols| Shape::Matrix { rows, cols };
    match (&spec.attention, tensor) {
        (AttentionSpec::Mla(mla), LayerTensor::WqA) => matrix(mla.q_lora_rank, dim),
        (AttentionSpec::Mla(mla), LayerTensor::QANorm) => Shape::Vector(mla.q_lora_rank),
        (AttentionSpec::Mla(mla), LayerTensor::WqB) => {
            matrix(mla.n_heads * mla.qk_head_dim(), mla.q_lora_rank)
        }
        (AttentionSpec::Mla(mla), LayerTensor::WkvAWithMqa) => matrix(mla.kv_values(), dim),
        (AttentionSpec::Mla(mla), LayerTensor::KvANorm) => Shape::Vector(mla.kv_lora_rank),
        (AttentionSpec::Mla(mla), LayerTensor::WkvB) => matrix(
            mla.n_heads * (mla.qk_nope_head_dim + mla.v_head_dim),
            mla.kv_lora_rank,
        ),
        (AttentionSpec::Mla(mla), LayerTensor::Wo) => matrix(dim, mla.n_heads * mla.v_head_dim),
        (AttentionSpec::Gqa(gqa), LayerTensor::Wq) => matrix(gqa.q_dim(), dim),
        (AttentionSpec::Gqa(gqa), LayerTensor::Wk | LayerTensor::Wv) => matrix(gqa.kv_dim(), dim),
        (AttentionSpec::Gqa(gqa), LayerTensor::Wo) => matrix(dim, gqa.q_dim()),
        (AttentionSpec::Mla(_) | AttentionSpec::Gqa(_), _) => Shape::Vector(0),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn spec(path: &str) -> ModelSpec {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        ModelSpec::from_json(&std::fs::read(&file).expect("a fixture"), &file).expect("a valid spec")
    }

    #[test]
    fn large_3_has_its_published_counts() {
        let spec = spec("tests/fixtures/params/large-3.json");
        let parameters: u64 = language_tensors(&spec)
            .map(|tensor| tensor.shape.elements())
            .sum();
        // By hand: attention 187_121_664 per layer, dense 352_321_536, experts 129 x 88_080_384 and a router of 917_504.
        assert_eq!(
            parameters,
            61 * 187_121_664 + 3 * 352_321_536 + 58 * (129 * 88_080_384 + 917_504) + 1_879_055_360
        );
        assert_eq!(parameters / 1_000_000_000, 673);
        let expert: u64 = expert_tensors(&spec, 3, 0)
            .iter()
            .map(|tensor| tensor.shape.elements())
            .sum();
        assert_eq!(expert, 88_080_384);
    }

    #[test]
    fn the_family_has_its_published_counts() {
        let counted = |file: &str| -> u64 {
            let spec = spec(&format!("tests/fixtures/params/{file}.json"));
            let parameters = language_tensors(&spec)
                .map(|tensor| tensor.shape.elements())
                .sum();
            let bytes = ModelBytes::usual(&spec);
            assert_eq!(bytes.total(spec.n_experts()), 2 * parameters, "{file} in BF16");
            assert_eq!(bytes.layers.len(), spec.n_layers as usize);
            parameters
        };
        // By hand: per layer attention, feed-forward and two norms; the embedding, a head unless it is tied, a norm.
        let dense = |dim: u64, hidden: u64, layers: u64, ends: u64| {
            let attention = dim * (4096 + 1024 + 1024) + 4096 * dim;
            layers * (attention + 3 * dim * hidden + 2 * dim) + ends * 131_072 * dim + dim
        };
        assert_eq!(counted("ministral-3-3b"), dense(3072, 9216, 26, 1));
        assert_eq!(counted("ministral-3-8b"), dense(4096, 14336, 34, 2));
        assert_eq!(counted("ministral-3-14b"), dense(5120, 16384, 40, 2));
        assert_eq!(counted("ministral-3-3b"), 3_429_006_336);
        assert_eq!(counted("ministral-3-8b"), 8_489_553_920);
        assert_eq!(counted("ministral-3-14b"), 13_506_073_600);
        let attention =
            1024 * 4096 + 1024 + 32 * 128 * 1024 + 320 * 4096 + 256 + 32 * 192 * 256 + 4096 * 4096;
        let layer = attention + 2 * 4096 + 128 * 4096 + 129 * 3 * 2048 * 4096;
        assert_eq!(counted("small-4-119b"), 36 * layer + 2 * 131_072 * 4096 + 4096);
        assert_eq!(counted("small-4-119b") / 1_000_000_000, 118);
    }

    #[test]
    fn names_are_unique_and_follow_the_layers() {
        let spec = spec("cli/assets/mini-large-3/params.json");
        let names: Vec<String> = language_tensors(&spec)
            .map(|tensor| tensor.id.to_string())
            .collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert_eq!(names.len(), 3 + 6 * 9 + 3 + 5 * (4 + 16 * 3));
        for expected in [
            "tok_embeddings.weight",
            "layers.0.feed_forward.w2.weight",
            "layers.5.attention.wkv_a_with_mqa.weight",
            "layers.1.gate.weight",
            "layers.1.shared_experts.w3.weight",
            "layers.5.experts.15.w1.weight",
            "norm.weight",
            "output.weight",
        ] {
            assert!(names.iter().any(|name| name == expected), "{expected}");
        }
        assert!(
            !names
                .iter()
                .any(|name| name == "layers.1.feed_forward.w1.weight" || name == "layers.0.gate.weight")
        );
    }

    #[test]
    fn a_model_of_experts_only_has_no_dense_tensor() {
        let spec = spec("tests/fixtures/micro-small4/params.json");
        let dense = |tensor: &TensorSpec| {
            matches!(
                tensor.id,
                TensorId::Layer {
                    tensor: LayerTensor::Dense(_),
                    ..
                }
            )
        };
        assert!(!language_tensors(&spec).any(|tensor| dense(&tensor)));
        assert!(
            ModelBytes::usual(&spec)
                .layers
                .iter()
                .all(|layer| layer.expert > 0)
        );
    }

    #[test]
    fn the_towers_tensors_are_known() {
        assert!(is_vision_tensor(
            "vision_encoder.transformer.layers.0.attention.wq.weight"
        ));
        assert!(is_vision_tensor("patch_merger.merging_layer.weight"));
        assert!(!is_vision_tensor("layers.0.attention.wq_a.weight"));
    }
}
