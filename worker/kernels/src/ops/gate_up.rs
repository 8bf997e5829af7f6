//! First half of SwiGLU: `h[r, j] = silu(w1[j] . x[r]) * (w3[j] . x[r])`, `silu(a) = a / (1 + exp(-a))` (Shazeer
//! 2020). The second half is [`super::Linear`] with `w2`.

use super::rows::check_rows;
use super::{DeviceBuffer, Matrix, OpError, Rows};

/// Operands of the gated half of a dense or shared-expert FFN.
#[derive(Clone, Debug)]
pub struct GateUp<'a, B> {
    /// `[rows, dim]` f32.
    pub input: &'a B,
    /// Gate, `[hidden, dim]`.
    pub w1: &'a Matrix<B>,
    /// Up, `[hidden, dim]`; same format and same parts as `w1`.
    pub w3: &'a Matrix<B>,
    /// `[rows, hidden]` f32.
    pub output: &'a B,
    /// The rows.
    pub rows: Rows,
}

impl<B: DeviceBuffer> GateUp<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "gate_up";
        let (w1, w3) = (self.w1, self.w3);
        let same = w1.rows() == w3.rows() && w1.cols() == w3.cols() && w1.format() == w3.format();
        let same_parts = w1.parts().len() == w3.parts().len()
            && (w1.parts().iter().zip(w3.parts())).all(|(a, b)| a.rows == b.rows);
        if !same || !same_parts {
            let detail = format!(
                "w1 is [{}, {}] {:?} in {} parts, w3 is [{}, {}] {:?} in {} parts; they must be alike",
                w1.rows(),
                w1.cols(),
                w1.format(),
                w1.parts().len(),
                w3.rows(),
                w3.cols(),
                w3.format(),
                w3.parts().len()
            );
            return Err(OpError::shape(OP, detail));
        }
        check_rows(OP, "input", self.input, self.rows.total(), w1.cols())?;
        check_rows(OP, "output", self.output, self.rows.total(), w1.rows())
    }
}
