//! Root-mean-square norm: `y = x * w / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019).

use super::rows::{check_rows, check_width};
use super::{DeviceBuffer, OpError, Rows, Vector};

/// Operands of a norm.
#[derive(Clone, Debug)]
pub struct RmsNorm<'a, B> {
    /// `[.., width]` f32.
    pub input: &'a B,
    /// If given, row `r` of the output is the norm of row `pick[r]` of the input (u32 per row, each below
    /// `input rows`): how the rows to be sampled are gathered. Indexes outside the input are undefined values, never
    /// reads outside the buffer.
    pub pick: Option<&'a B>,
    /// `[width]`, BF16; its length is the row's width.
    pub weight: &'a Vector<B>,
    /// `[rows, width]` f32; not the input.
    pub output: &'a B,
    /// `norm_eps` of params.json.
    pub eps: f32,
    /// Rows of the output.
    pub rows: Rows,
}

impl<B: DeviceBuffer> RmsNorm<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "rms_norm";
        let (rows, width) = (self.rows.total(), self.weight.len());
        check_width(OP, "width", width, super::COLS_ALIGN)?;
        match self.pick {
            Some(pick) => {
                check_rows(OP, "pick", pick, rows, 1)?;
                check_rows(OP, "input", self.input, 1, width)?;
            }
            None => check_rows(OP, "input", self.input, rows, width)?,
        }
        check_rows(OP, "output", self.output, rows, width)
    }
}
