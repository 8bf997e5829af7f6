//! Latent attention as it is defined (DeepSeek-V2, section 2.1), for rows of prompts:
//! `out[r, h] = sum_t softmax_t(scale * q[r, h] . [key[t, h], rope[t]]) * value[t, h]`, over positions `t <= position[r]`,
//! with `[key[t, h], value[t, h]] = wkv_b[h] latent[t]` and `q = query_scale * [q_nope, rotate(q_rope)]`.
//!
//! Keys and values of the context are expanded a tile of [`EXPANDED_TOKENS`] tokens at a time, at multiples of it from
//! position 0, for all rows of a sequence; rows keep what they have come to and merge the tiles in order. So a row's bits
//! depend on its own position only, whatever rows are with it.

use tramontane_model::footprint::{EXPANDED_STATE_WORDS, EXPANDED_TOKENS};

use super::rows::{check_rows, check_words};
use super::{DeviceBuffer, KvCache, Matrix, MlaDims, OpError};

/// Consecutive rows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptRows {
    /// The first of them.
    pub first_row: u32,
    /// How many there are.
    pub rows: u32,
    /// The first one's position in the sequence.
    pub first_position: u32,
    /// Row of the block tables that holds the sequence's blocks.
    pub table: u32,
}

impl PromptRows {
    /// Tokens that the last of them sees.
    pub fn context(&self) -> u32 {
        self.first_position.saturating_add(self.rows)
    }
}

/// Where a tile of the context and the rows' state are kept.
#[derive(Clone, Debug)]
pub struct ExpandedScratch<B> {
    /// `[EXPANDED_TOKENS, latent]` f32.
    pub latents: B,
    /// `[EXPANDED_TOKENS, heads, nope + v]` f32, then `[EXPANDED_TOKENS, rope]`.
    pub keys_values: B,
    /// `[rows, heads, 4]` f32: the largest score and the sum of shares so far.
    pub state: B,
}

/// Operands of expanded attention.
#[derive(Clone, Debug)]
pub struct ExpandedAttention<'a, B> {
    /// Output of `wq_b`: `[rows, heads, nope + rope]` f32.
    pub input: &'a B,
    /// Scratch for the queries, as the input.
    pub queries: &'a B,
    /// `[heads * (nope + v), latent]`.
    pub wkv_b: &'a Matrix<B>,
    /// Dimensions.
    pub dims: MlaDims,
    /// `[rows, rope]` f32, as in [`super::LatentWrite`].
    pub rotary: &'a B,
    /// [`super::RowMeta`] per row; only `query_scale` is read.
    pub meta: &'a B,
    /// Block ids, as in [`super::Attention`].
    pub tables: &'a B,
    /// Rows of `tables`.
    pub table_rows: u32,
    /// Entries per row of `tables`.
    pub table_width: u32,
    /// The cache of the layer, already written for the rows of this call.
    pub cache: &'a KvCache<B>,
    /// Softmax scale.
    pub scale: f32,
    /// Scratch.
    pub scratch: &'a ExpandedScratch<B>,
    /// `[rows, heads, v]` f32.
    pub output: &'a B,
    /// The rows of the call, all of prompts.
    pub sequences: &'a [PromptRows],
}

impl<B: DeviceBuffer> ExpandedAttention<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "expanded_attention";
        let (dims, shape) = (&self.dims, self.cache.shape());
        dims.check(OP)?;
        dims.check_wkv_b(OP, self.wkv_b)?;
        if !shape.value_in_key || shape.value != dims.latent || shape.key != dims.absorbed() {
            let detail = format!("the cache is {shape:?}, it must hold latents as of {dims:?}");
            return Err(OpError::shape(OP, detail));
        }
        let reach = self.table_width.saturating_mul(shape.block_tokens);
        for piece in self.sequences {
            if piece.rows == 0 || piece.table >= self.table_rows || piece.context() > reach {
                let (rows, width) = (self.table_rows, self.table_width);
                let detail =
                    format!("{piece:?} over block tables [{rows}, {width}], which reach {reach} tokens");
                return Err(OpError::shape(OP, detail));
            }
        }
        let ends = self
            .sequences
            .iter()
            .map(|piece| piece.first_row.saturating_add(piece.rows));
        let rows = ends.max().unwrap_or(0);
        let query = dims.heads * (dims.nope + dims.rope);
        check_rows(OP, "input", self.input, rows, query)?;
        check_rows(OP, "queries", self.queries, rows, query)?;
        check_rows(OP, "rotary", self.rotary, rows, dims.rope)?;
        check_rows(OP, "meta", self.meta, rows, 4)?;
        check_rows(OP, "output", self.output, rows, dims.heads * dims.v)?;
        let (tables, width) = (u64::from(self.table_rows), u64::from(self.table_width));
        check_words(OP, "tables", self.tables, tables, width)?;
        let scratch = self.scratch;
        check_rows(
            OP,
            "state",
            &scratch.state,
            rows,
            dims.heads * EXPANDED_STATE_WORDS,
        )?;
        if rows > 0 {
            check_rows(OP, "latents", &scratch.latents, EXPANDED_TOKENS, dims.latent)?;
            let width = (dims.heads * dims.head_rows()).saturating_add(dims.rope);
            check_rows(OP, "keys_values", &scratch.keys_values, EXPANDED_TOKENS, width)?;
        }
        Ok(())
    }
}
