//! Attention over the paged cache:
//! `out[r, h] = sum_t softmax_t(scale * q[r, h] . key[t, k]) * value[t, k]`, over positions `t <= position[r]`, where `k`
//! is the head of keys and values that query head `h` shares with its neighbours.
//!
//! Grouped-query attention, and with one head for all queries the absorbed form of latent attention, where a token's
//! value is the first part of its key.
//!
//! The softmax runs over splits and tiles of the sequence at fixed places (multiples from position 0), merged in
//! order, so that a row's bits depend on its own position only.

use tramontane_model::footprint::attention_partial_words;

use super::rows::{check_rows, check_words};
use super::{DeviceBuffer, KvCache, OpError, Rows};

/// Operands of attention.
#[derive(Clone, Debug)]
pub struct Attention<'a, B> {
    /// Output of [`super::Queries`] or [`super::RotateQkv`]: `[rows, heads, key]` f32.
    pub queries: &'a B,
    /// [`super::RowMeta`] per row; `position` and `table` are read.
    pub meta: &'a B,
    /// Block ids, `[table_rows, table_width]` u32: entry `i` of a row holds positions `i * block_tokens ..`.
    pub tables: &'a B,
    /// Rows of `tables`.
    pub table_rows: u32,
    /// Entries per row of `tables`.
    pub table_width: u32,
    /// The cache of the layer, already written for the rows of this call.
    pub cache: &'a KvCache<B>,
    /// Query heads, a multiple of the cache's.
    pub heads: u32,
    /// Softmax scale.
    pub scale: f32,
    /// Scratch: what splits of sequences come to before they are merged. The more it holds, the more of them are computed
    /// at once: [`tramontane_model::footprint::OwnerScratch::partials`].
    pub partials: &'a B,
    /// `[rows, heads, value]` f32.
    pub output: &'a B,
    /// The rows.
    pub rows: Rows,
}

impl<B: DeviceBuffer> Attention<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "attention";
        let (rows, shape) = (self.rows.total(), self.cache.shape());
        if self.heads == 0 || !self.heads.is_multiple_of(shape.heads) {
            let detail = format!(
                "{} heads over {} of keys and values, they must be a positive multiple",
                self.heads, shape.heads
            );
            return Err(OpError::shape(OP, detail));
        }
        let width = self
            .heads
            .checked_mul(shape.key)
            .ok_or_else(|| OpError::shape(OP, format!("{} heads of {}", self.heads, shape.key)))?;
        check_rows(OP, "queries", self.queries, rows, width)?;
        check_rows(OP, "meta", self.meta, rows, 4)?;
        check_words(
            OP,
            "tables",
            self.tables,
            u64::from(self.table_rows),
            u64::from(self.table_width),
        )?;
        if rows > 0 && (self.table_rows == 0 || self.table_width == 0) {
            return Err(OpError::shape(OP, "there are rows but no block table"));
        }
        check_rows(OP, "output", self.output, rows, self.heads * shape.value)
    }

    /// Partials, each of one head in one split, that the scratch holds.
    pub(crate) fn partials_held(&self) -> u64 {
        self.partials.bytes() / (attention_partial_words(self.cache.shape().value) * 4)
    }

    /// The scratch does not hold so many partials.
    pub(crate) fn too_few_partials(&self, needed: u64) -> OpError {
        OpError::TooSmall {
            op: "attention",
            operand: "partials",
            found: self.partials.bytes(),
            needed: needed * attention_partial_words(self.cache.shape().value) * 4,
        }
    }
}
