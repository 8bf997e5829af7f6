//! Attention of a layer, from its normed rows to what `wo` reads: projections, cache write, attention.
//!
//! Latent attention in its absorbed form (DeepSeek-V2, appendix C) or, for expanded rows, as it is defined there; or
//! grouped-query attention.

use tramontane_model::spec::MlaSpec;

use super::pass::LayerPass;
use super::weights::{GroupedAttention, LatentAttention};
use crate::ops::{
    Attention, Backend, ExpandedAttention, KvCache, LatentWrite, MlaDims, OpError, Queries, RotateQkv, Rows,
    Values,
};

impl<'a, D: Backend> LayerPass<'a, D> {
    /// Latent attention; gives the buffer of the values.
    pub(super) fn latent(
        &mut self,
        weights: &LatentAttention<D::Buffer>,
        mla: &MlaSpec,
        cache: &KvCache<D::Buffer>,
    ) -> Result<&'a D::Buffer, OpError> {
        let (buffers, spec) = (self.buffers, self.spec);
        let rows = self.rows;
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
        self.backend.latent_write(&LatentWrite {
            input: &buffers.latent,
            norm: &weights.kv_a_norm,
            eps: spec.norm_eps,
            rotary: &buffers.rotary,
            meta: &buffers.meta,
            cache,
            rows,
        })?;
        let expanded: u32 = self.expanded.iter().map(|piece| piece.rows).sum();
        let absorbed = Rows::new(rows.generated, rows.given.saturating_sub(expanded));
        if absorbed.total() > 0 {
            self.absorbed(weights, dims, cache, absorbed)?;
        }
        if expanded > 0 {
            self.backend.expanded_attention(&ExpandedAttention {
                input: &buffers.expanded,
                queries: &buffers.queries,
                wkv_b: &weights.wkv_b,
                dims,
                rotary: &buffers.rotary,
                meta: &buffers.meta,
                tables: &buffers.tables,
                table_rows: self.table_rows,
                table_width: self.table_width,
                cache,
                scale: spec.attention.softmax_scale(),
                scratch: &buffers.expansion,
                output: &buffers.attended,
                sequences: self.expanded,
            })?;
        }
        Ok(&buffers.attended)
    }

    /// Attention of the first rows over the latents themselves.
    fn absorbed(
        &mut self,
        weights: &LatentAttention<D::Buffer>,
        dims: MlaDims,
        cache: &KvCache<D::Buffer>,
        rows: Rows,
    ) -> Result<(), OpError> {
        let buffers = self.buffers;
        self.backend.queries(&Queries {
            input: &buffers.expanded,
            wkv_b: &weights.wkv_b,
            dims,
            rotary: &buffers.rotary,
            meta: &buffers.meta,
            output: &buffers.queries,
            rows,
        })?;
        self.attend(dims.heads, cache, rows)?;
        self.backend.values(&Values {
            input: &buffers.context,
            wkv_b: &weights.wkv_b,
            dims,
            output: &buffers.attended,
            rows,
        })
    }

    /// Grouped-query attention; gives the buffer of the values.
    pub(super) fn grouped(
        &mut self,
        weights: &GroupedAttention<D::Buffer>,
        heads: u32,
        cache: &KvCache<D::Buffer>,
    ) -> Result<&'a D::Buffer, OpError> {
        let buffers = self.buffers;
        self.linear(&buffers.normed, &weights.wq, &buffers.expanded, false)?;
        self.linear(&buffers.normed, &weights.wk, &buffers.keys, false)?;
        self.linear(&buffers.normed, &weights.wv, &buffers.values, false)?;
        self.backend.rotate_qkv(&RotateQkv {
            queries: &buffers.expanded,
            keys: &buffers.keys,
            values: &buffers.values,
            heads,
            rotary: &buffers.rotary,
            meta: &buffers.meta,
            cache,
            output: &buffers.queries,
            rows: self.rows,
        })?;
        self.attend(heads, cache, self.rows)?;
        Ok(&buffers.context)
    }

    fn attend(&mut self, heads: u32, cache: &KvCache<D::Buffer>, rows: Rows) -> Result<(), OpError> {
        let buffers = self.buffers;
        self.backend.attention(&Attention {
            queries: &buffers.queries,
            meta: &buffers.meta,
            tables: &buffers.tables,
            table_rows: self.table_rows,
            table_width: self.table_width,
            cache,
            heads,
            scale: self.spec.attention.softmax_scale(),
            partials: &buffers.partials,
            output: &buffers.context,
            rows,
        })
    }
}
