//! Queries of absorbed latent attention (DeepSeek-V2, appendix C):
//! `out[r, h] = scale[r] * [wkv_b_k[h]^T q_nope[r, h], rotate(q_rope[r, h])]`.
//!
//! `wkv_b` holds per head `nope` rows of keys, then `v` rows of values, each of `latent` columns.

use super::rows::{check_rows, check_width};
use super::{DeviceBuffer, Matrix, OpError, Rows};

/// Dimensions of latent attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlaDims {
    /// Heads.
    pub heads: u32,
    /// Width of a head's query and key without position.
    pub nope: u32,
    /// Width of a head's query and key with position.
    pub rope: u32,
    /// Width of a head's value.
    pub v: u32,
    /// Width of the latent.
    pub latent: u32,
}

impl MlaDims {
    /// Rows of `wkv_b` per head.
    pub fn head_rows(&self) -> u32 {
        self.nope.saturating_add(self.v)
    }

    /// Width of an absorbed query: latent and rope part.
    pub fn absorbed(&self) -> u32 {
        self.latent.saturating_add(self.rope)
    }

    /// Refuses widths that shaders cannot read 16 bytes at a time, and sizes that overflow.
    pub fn check(&self, op: &'static str) -> Result<(), OpError> {
        for (name, width) in [
            ("nope", self.nope),
            ("rope", self.rope),
            ("v", self.v),
            ("latent", self.latent),
        ] {
            check_width(op, name, width, super::COLS_ALIGN)?;
        }
        check_width(op, "heads", self.heads, 1)?;
        let widest = [self.absorbed(), self.head_rows(), self.nope + self.rope]
            .into_iter()
            .max()
            .unwrap_or(0);
        if self.heads.checked_mul(widest).is_none() {
            return Err(OpError::shape(op, format!("{self:?}: heads x width overflow")));
        }
        Ok(())
    }

    /// Refuses a `wkv_b` of another shape, or one whose parts cut a head.
    pub(crate) fn check_wkv_b<B: DeviceBuffer>(
        &self,
        op: &'static str,
        wkv_b: &Matrix<B>,
    ) -> Result<(), OpError> {
        let rows = self.heads * self.head_rows();
        if wkv_b.rows() != rows || wkv_b.cols() != self.latent {
            let detail = format!(
                "wkv_b is [{}, {}], it must be [{rows}, {}]",
                wkv_b.rows(),
                wkv_b.cols(),
                self.latent
            );
            return Err(OpError::shape(op, detail));
        }
        if let Some(part) = wkv_b
            .parts()
            .iter()
            .find(|part| !part.rows.start.is_multiple_of(self.head_rows()))
        {
            let detail = format!(
                "a part of wkv_b starts at row {}, parts must start at a head ({} rows)",
                part.rows.start,
                self.head_rows()
            );
            return Err(OpError::shape(op, detail));
        }
        Ok(())
    }
}

/// Operands of the query preparation.
#[derive(Clone, Debug)]
pub struct Queries<'a, B> {
    /// Output of `wq_b`: `[rows, heads, nope + rope]` f32.
    pub input: &'a B,
    /// `[heads * (nope + v), latent]`; parts start at heads.
    pub wkv_b: &'a Matrix<B>,
    /// Dimensions.
    pub dims: MlaDims,
    /// `[rows, rope]` f32, as in [`super::LatentWrite`].
    pub rotary: &'a B,
    /// [`super::RowMeta`] per row; only `query_scale` is read.
    pub meta: &'a B,
    /// `[rows, heads, latent + rope]` f32.
    pub output: &'a B,
    /// The rows.
    pub rows: Rows,
}

impl<B: DeviceBuffer> Queries<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "queries";
        let (rows, dims) = (self.rows.total(), &self.dims);
        dims.check(OP)?;
        dims.check_wkv_b(OP, self.wkv_b)?;
        check_rows(
            OP,
            "input",
            self.input,
            rows,
            dims.heads * (dims.nope + dims.rope),
        )?;
        check_rows(OP, "rotary", self.rotary, rows, dims.rope)?;
        check_rows(OP, "meta", self.meta, rows, 4)?;
        check_rows(OP, "output", self.output, rows, dims.heads * dims.absorbed())
    }
}
