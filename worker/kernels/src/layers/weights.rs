//! What a layer and the head hold on a device. Shapes are those of [`tramontane_model::tensors::LayerTensor`].

use crate::ops::{Matrix, Vector};

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

/// What the owner of the last stage holds beside its layers.
#[derive(Clone, Debug)]
pub struct Head<B> {
    /// Norm after the last layer, `[dim]`.
    pub norm: Vector<B>,
    /// Output matrix, `[vocab, dim]`; none if it is the embedding, which is then a slice of its own.
    pub output: Option<Matrix<B>>,
}
