//! What a layer and the head hold on a device. Shapes are those of [`tramontane_model::tensors::LayerTensor`].

use tramontane_model::spec::{AttentionSpec, ModelSpec};
use tramontane_model::tensors::{FfnMatrix, LayerTensor, TensorId};

use crate::ops::{Matrix, Vector};

/// Puts tensors of a model on a device.
pub trait TensorSource {
    /// The device's memory.
    type Buffer;
    /// Why a tensor is not there.
    type Error;

    /// A matrix, whose parts start at multiples of so many rows.
    fn matrix(&mut self, id: TensorId, unit: u32) -> Result<Matrix<Self::Buffer>, Self::Error>;

    /// A vector.
    fn vector(&mut self, id: TensorId) -> Result<Vector<Self::Buffer>, Self::Error>;
}

/// A feed-forward: `w2(silu(w1 x) * w3 x)`.
#[derive(Clone, Debug)]
pub struct FeedForward<B> {
    /// Gate, `[hidden, dim]`.
    pub w1: Matrix<B>,
    /// Down, `[dim, hidden]`.
    pub w2: Matrix<B>,
    /// Up, `[hidden, dim]`.
    pub w3: Matrix<B>,
}

impl<B> FeedForward<B> {
    /// That of a layer whose matrices are called so.
    fn of<S: TensorSource<Buffer = B>>(
        layer: u32,
        named: fn(FfnMatrix) -> LayerTensor,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let mut matrix = |matrix| {
            let tensor = named(matrix);
            source.matrix(TensorId::Layer { layer, tensor }, 1)
        };
        Ok(Self {
            w1: matrix(FfnMatrix::W1)?,
            w2: matrix(FfnMatrix::W2)?,
            w3: matrix(FfnMatrix::W3)?,
        })
    }
}

/// What follows attention in a layer, but for the routed experts.
#[derive(Clone, Debug)]
pub enum LayerFeedForward<B> {
    /// A dense layer.
    Dense(FeedForward<B>),
    /// A layer with routed experts.
    Moe {
        /// Router, `[n_experts, dim]`.
        gate: Matrix<B>,
        /// The shared experts, where the model has them.
        shared: Option<FeedForward<B>>,
    },
}

/// The matrices of latent attention, but for the output.
#[derive(Clone, Debug)]
pub struct LatentAttention<B> {
    /// Compresses the query.
    pub wq_a: Matrix<B>,
    /// Norm of the compressed query.
    pub q_a_norm: Vector<B>,
    /// Expands the query.
    pub wq_b: Matrix<B>,
    /// Latent and rotated key.
    pub wkv_a: Matrix<B>,
    /// Norm of the latent.
    pub kv_a_norm: Vector<B>,
    /// Expands the latent; its parts start at heads.
    pub wkv_b: Matrix<B>,
}

/// The matrices of grouped-query attention, but for the output.
#[derive(Clone, Debug)]
pub struct GroupedAttention<B> {
    /// Queries.
    pub wq: Matrix<B>,
    /// Keys.
    pub wk: Matrix<B>,
    /// Values.
    pub wv: Matrix<B>,
}

/// Attention of a layer, but for the output.
#[derive(Clone, Debug)]
pub enum LayerAttention<B> {
    /// Of a model with latent attention.
    Latent(LatentAttention<B>),
    /// Of a model with grouped-query attention.
    Grouped(GroupedAttention<B>),
}

impl<B> LayerAttention<B> {
    fn of<S: TensorSource<Buffer = B>>(
        spec: &ModelSpec,
        layer: u32,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let id = |tensor| TensorId::Layer { layer, tensor };
        Ok(match &spec.attention {
            AttentionSpec::Mla(mla) => {
                let head_rows = mla.qk_nope_head_dim + mla.v_head_dim;
                Self::Latent(LatentAttention {
                    wq_a: source.matrix(id(LayerTensor::WqA), 1)?,
                    q_a_norm: source.vector(id(LayerTensor::QANorm))?,
                    wq_b: source.matrix(id(LayerTensor::WqB), 1)?,
                    wkv_a: source.matrix(id(LayerTensor::WkvAWithMqa), 1)?,
                    kv_a_norm: source.vector(id(LayerTensor::KvANorm))?,
                    wkv_b: source.matrix(id(LayerTensor::WkvB), head_rows)?,
                })
            }
            AttentionSpec::Gqa(_) => Self::Grouped(GroupedAttention {
                wq: source.matrix(id(LayerTensor::Wq), 1)?,
                wk: source.matrix(id(LayerTensor::Wk), 1)?,
                wv: source.matrix(id(LayerTensor::Wv), 1)?,
            }),
        })
    }
}

/// What the owner of a layer holds of it. Shapes are those of [`tramontane_model::tensors::LayerTensor`].
#[derive(Clone, Debug)]
pub struct OwnerLayer<B> {
    /// Norm before attention.
    pub attention_norm: Vector<B>,
    /// Attention.
    pub attention: LayerAttention<B>,
    /// Output of attention.
    pub wo: Matrix<B>,
    /// Norm before the feed-forward.
    pub ffn_norm: Vector<B>,
    /// Feed-forward.
    pub feed_forward: LayerFeedForward<B>,
}

impl<B> OwnerLayer<B> {
    /// A layer's tensors, in the order of the forward pass.
    pub fn of<S: TensorSource<Buffer = B>>(
        spec: &ModelSpec,
        layer: u32,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let id = |tensor| TensorId::Layer { layer, tensor };
        Ok(Self {
            attention_norm: source.vector(id(LayerTensor::AttentionNorm))?,
            attention: LayerAttention::of(spec, layer, source)?,
            wo: source.matrix(id(LayerTensor::Wo), 1)?,
            ffn_norm: source.vector(id(LayerTensor::FfnNorm))?,
            feed_forward: match spec.moe_at(layer) {
                None => LayerFeedForward::Dense(FeedForward::of(layer, LayerTensor::Dense, source)?),
                Some(moe) => LayerFeedForward::Moe {
                    gate: source.matrix(id(LayerTensor::Gate), 1)?,
                    shared: match moe.n_shared_experts {
                        0 => None,
                        _ => Some(FeedForward::of(layer, LayerTensor::Shared, source)?),
                    },
                },
            },
        })
    }
}

/// What the owner of the last stage holds beside its layers.
#[derive(Clone, Debug)]
pub struct Head<B> {
    /// Norm after the last layer, `[dim]`.
    pub norm: Vector<B>,
    /// Output matrix, `[vocab, dim]`; none if it is the embedding, which is then a slice of its own.
    pub output: Option<Matrix<B>>,
}
