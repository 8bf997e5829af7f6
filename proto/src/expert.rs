//! What a stage's owner asks of the holders of its expert groups, and what they answer.

use bytes::Bytes;
use tramontane_model::ids::{Fence, StepId};

use crate::fields::{at_most, fence, invalid};
use crate::{WireError, v1 as pb};

/// Most (row, expert) pairs in one request: every row of a full step with eight experts each.
const MAX_ASSIGNED: usize = 8 * tramontane_model::step::MAX_STEP_ROWS;

/// One group's share of one MoE layer of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertWork {
    /// Whose step.
    pub fence: Fence,
    /// Which stage.
    pub stage: u32,
    /// Which of its groups.
    pub group: u32,
    /// Which step.
    pub step: StepId,
    /// Which layer of the model.
    pub layer: u32,
    /// How many of the rows are of role given; those come first.
    pub given_rows: u32,
    /// Normed rows: f32, little-endian, row-major, `dim` values a row.
    pub rows: Bytes,
    /// One (row, expert) per result.
    pub assigned: Vec<(u32, u32)>,
}

/// The answer to one [`ExpertWork`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertResults {
    /// Whose step.
    pub fence: Fence,
    /// Which step.
    pub step: StepId,
    /// Which layer.
    pub layer: u32,
    /// One row per assigned pair, before weighting: f32, little-endian, row-major, `dim` values a row.
    pub results: Bytes,
}

impl TryFrom<pb::ExpertRequest> for ExpertWork {
    type Error = WireError;
    fn try_from(wire: pb::ExpertRequest) -> Result<Self, WireError> {
        at_most("assigned", "pairs", wire.assigned.len(), MAX_ASSIGNED)?;
        if !wire.rows.len().is_multiple_of(4) {
            return Err(invalid(
                "rows",
                format_args!("{} bytes are no whole number of f32", wire.rows.len()),
            ));
        }
        Ok(Self {
            fence: fence(wire.fence)?,
            stage: wire.stage,
            group: wire.group,
            step: StepId(wire.step),
            layer: wire.layer,
            given_rows: wire.given_rows,
            rows: wire.rows,
            assigned: wire
                .assigned
                .into_iter()
                .map(|pair| (pair.row, pair.expert))
                .collect(),
        })
    }
}

impl From<ExpertWork> for pb::ExpertRequest {
    fn from(work: ExpertWork) -> Self {
        Self {
            fence: Some(work.fence.into()),
            stage: work.stage,
            group: work.group,
            step: work.step.0,
            layer: work.layer,
            given_rows: work.given_rows,
            rows: work.rows,
            assigned: work
                .assigned
                .into_iter()
                .map(|(row, expert)| pb::Assigned { row, expert })
                .collect(),
        }
    }
}

impl TryFrom<pb::ExpertResponse> for ExpertResults {
    type Error = WireError;
    fn try_from(wire: pb::ExpertResponse) -> Result<Self, WireError> {
        if !wire.results.len().is_multiple_of(4) {
            let problem = format_args!("{} bytes are no whole number of f32", wire.results.len());
            return Err(invalid("results", problem));
        }
        Ok(Self {
            fence: fence(wire.fence)?,
            step: StepId(wire.step),
            layer: wire.layer,
            results: wire.results,
        })
    }
}

impl From<ExpertResults> for pb::ExpertResponse {
    fn from(results: ExpertResults) -> Self {
        Self {
            fence: Some(results.fence.into()),
            step: results.step.0,
            layer: results.layer,
            results: results.results,
        }
    }
}
