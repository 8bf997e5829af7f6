//! Attention of a layer, from its normed rows to what `wo` reads: projections, cache write, attention.
//!
//! Latent attention in its absorbed form (DeepSeek-V2, appendix C), or grouped-query attention.

use tramontane_model::spec::MlaSpec;

use super::run::StageRun;
use crate::ops::{Attention, Backend, KvCache, LatentWrite, MlaDims, OpError, Queries, RotateQkv, Values};
use crate::weights::{GroupedAttention, LatentAttention};

impl<'a, D: Backend> StageRun<'a, D> {
    /// Latent attention; gives the buffer of the values.
    pub(super) fn latent(
        &mut self,
        weights: &LatentAttention<D::Buffer>,
        mla: &MlaSpec,
        cache: &KvCache<D::Buffer>,
    ) -> Result<&'a D::Buffer, OpError> {
        let (buffers, spec) = (&self.stage.buffers, &self.device.model.spec);
        let rows = self.plan.rows;
        let dims = MlaDims {
            heads: mla.n_heads,
            nope: mla.qk_nope_head_dim,
            rope: mla.qk_rope_head_dim,
            v: mla.v_head_dim,
            latent: mla.kv_lora_rank,
        };
        self.linear(&buffers.normed, &weights.wq_a, &buffers.compressed, false)?;
        self.norm(&buffers.compressed, &weights.q_a_norm, &buffers.compressed_normed)?;
        self.linear(
            &buffers.compressed_normed,
            &weights.wq_b,
            &buffers.expanded,
            false,
        )?;
        self.linear(&buffers.normed, &weights.wkv_a, &buffers.latent, false)?;
        self.device.backend.latent_write(&LatentWrite {
            input: &buffers.latent,
            norm: &weights.kv_a_norm,
            eps: spec.norm_eps,
            rotary: &buffers.rotary,
            meta: &buffers.meta,
            cache,
            rows,
        })?;
        self.device.backend.queries(&Queries {
            input: &buffers.expanded,
            wkv_b: &weights.wkv_b,
            dims,
            rotary: &buffers.rotary,
            meta: &buffers.meta,
            output: &buffers.queries,
            rows,
        })?;
        self.attend(dims.heads, cache)?;
        self.device.backend.values(&Values {
            input: &buffers.context,
            wkv_b: &weights.wkv_b,
            dims,
            output: &buffers.attended,
            rows,
        })?;
        Ok(&buffers.attended)
    }

    /// Grouped-query attention; gives the buffer of the values.
    pub(super) fn grouped(
        &mut self,
        weights: &GroupedAttention<D::Buffer>,
        heads: u32,
        cache: &KvCache<D::Buffer>,
    ) -> Result<&'a D::Buffer, OpError> {
        let buffers = &self.stage.buffers;
        self.linear(&buffers.normed, &weights.wq, &buffers.expanded, false)?;
        self.linear(&buffers.normed, &weights.wk, &buffers.keys, false)?;
        self.linear(&buffers.normed, &weights.wv, &buffers.values, false)?;
        self.device.backend.rotate_qkv(&RotateQkv {
            queries: &buffers.expanded,
            keys: &buffers.keys,
            values: &buffers.values,
            heads,
            rotary: &buffers.rotary,
            meta: &buffers.meta,
            cache,
            output: &buffers.queries,
            rows: self.plan.rows,
        })?;
        self.attend(heads, cache)?;
        Ok(&buffers.context)
    }

    fn attend(&mut self, heads: u32, cache: &KvCache<D::Buffer>) -> Result<(), OpError> {
        let buffers = &self.stage.buffers;
        self.device.backend.attention(&Attention {
            queries: &buffers.queries,
            meta: &buffers.meta,
            tables: &buffers.tables,
            table_rows: self.plan.table_rows,
            table_width: self.plan.table_width,
            cache,
            heads,
            scale: self.device.model.spec.attention.softmax_scale(),
            output: &buffers.context,
            rows: self.plan.rows,
        })
    }
}
