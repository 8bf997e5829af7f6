//! Matrix times rows: `y[r, n] = sum_k w[n, k] x[r, k]`, optionally added to what the output holds.

use super::rows::check_rows;
use super::{DeviceBuffer, Matrix, OpError, Rows};

/// Operands of a linear layer.
#[derive(Clone, Debug)]
pub struct Linear<'a, B> {
    /// `[rows, weight.cols]` f32.
    pub input: &'a B,
    /// `[out, in]`.
    pub weight: &'a Matrix<B>,
    /// `[rows, weight.rows]` f32; not the input.
    pub output: &'a B,
    /// Add to the output (a residual) instead of replacing it.
    pub add: bool,
    /// The rows.
    pub rows: Rows,
}

impl<B: DeviceBuffer> Linear<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "linear";
        check_rows(OP, "input", self.input, self.rows.total(), self.weight.cols())?;
        check_rows(OP, "output", self.output, self.rows.total(), self.weight.rows())
    }
}
