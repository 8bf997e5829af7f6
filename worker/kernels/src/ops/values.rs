//! Value half of absorbed latent attention: `out[r, h, j] = sum_l wkv_b_v[h, j, l] ctx[r, h, l]`.

use super::rows::check_rows;
use super::{DeviceBuffer, Matrix, MlaDims, OpError, Rows};

/// Operands of the value expansion.
#[derive(Clone, Debug)]
pub struct Values<'a, B> {
    /// Output of [`super::Attention`]: `[rows, heads, latent]` f32.
    pub input: &'a B,
    /// As in [`super::Queries`].
    pub wkv_b: &'a Matrix<B>,
    /// Dimensions.
    pub dims: MlaDims,
    /// `[rows, heads * v]` f32.
    pub output: &'a B,
    /// The rows.
    pub rows: Rows,
}

impl<B: DeviceBuffer> Values<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "values";
        let (rows, dims) = (self.rows.total(), &self.dims);
        dims.check(OP)?;
        dims.check_wkv_b(OP, self.wkv_b)?;
        check_rows(OP, "input", self.input, rows, dims.heads * dims.latent)?;
        check_rows(OP, "output", self.output, rows, dims.heads * dims.v)
    }
}
