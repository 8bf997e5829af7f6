//! Cache write of latent attention: `cache[slot] = [rms_norm(latent), rotate(k_rope)]`.
//!
//! The rotation is interleaved (pairs `2i`, `2i + 1`); its cosines and sines come from the processor, per row.

use super::rows::{check_rows, check_width};
use super::{DeviceBuffer, KvCache, OpError, Rows, Vector};

/// Operands of the cache write.
#[derive(Clone, Debug)]
pub struct LatentWrite<'a, B> {
    /// Output of `wkv_a_with_mqa`: `[rows, latent + rope]` f32.
    pub input: &'a B,
    /// `kv_a_norm`, `[latent]`, BF16.
    pub norm: &'a Vector<B>,
    /// `norm_eps` of params.json.
    pub eps: f32,
    /// `[rows, rope]` f32: `cos 0, sin 0, cos 1, sin 1, ..` of the row's position.
    pub rotary: &'a B,
    /// [`super::RowMeta`] per row; only `slot` is read. Rows with [`super::NO_ROW`] or a slot outside the cache
    /// write nothing.
    pub meta: &'a B,
    /// The cache of the layer: one head whose value, the latent, is part of its key.
    pub cache: &'a KvCache<B>,
    /// The rows.
    pub rows: Rows,
}

impl<B: DeviceBuffer> LatentWrite<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "latent_write";
        let (rows, shape) = (self.rows.total(), self.cache.shape());
        if !shape.value_in_key || self.norm.len() != shape.value {
            let detail = format!(
                "the norm has {} values, the cache is {shape:?}: its value must be the latent",
                self.norm.len()
            );
            return Err(OpError::shape(OP, detail));
        }
        check_width(OP, "rope", self.rope(), super::COLS_ALIGN)?;
        check_rows(OP, "input", self.input, rows, shape.width())?;
        check_rows(OP, "rotary", self.rotary, rows, self.rope())?;
        check_rows(OP, "meta", self.meta, rows, 4)
    }

    /// Width of the key's rotated part.
    pub fn rope(&self) -> u32 {
        let shape = self.cache.shape();
        shape.key.saturating_sub(shape.value)
    }
}
