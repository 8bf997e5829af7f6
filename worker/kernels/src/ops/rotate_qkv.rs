//! Queries and cache write of grouped-query attention:
//! `out[r, h] = query_scale[r] * rotate(q[r, h])`, `cache[slot[r]] = [rotate(k[r, ..]), v[r, ..]]`.
//!
//! Whole heads are rotated, interleaved (pairs `2i`, `2i + 1`); cosines and sines come from the processor, per row.

use super::rows::{check_rows, check_width};
use super::{DeviceBuffer, KvCache, OpError, Rows};

/// Operands of the rotation.
#[derive(Clone, Debug)]
pub struct RotateQkv<'a, B> {
    /// Output of `wq`: `[rows, heads, head_dim]` f32.
    pub queries: &'a B,
    /// Output of `wk`: `[rows, kv_heads, head_dim]` f32.
    pub keys: &'a B,
    /// Output of `wv`: `[rows, kv_heads, head_dim]` f32.
    pub values: &'a B,
    /// Query heads.
    pub heads: u32,
    /// `[rows, head_dim]` f32: `cos 0, sin 0, cos 1, sin 1, ..` of the row's position.
    pub rotary: &'a B,
    /// [`super::RowMeta`] per row; `slot` and `query_scale` are read. Rows with [`super::NO_ROW`] or a slot outside the
    /// cache write nothing to it.
    pub meta: &'a B,
    /// The cache of the layer, of keys and values of one width.
    pub cache: &'a KvCache<B>,
    /// `[rows, heads, head_dim]` f32.
    pub output: &'a B,
    /// The rows.
    pub rows: Rows,
}

impl<B: DeviceBuffer> RotateQkv<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "rotate_qkv";
        let (rows, shape) = (self.rows.total(), self.cache.shape());
        check_width(OP, "heads", self.heads, 1)?;
        if shape.value_in_key || shape.key != shape.value {
            let detail = format!("the cache is {shape:?}: it must have keys and values of one width");
            return Err(OpError::shape(OP, detail));
        }
        let width = |heads: u32| {
            let width = heads.checked_mul(shape.key);
            width.ok_or_else(|| OpError::shape(OP, format!("{heads} heads of {}", shape.key)))
        };
        let (all, shared) = (width(self.heads)?, width(shape.heads)?);
        check_rows(OP, "queries", self.queries, rows, all)?;
        check_rows(OP, "keys", self.keys, rows, shared)?;
        check_rows(OP, "values", self.values, rows, shared)?;
        check_rows(OP, "rotary", self.rotary, rows, shape.key)?;
        check_rows(OP, "meta", self.meta, rows, 4)?;
        check_rows(OP, "output", self.output, rows, all)
    }
}
