//! Router: `p = softmax(gate x)` over all experts, the `top_k` largest (ties to the lower id), weights
//! `p / sum of the chosen p * routed_scale`.
//!
//! The chosen ids of a row are written in ascending order, so that everything after works in expert order.

use super::rows::{check_rows, check_width};
use super::{DeviceBuffer, Matrix, OpError, Rows};

/// Most experts of a layer.
pub const MAX_EXPERTS: u32 = 1024;
/// Most experts of a row.
pub const MAX_TOP_K: u32 = 32;

/// Operands of the router.
#[derive(Clone, Debug)]
pub struct Route<'a, B> {
    /// `[rows, dim]` f32, normed.
    pub input: &'a B,
    /// `[experts, dim]`.
    pub gate: &'a Matrix<B>,
    /// Experts per row.
    pub top_k: u32,
    /// `routed_scale` of params.json.
    pub routed_scale: f32,
    /// Scratch, `[rows, experts]` f32: the gate's logits.
    pub logits: &'a B,
    /// `[rows, top_k]` u32: chosen experts, ascending.
    pub ids: &'a B,
    /// `[rows, top_k]` f32: their weights.
    pub weights: &'a B,
    /// The rows.
    pub rows: Rows,
}

impl<B: DeviceBuffer> Route<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "route";
        let (rows, experts) = (self.rows.total(), self.gate.rows());
        check_width(OP, "top_k", self.top_k, 1)?;
        if experts > MAX_EXPERTS || self.top_k > experts.min(MAX_TOP_K) {
            let detail = format!(
                "{} of {experts} experts: at most {MAX_EXPERTS} experts and {MAX_TOP_K} per row",
                self.top_k
            );
            return Err(OpError::shape(OP, detail));
        }
        check_rows(OP, "input", self.input, rows, self.gate.cols())?;
        check_rows(OP, "logits", self.logits, rows, experts)?;
        check_rows(OP, "ids", self.ids, rows, self.top_k)?;
        check_rows(OP, "weights", self.weights, rows, self.top_k)
    }
}
