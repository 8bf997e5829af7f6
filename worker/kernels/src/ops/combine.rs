//! Sum of expert results: `output[r] += shared[r] + sum_i weights[r, i] * results[r, i]`, in ascending expert order,
//! f32. The order of the sum does not depend on where a result was computed.

use super::rows::check_rows;
use super::{DeviceBuffer, OpError, Rows};

/// Operands of the combination.
#[derive(Clone, Debug)]
pub struct Combine<'a, B> {
    /// `[rows * top_k, dim]` f32, of [`super::Experts`], local and remote; in ascending expert order per row.
    pub results: &'a B,
    /// `[rows, top_k]` f32, of [`super::Route`].
    pub weights: &'a B,
    /// Experts per row.
    pub top_k: u32,
    /// `[rows, dim]` f32: the shared expert's result.
    pub shared: &'a B,
    /// `[rows, dim]` f32: the residual stream, added to.
    pub output: &'a B,
    /// Width of the residual stream.
    pub dim: u32,
    /// The rows.
    pub rows: Rows,
}

impl<B: DeviceBuffer> Combine<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "combine";
        let rows = self.rows.total();
        super::rows::check_width(OP, "dim", self.dim, super::COLS_ALIGN)?;
        let pairs = rows
            .checked_mul(self.top_k)
            .ok_or_else(|| OpError::shape(OP, format!("{rows} rows with {} experts each", self.top_k)))?;
        check_rows(OP, "results", self.results, pairs, self.dim)?;
        check_rows(OP, "weights", self.weights, rows, self.top_k)?;
        check_rows(OP, "shared", self.shared, rows, self.dim)?;
        check_rows(OP, "output", self.output, rows, self.dim)
    }
}
