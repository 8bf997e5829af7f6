//! Routed experts: for every row `r` and choice `i` whose expert `e = ids[r, i]` is in the bank,
//! `output[r * top_k + i] = w2[e] (silu(w1[e] x[r]) * (w3[e] x[r]))`. Other results are left as they are, so that
//! results of other devices may be written beside.
//!
//! Pairs (row, choice) are grouped by expert on the device; nothing is read back.

use tramontane_model::footprint::expert_plan_words;

use super::rows::{check_rows, check_words};
use super::{DeviceBuffer, ExpertBank, OpError, Rows};

/// Scratch of [`Experts`], reusable by all layers.
#[derive(Clone, Debug)]
pub struct ExpertScratch<B> {
    /// Pairs grouped by expert: [`expert_plan_words`].
    pub plan: B,
    /// `[rows * top_k, hidden]` f32.
    pub hidden: B,
}

/// Operands of the routed experts of one bank.
#[derive(Clone, Debug)]
pub struct Experts<'a, B> {
    /// `[rows, dim]` f32, normed.
    pub input: &'a B,
    /// `[rows, top_k]` u32, of [`super::Route`].
    pub ids: &'a B,
    /// Experts per row.
    pub top_k: u32,
    /// The local experts.
    pub bank: &'a ExpertBank<B>,
    /// Scratch.
    pub scratch: &'a ExpertScratch<B>,
    /// `[rows * top_k, dim]` f32: unweighted results.
    pub output: &'a B,
    /// The rows.
    pub rows: Rows,
}

impl<B: DeviceBuffer> Experts<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "experts";
        let (rows, layout) = (self.rows.total(), self.bank.layout());
        let pairs = self.pairs()?;
        check_rows(OP, "input", self.input, rows, layout.dim)?;
        check_rows(OP, "ids", self.ids, rows, self.top_k)?;
        let experts = self.bank.experts().len() as u64;
        check_words(
            OP,
            "plan",
            &self.scratch.plan,
            expert_plan_words(pairs.into(), experts),
            1,
        )?;
        check_rows(OP, "hidden", &self.scratch.hidden, pairs, layout.hidden)?;
        check_rows(OP, "output", self.output, pairs, layout.dim)
    }

    /// Rows times choices.
    pub(crate) fn pairs(&self) -> Result<u32, OpError> {
        self.rows
            .total()
            .checked_mul(self.top_k)
            .filter(|_| self.top_k > 0)
            .ok_or_else(|| {
                OpError::shape(
                    "experts",
                    format!("{} rows with {} experts each", self.rows.total(), self.top_k),
                )
            })
    }
}
