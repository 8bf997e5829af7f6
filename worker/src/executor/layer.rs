//! One layer: norm, attention, residual; norm, feed-forward, residual.
//!
//! The forward pass of Mistral Large 3 and its family. What is between the norm and `wo` is in `attention`.

use tramontane_model::spec::AttentionSpec;

use super::DeviceError;
use super::run::StageRun;
use crate::ops::{Backend, GateUp, Linear, Matrix, OpError, RmsNorm, Vector};
use crate::weights::{FeedForward, LayerAttention, LayerFeedForward, OwnerLayer};

impl<D: Backend> StageRun<'_, D> {
    /// Records a layer of the model. Reads back only where other devices compute experts.
    pub(super) fn layer(&mut self, layer: u32) -> Result<(), DeviceError> {
        if self.plan.order.is_empty() {
            return Ok(());
        }
        let Some(weights) = self.device.weights.layer(layer) else {
            // Loading has put every layer of the stage there.
            return Err(OpError::shape("layer", format!("layer {layer} is not loaded")).into());
        };
        self.attention(layer, weights)?;
        let buffers = &self.stage.buffers;
        self.norm(&buffers.hidden, &weights.ffn_norm, &buffers.normed)?;
        match &weights.feed_forward {
            LayerFeedForward::Dense(dense) => Ok(self.feed_forward(dense, &buffers.hidden, true)?),
            LayerFeedForward::Moe { gate, shared } => self.moe(layer, gate, shared.as_ref()),
        }
    }

    fn attention(&mut self, layer: u32, weights: &OwnerLayer<D::Buffer>) -> Result<(), OpError> {
        let stage = self.stage;
        let (buffers, attention) = (&stage.buffers, &self.device.model.spec.attention);
        let cache = &stage.caches[(layer - stage.slice.layers.start()) as usize];
        self.norm(&buffers.hidden, &weights.attention_norm, &buffers.normed)?;
        let attended = match (&weights.attention, attention) {
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
    /// `output = w2(silu(w1 x) * w3 x)` of the normed rows, or added to the output.
    pub(super) fn feed_forward(
        &mut self,
        weights: &FeedForward<D::Buffer>,
        output: &D::Buffer,
        add: bool,
    ) -> Result<(), OpError> {
        let buffers = &self.stage.buffers;
        self.device.backend.gate_up(&GateUp {
            input: &buffers.normed,
            w1: &weights.w1,
            w3: &weights.w3,
            output: &buffers.gated,
            rows: self.plan.rows,
        })?;
        self.linear(&buffers.gated, &weights.w2, output, add)
    }

    pub(super) fn norm(
        &mut self,
        input: &D::Buffer,
        weight: &Vector<D::Buffer>,
        output: &D::Buffer,
    ) -> Result<(), OpError> {
        self.device.backend.rms_norm(&RmsNorm {
            input,
            pick: None,
            weight,
            output,
            eps: self.device.model.spec.norm_eps,
            rows: self.plan.rows,
        })
    }

    pub(super) fn linear(
        &mut self,
        input: &D::Buffer,
        weight: &Matrix<D::Buffer>,
        output: &D::Buffer,
        add: bool,
    ) -> Result<(), OpError> {
        self.device.backend.linear(&Linear {
            input,
            weight,
            output,
            add,
            rows: self.plan.rows,
        })
    }
}
