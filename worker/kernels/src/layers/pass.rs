//! A layer, part by part: norm, attention, residual; norm, feed-forward, residual. Whoever records a layer puts the parts
//! together, because routed experts may be elsewhere.

use tramontane_model::spec::{AttentionSpec, ModelSpec, MoeSpec};

use super::buffers::OwnerBuffers;
use super::weights::{FeedForward, LayerAttention, OwnerLayer};
use crate::ops::{
    Backend, Combine, ExpertBank, ExpertScratch, Experts, GateUp, KvCache, Linear, Matrix, OpError,
    PromptRows, RmsNorm, Route, Rows, Vector,
};

/// The rows of a step on their way through the layers of a stage. Nothing is read back.
#[derive(Debug)]
pub struct LayerPass<'a, D: Backend> {
    /// Where it is recorded.
    pub backend: &'a mut D,
    /// The model.
    pub spec: &'a ModelSpec,
    /// The stage's buffers; `hidden` is the residual stream.
    pub buffers: &'a OwnerBuffers<D::Buffer>,
    /// The rows of the step.
    pub rows: Rows,
    /// The last of them, as far as they are expanded: each chunk's.
    pub expanded: &'a [PromptRows],
    /// Rows of the block tables.
    pub table_rows: u32,
    /// Blocks of a row of the block tables.
    pub table_width: u32,
}

impl<'a, D: Backend> LayerPass<'a, D> {
    /// Attention: adds it to the residual stream.
    pub fn attention(
        &mut self,
        weights: &OwnerLayer<D::Buffer>,
        cache: &KvCache<D::Buffer>,
    ) -> Result<(), OpError> {
        let (buffers, spec) = (self.buffers, self.spec);
        self.norm(&buffers.hidden, &weights.attention_norm, &buffers.normed)?;
        let attended = match (&weights.attention, &spec.attention) {
            (LayerAttention::Latent(weights), AttentionSpec::Mla(mla)) => self.latent(weights, mla, cache)?,
            (LayerAttention::Grouped(weights), AttentionSpec::Gqa(gqa)) => {
                self.grouped(weights, gqa.n_heads, cache)?
            }
            // Weights are loaded as the spec says.
            (LayerAttention::Latent(_) | LayerAttention::Grouped(_), _) => {
                return Err(OpError::shape("attention", "its weights are of another kind"));
            }
        };
        self.linear(attended, &weights.wo, &buffers.hidden, true)
    }

    /// The norm before the feed-forward, whatever that is.
    pub fn ffn_norm(&mut self, weights: &OwnerLayer<D::Buffer>) -> Result<(), OpError> {
        let buffers = self.buffers;
        self.norm(&buffers.hidden, &weights.ffn_norm, &buffers.normed)
    }

    /// A dense feed-forward: added to the residual stream.
    pub fn dense(&mut self, weights: &FeedForward<D::Buffer>) -> Result<(), OpError> {
        self.feed_forward(weights, &self.buffers.hidden, true)
    }

    /// Which experts each row gets, and with what weights.
    pub fn route(&mut self, gate: &Matrix<D::Buffer>, moe: &MoeSpec) -> Result<(), OpError> {
        let buffers = self.buffers;
        self.backend.route(&Route {
            input: &buffers.normed,
            gate,
            top_k: moe.n_experts_per_token,
            routed_scale: moe.routed_scale,
            logits: &buffers.router_logits,
            ids: &buffers.expert_ids,
            weights: &buffers.expert_weights,
            rows: self.rows,
        })
    }

    /// The shared experts: to be added by [`Self::combine`].
    pub fn shared(&mut self, weights: &FeedForward<D::Buffer>) -> Result<(), OpError> {
        self.feed_forward(weights, &self.buffers.shared, false)
    }

    /// The experts of `bank` for the rows that have chosen them.
    pub fn experts(
        &mut self,
        bank: &ExpertBank<D::Buffer>,
        scratch: &ExpertScratch<D::Buffer>,
        moe: &MoeSpec,
    ) -> Result<(), OpError> {
        let buffers = self.buffers;
        self.backend.experts(&Experts {
            input: &buffers.normed,
            ids: &buffers.expert_ids,
            top_k: moe.n_experts_per_token,
            bank,
            scratch,
            output: &buffers.expert_results,
            rows: self.rows,
        })
    }

    /// Adds shared and routed experts' results to the residual stream.
    pub fn combine(&mut self, moe: &MoeSpec) -> Result<(), OpError> {
        let buffers = self.buffers;
        self.backend.combine(&Combine {
            results: &buffers.expert_results,
            weights: &buffers.expert_weights,
            top_k: moe.n_experts_per_token,
            shared: &buffers.shared,
            output: &buffers.hidden,
            dim: self.spec.dim,
            rows: self.rows,
        })
    }

    /// `output = w2(silu(w1 x) * w3 x)` of the normed rows, or added to the output.
    fn feed_forward(
        &mut self,
        weights: &FeedForward<D::Buffer>,
        output: &D::Buffer,
        add: bool,
    ) -> Result<(), OpError> {
        let buffers = self.buffers;
        self.backend.gate_up(&GateUp {
            input: &buffers.normed,
            w1: &weights.w1,
            w3: &weights.w3,
            output: &buffers.gated,
            rows: self.rows,
        })?;
        self.linear(&buffers.gated, &weights.w2, output, add)
    }

    pub(super) fn norm(
        &mut self,
        input: &D::Buffer,
        weight: &Vector<D::Buffer>,
        output: &D::Buffer,
    ) -> Result<(), OpError> {
        self.backend.rms_norm(&RmsNorm {
            input,
            pick: None,
            weight,
            output,
            eps: self.spec.norm_eps,
            rows: self.rows,
        })
    }

    pub(super) fn linear(
        &mut self,
        input: &D::Buffer,
        weight: &Matrix<D::Buffer>,
        output: &D::Buffer,
        add: bool,
    ) -> Result<(), OpError> {
        self.backend.linear(&Linear {
            input,
            weight,
            output,
            add,
            rows: self.rows,
        })
    }
}
