//! What a model is: params.json of Mistral's consolidated layout or config.json of Hugging Face's, parsed once into a
//! checked [`ModelSpec`].
//!
//! Attention with a compressed key-value cache (MLA) or with grouped queries (GQA), leading dense layers, then
//! mixture-of-experts layers, if any. Absent here: weights (`checkpoint`), tensor names (`tensors`, `layout`), rotary
//! tables (`rope`), the vision tower.
//!
//! **Bounds:** every size is at most its `MAX_*`, so that the byte counts of the whole model fit in a `u64` and
//! those of a single matrix in 2^42.

mod fields;
mod hugging_face;
mod parse;
mod quantization;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::{Path, PathBuf};

pub use fields::Fault;
pub use quantization::{FP8_BLOCK, Quantization};

use crate::layout::Layout;

/// Largest params.json or config.json, in bytes.
pub const MAX_PARAMS_BYTES: u64 = 1 << 20;
/// Most layers.
pub const MAX_LAYERS: u32 = 1024;
/// Largest vocabulary.
pub const MAX_VOCAB: u32 = 1 << 20;
/// Largest width of the residual stream, and of the low-rank projections.
pub const MAX_DIM: u32 = 1 << 16;
/// Largest width of a feed-forward layer, dense or expert.
pub const MAX_HIDDEN_DIM: u32 = 1 << 18;
/// Most attention heads.
pub const MAX_HEADS: u32 = 1024;
/// Largest part of an attention head (nope, rope or v).
pub const MAX_HEAD_DIM: u32 = 1024;
/// Most routed experts of a layer.
pub const MAX_EXPERTS: u32 = 1024;
/// Most experts chosen for a token.
pub const MAX_EXPERTS_PER_TOKEN: u32 = 32;
/// Most shared experts.
pub const MAX_SHARED_EXPERTS: u32 = 16;
/// Longest context, in tokens.
pub const MAX_CONTEXT: u32 = 1 << 24;
/// Every width of a matrix row or a head is a multiple of this: rows of any format are whole 8-byte words.
pub const WIDTH_MULTIPLE: u32 = 16;

const _: () = {
    let largest_head_rows = MAX_HEADS as u128 * 2 * MAX_HEAD_DIM as u128;
    let dense = 3 * MAX_HIDDEN_DIM as u128 * MAX_DIM as u128;
    let experts = (MAX_EXPERTS + MAX_SHARED_EXPERTS) as u128 * dense;
    let attention = 8 * largest_head_rows * MAX_DIM as u128;
    // Eight bytes per element are more than any stored format takes, its scales included.
    let model =
        8 * (MAX_LAYERS as u128 * (experts + attention + dense) + 2 * MAX_VOCAB as u128 * MAX_DIM as u128);
    assert!(model < u64::MAX as u128);
    assert!(8 * largest_head_rows * MAX_DIM as u128 <= 1 << 42);
};

/// A model, as its params.json or config.json describes it; every value is checked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelSpec {
    /// Width of the residual stream.
    pub dim: u32,
    /// Layers.
    pub n_layers: u32,
    /// Vocabulary: rows of the embedding and of the output matrix.
    pub vocab_size: u32,
    /// Added to the mean square in every RMSNorm.
    pub norm_eps: f32,
    /// Longest sequence, prompt and answer together, in tokens.
    pub max_context: u32,
    /// Attention.
    pub attention: AttentionSpec,
    /// Rotary position encoding.
    pub rope: RopeSpec,
    /// In which order the checkpoint has the rotated rows of a head.
    pub rope_rows: RopeRows,
    /// Growth of the query with the position, where the model has it.
    pub query_scaling: Option<QueryScaling>,
    /// Whether the output matrix is the embedding.
    pub tied_embeddings: bool,
    /// Width of the dense feed-forward layers; 0 where no layer is dense.
    pub dense_hidden_dim: u32,
    /// The mixture-of-experts layers, where the model has them.
    pub moe: Option<MoeSpec>,
    /// How the weights are stored, as far as the file says; each tensor's own dtype decides.
    pub quantization: Quantization,
    /// Whether the checkpoint carries a vision tower.
    pub has_vision: bool,
}

/// The kinds of attention that are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttentionSpec {
    /// Multi-head latent attention.
    Mla(MlaSpec),
    /// Grouped-query attention.
    Gqa(GqaSpec),
}

impl AttentionSpec {
    /// The sizes of latent attention, where it is that.
    pub fn mla(&self) -> Option<&MlaSpec> {
        match self {
            Self::Mla(mla) => Some(mla),
            Self::Gqa(_) => None,
        }
    }

    /// The sizes of grouped-query attention, where it is that.
    pub fn gqa(&self) -> Option<&GqaSpec> {
        match self {
            Self::Mla(_) => None,
            Self::Gqa(gqa) => Some(gqa),
        }
    }

    /// Values cached per token and layer.
    pub fn kv_values(&self) -> u32 {
        match self {
            Self::Mla(mla) => mla.kv_values(),
            Self::Gqa(gqa) => 2 * gqa.kv_dim(),
        }
    }

    /// What the scores are multiplied with: the width of a head's query `^-0.5`, nothing for YaRN since `apply_scale`
    /// is false.
    pub fn softmax_scale(&self) -> f32 {
        let width = match self {
            Self::Mla(mla) => mla.qk_head_dim(),
            Self::Gqa(gqa) => gqa.head_dim,
        };
        f64::from(width).sqrt().recip() as f32
    }
}

/// Grouped-query attention (Ainslie et al. 2023): consecutive query heads share a key and a value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GqaSpec {
    /// Query heads, a multiple of the next.
    pub n_heads: u32,
    /// Heads of keys and of values.
    pub n_kv_heads: u32,
    /// Width of a head's query, key and value; all of it is rotated.
    pub head_dim: u32,
}

impl GqaSpec {
    /// Width of the queries of a token.
    pub fn q_dim(&self) -> u32 {
        self.n_heads * self.head_dim
    }

    /// Width of the keys of a token, and of its values.
    pub fn kv_dim(&self) -> u32 {
        self.n_kv_heads * self.head_dim
    }
}

/// Multi-head latent attention (DeepSeek-V2, section 2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MlaSpec {
    /// Query heads.
    pub n_heads: u32,
    /// Width of the compressed query.
    pub q_lora_rank: u32,
    /// Width of the compressed keys and values: the latent that is cached.
    pub kv_lora_rank: u32,
    /// Part of a head without position.
    pub qk_nope_head_dim: u32,
    /// Rotated part of a head; the key's is shared by all heads.
    pub qk_rope_head_dim: u32,
    /// Width of a head's value.
    pub v_head_dim: u32,
}

impl MlaSpec {
    /// Width of a head's query and key: nope and rope.
    pub fn qk_head_dim(&self) -> u32 {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Values cached per token and layer: the latent, then the rotated key.
    pub fn kv_values(&self) -> u32 {
        self.kv_lora_rank + self.qk_rope_head_dim
    }
}

/// In which order a checkpoint has the rotated rows of a head; devices hold them interleaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeRows {
    /// Pairs are rows `2i` and `2i + 1`.
    Interleaved,
    /// Pairs are rows `i` and `i + half`.
    HalfSplit,
}

/// Rotary position encoding.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RopeSpec {
    /// Rotated values per head, an even number.
    pub dim: u32,
    /// The base of the frequencies.
    pub theta: f64,
    /// Stretching beyond the original context.
    pub yarn: Option<YarnSpec>,
}

/// YaRN (Peng et al. 2023, section 3.2), without its attention factor.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct YarnSpec {
    /// By how much low frequencies are stretched, at least 1.
    pub factor: f64,
    /// Context length before stretching.
    pub original_context: u32,
    /// Rotations within the original context above which a frequency is left alone (beta in params.json).
    pub beta_fast: f64,
    /// Rotations below which it is stretched in full (alpha in params.json).
    pub beta_slow: f64,
}

/// The query's factor at a position: `1 + beta ln(1 + floor(position / original_context))`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct QueryScaling {
    /// Positions per step of the floor.
    pub original_context: u32,
    /// Strength.
    pub beta: f64,
}

/// Mixture-of-experts layers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MoeSpec {
    /// The first layer that has experts; layers before it are dense.
    pub first_layer: u32,
    /// Routed experts per layer.
    pub n_experts: u32,
    /// Experts chosen per token.
    pub n_experts_per_token: u32,
    /// Width of one expert.
    pub expert_hidden_dim: u32,
    /// Shared experts; they are stored as one feed-forward of `n_shared_experts * expert_hidden_dim`. May be 0.
    pub n_shared_experts: u32,
    /// Factor of the renormalised routing weights.
    pub routed_scale: f32,
}

impl MoeSpec {
    /// Width of the shared feed-forward; 0 where there is none.
    pub fn shared_hidden_dim(&self) -> u32 {
        self.n_shared_experts * self.expert_hidden_dim
    }
}

impl ModelSpec {
    /// Reads params.json or config.json of a checkpoint folder.
    pub fn load(dir: &Path) -> Result<Self, SpecError> {
        let layout = Layout::of(dir);
        let path = dir.join(layout.params_file());
        let bytes = read_bounded(&path)?;
        Self::parse(&bytes, &path, layout)
    }

    /// Reads a file like params.json, or like config.json if it is called that.
    pub fn read(path: &Path) -> Result<Self, SpecError> {
        let is_config = path
            .file_name()
            .is_some_and(|name| name == Layout::HuggingFace.params_file());
        let layout = match is_config {
            true => Layout::HuggingFace,
            false => Layout::Consolidated,
        };
        Self::parse(&read_bounded(path)?, path, layout)
    }

    /// Parses params.json, as [`ModelSpec::parse`] does.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self, SpecError> {
        Self::parse(bytes, path, Layout::Consolidated)
    }

    /// Parses the parameters of a layout; `path` is only named in errors and in the log, which also gets the unknown keys.
    pub fn parse(bytes: &[u8], path: &Path, layout: Layout) -> Result<Self, SpecError> {
        let (spec, unknown) = parse::parse(bytes, path, layout)?;
        if !unknown.is_empty() {
            let (path, keys) = (path.display(), unknown.join(", "));
            tracing::warn!(%path, keys, "unknown keys of the model's parameters are ignored");
        }
        Ok(spec)
    }

    /// The layers with routed experts; empty for a dense model.
    pub fn moe_layers(&self) -> Range<u32> {
        match &self.moe {
            Some(moe) => moe.first_layer..self.n_layers,
            None => self.n_layers..self.n_layers,
        }
    }

    /// Whether a layer has routed experts.
    pub fn is_moe_layer(&self, layer: u32) -> bool {
        self.moe_layers().contains(&layer)
    }

    /// The experts' sizes, if the layer has routed experts.
    pub fn moe_at(&self, layer: u32) -> Option<&MoeSpec> {
        self.moe.as_ref().filter(|_| self.is_moe_layer(layer))
    }

    /// Routed experts of each MoE layer; 0 for a dense model.
    pub fn n_experts(&self) -> u32 {
        self.moe.as_ref().map_or(0, |moe| moe.n_experts)
    }

    /// Values cached per token in one layer.
    pub fn kv_values_per_token_layer(&self) -> u32 {
        self.attention.kv_values()
    }

    /// Values cached per token in all layers.
    pub fn kv_values_per_token(&self) -> u64 {
        u64::from(self.n_layers) * u64::from(self.kv_values_per_token_layer())
    }
}

/// Why a params.json or config.json was refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file could not be read.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is far longer than any model's parameters.
    #[error("{path}: is longer than {MAX_PARAMS_BYTES} bytes, expected the parameters of a model")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a JSON object.
    #[error("{path}: is not a json object: {problem}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        problem: String,
    },
    /// Values that are missing, impossible or not served; all of them.
    #[error("{path}: {}", join(faults))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Each fault; never empty.
        faults: Vec<Fault>,
    },
}

fn join(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; ")
}

/// Reads at most [`MAX_PARAMS_BYTES`].
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>, SpecError> {
    use std::io::Read;
    let read_error = |source| SpecError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(read_error)?;
    let mut bytes = Vec::new();
    file.take(MAX_PARAMS_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    if bytes.len() as u64 > MAX_PARAMS_BYTES {
        return Err(SpecError::TooLong {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}
