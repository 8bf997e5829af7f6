//! One layer: norm, latent attention, residual; norm, feed-forward, residual.
//!
//! The forward pass of Mistral Large 3, in the absorbed form of latent attention (DeepSeek-V2, appendix C).

use super::DeviceError;
use super::run::StageRun;
use crate::ops::{
    Attention, Backend, GateUp, LatentWrite, Linear, Matrix, MlaDims, OpError, Queries, RmsNorm, Values,
    Vector,
};
use crate::weights::{FeedForward, LayerFeedForward, OwnerLayer};

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
        let (stage, rows) = (self.stage, self.plan.rows);
        let (buffers, spec) = (&stage.buffers, &self.device.model.spec);
        let mla = spec.mla();
        let dims = MlaDims {
            heads: mla.n_heads,
            nope: mla.qk_nope_head_dim,
            rope: mla.qk_rope_head_dim,
            v: mla.v_head_dim,
            latent: mla.kv_lora_rank,
        };
        let cache = &stage.caches[(layer - stage.slice.layers.start()) as usize];
        self.norm(&buffers.hidden, &weights.attention_norm, &buffers.normed)?;
        self.linear(&buffers.normed, &weights.wq_a, &buffers.compressed, false)?;
        self.norm(&buffers.compressed, &weights.q_a_norm, &buffers.compressed_normed)?;
        self.linear(
            &buffers.compressed_normed,
            &weights.wq_b,
            &buffers.expanded,
            false,
        )?;
        self.linear(&buffers.normed, &weights.wkv_a, &buffers.latent, false)?;
        let backend = &mut *self.device.backend;
        backend.latent_write(&LatentWrite {
            input: &buffers.latent,
            norm: &weights.kv_a_norm,
            eps: spec.norm_eps,
            rotary: &buffers.rotary,
            meta: &buffers.meta,
            cache,
            rows,
        })?;
        backend.queries(&Queries {
            input: &buffers.expanded,
            wkv_b: &weights.wkv_b,
            dims,
            rotary: &buffers.rotary,
            meta: &buffers.meta,
            output: &buffers.queries,
            rows,
        })?;
        backend.attention(&Attention {
            queries: &buffers.queries,
            meta: &buffers.meta,
            tables: &buffers.tables,
            table_rows: self.plan.table_rows,
            table_width: self.plan.table_width,
            cache,
            heads: dims.heads,
            scale: mla.softmax_scale(),
            output: &buffers.context,
            rows,
        })?;
        backend.values(&Values {
            input: &buffers.context,
            wkv_b: &weights.wkv_b,
            dims,
            output: &buffers.attended,
            rows,
        })?;
        self.linear(&buffers.attended, &weights.wo, &buffers.hidden, true)
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

    fn norm(
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

    fn linear(
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
