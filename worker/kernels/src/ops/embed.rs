//! Embedding gather: `output[r] = table[tokens[r]]`, BF16 widened to f32.
//!
//! A token id outside the table leaves its row as it is: that is how rows given as embeddings (images) pass.

use super::rows::check_rows;
use super::{DeviceBuffer, Matrix, OpError, Rows, WeightFormat};

/// Operands of the embedding gather.
#[derive(Clone, Debug)]
pub struct Embed<'a, B> {
    /// Token id per row, u32.
    pub tokens: &'a B,
    /// `[vocab, dim]`, BF16.
    pub table: &'a Matrix<B>,
    /// `[rows, dim]` f32.
    pub output: &'a B,
    /// The rows.
    pub rows: Rows,
}

impl<B: DeviceBuffer> Embed<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "embed";
        if self.table.format() != WeightFormat::Bf16 {
            let detail = format!("the table is {}, it must be BF16", self.table.format());
            return Err(OpError::shape(OP, detail));
        }
        check_rows(OP, "tokens", self.tokens, self.rows.total(), 1)?;
        check_rows(OP, "output", self.output, self.rows.total(), self.table.cols())
    }
}
