//! What flows between stages: steps, hidden states and results.

use bytes::Bytes;
use tramontane_model::grammar::MAX_GRAMMAR_BYTES;
use tramontane_model::ids::{Fence, Origin, SequenceId, StepId};
use tramontane_model::step::{
    MAX_STEP_ROWS, MAX_STEP_SEQUENCES, Opening, RowRole, SequenceChunk, StepBatch, StepResult, Unsampled,
};

use crate::fields::{at_most, fence, invalid, request, required, trace};
use crate::net::MAX_TENSOR_MESSAGE_BYTES;
use crate::{WireError, v1 as pb};

// A step in which every sequence opens with the longest grammar leaves room for the rest of the message.
const _: () = assert!(MAX_STEP_SEQUENCES * MAX_GRAMMAR_BYTES <= MAX_TENSOR_MESSAGE_BYTES / 4 * 3);

/// Most blocks in one block table.
const MAX_BLOCK_TABLE: usize = 1 << 20;
/// Most tokens of one kind that an opening tells of: above any context that a model of the family takes.
const MAX_TOKENS_BEFORE: usize = 1 << 20;

/// Longest reason why a sequence was not sampled, in bytes.
pub const MAX_REASON_BYTES: usize = 1024;

/// Hidden states of some of a step's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowsChunk {
    /// Which step.
    pub step: StepId,
    /// Index of the first row in the step.
    pub first_row: u32,
    /// f32, little-endian, row-major, `dim` values a row.
    pub values: Bytes,
}

/// One message of a link between stages, after the fence was read.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkMessage {
    /// Comes first and once.
    Hello {
        /// The stage that opened the link.
        from_stage: u32,
        /// The stage that it means to reach.
        to_stage: u32,
    },
    /// Opens a step; its hidden states follow.
    Step(StepBatch),
    /// Hidden states of an open step, in order.
    Rows(RowsChunk),
    /// What the last stage sampled.
    Result(StepResult),
}

impl TryFrom<pb::Opening> for Opening {
    type Error = WireError;
    fn try_from(wire: pb::Opening) -> Result<Self, WireError> {
        for (field, found) in [
            ("open.prompt_before", wire.prompt_before.len()),
            ("open.generated_before", wire.generated_before.len()),
        ] {
            at_most(field, "tokens", found, MAX_TOKENS_BEFORE)?;
        }
        Ok(Self {
            origin: Origin {
                request: request("open.request", &wire.request)?,
                trace: trace("open.trace", &wire.trace)?,
            },
            sampling: required("open.sampling", wire.sampling)?.try_into()?,
            prompt_tokens: wire.prompt_tokens,
            prompt_before: wire.prompt_before,
            generated_before: wire.generated_before,
        })
    }
}

impl From<Opening> for pb::Opening {
    fn from(opening: Opening) -> Self {
        Self {
            request: opening.origin.request.0.to_be_bytes().to_vec().into(),
            trace: opening.origin.trace.bits().to_be_bytes().to_vec().into(),
            sampling: Some(opening.sampling.into()),
            prompt_tokens: opening.prompt_tokens,
            prompt_before: opening.prompt_before,
            generated_before: opening.generated_before,
        }
    }
}

impl TryFrom<pb::SequenceChunk> for SequenceChunk {
    type Error = WireError;
    fn try_from(wire: pb::SequenceChunk) -> Result<Self, WireError> {
        let role = match wire.role() {
            pb::RowRole::Given => RowRole::Given,
            pb::RowRole::Generated => RowRole::Generated,
            pb::RowRole::Expanded => RowRole::Expanded,
            pb::RowRole::Unspecified => {
                return Err(invalid("chunk.role", "it must be given, expanded or generated"));
            }
        };
        at_most("chunk.tokens", "rows", wire.tokens.len(), MAX_STEP_ROWS)?;
        at_most(
            "chunk.block_table",
            "blocks",
            wire.block_table.len(),
            MAX_BLOCK_TABLE,
        )?;
        at_most("chunk.scored", "tokens", wire.scored.len(), MAX_STEP_ROWS)?;
        Ok(Self {
            sequence: SequenceId(wire.sequence),
            open: wire.open.map(TryInto::try_into).transpose()?,
            first_position: wire.first_position,
            tokens: wire.tokens,
            role,
            sample: wire.sample,
            scored: wire.scored,
            block_table: wire.block_table,
        })
    }
}

impl From<SequenceChunk> for pb::SequenceChunk {
    fn from(chunk: SequenceChunk) -> Self {
        let role = match chunk.role {
            RowRole::Given => pb::RowRole::Given,
            RowRole::Generated => pb::RowRole::Generated,
            RowRole::Expanded => pb::RowRole::Expanded,
        };
        Self {
            sequence: chunk.sequence.0,
            open: chunk.open.map(Into::into),
            first_position: chunk.first_position,
            tokens: chunk.tokens,
            role: role.into(),
            sample: chunk.sample,
            scored: chunk.scored,
            block_table: chunk.block_table,
        }
    }
}

fn step(fence: Fence, wire: pb::Step) -> Result<StepBatch, WireError> {
    at_most("step.chunks", "sequences", wire.chunks.len(), MAX_STEP_SEQUENCES)?;
    at_most("step.closed", "sequences", wire.closed.len(), MAX_STEP_SEQUENCES)?;
    Ok(StepBatch {
        fence,
        step: StepId(wire.step),
        chunks: wire
            .chunks
            .into_iter()
            .map(SequenceChunk::try_from)
            .collect::<Result<_, _>>()?,
        closed: wire.closed.into_iter().map(SequenceId).collect(),
    })
}

fn result(fence: Fence, wire: pb::StepResult) -> Result<StepResult, WireError> {
    at_most(
        "result.tokens",
        "sequences",
        wire.tokens.len(),
        MAX_STEP_SEQUENCES,
    )?;
    let token = |entry: pb::SequenceToken| {
        let sampled = required("result.tokens.sampled", entry.sampled)?.try_into()?;
        Ok((SequenceId(entry.sequence), sampled))
    };
    let tokens = wire
        .tokens
        .into_iter()
        .map(token)
        .collect::<Result<_, WireError>>()?;
    at_most(
        "result.scored",
        "sequences",
        wire.scored.len(),
        MAX_STEP_SEQUENCES,
    )?;
    let rows = wire.scored.iter().map(|entry| entry.tokens.len()).sum();
    at_most("result.scored.tokens", "tokens", rows, MAX_STEP_ROWS)?;
    let scores = |entry: pb::SequenceScores| {
        let tokens = entry.tokens.into_iter().map(TryInto::try_into);
        Ok((
            SequenceId(entry.sequence),
            tokens.collect::<Result<_, WireError>>()?,
        ))
    };
    let scored = wire
        .scored
        .into_iter()
        .map(scores)
        .collect::<Result<_, WireError>>()?;
    at_most(
        "result.unsampled",
        "sequences",
        wire.unsampled.len(),
        MAX_STEP_SEQUENCES,
    )?;
    let unsampled = |entry: pb::Unsampled| {
        at_most(
            "result.unsampled.reason",
            "bytes",
            entry.reason.len(),
            MAX_REASON_BYTES,
        )?;
        Ok(Unsampled {
            sequence: SequenceId(entry.sequence),
            reason: entry.reason,
            passing: entry.passing,
        })
    };
    let unsampled = wire
        .unsampled
        .into_iter()
        .map(unsampled)
        .collect::<Result<_, WireError>>()?;
    Ok(StepResult {
        fence,
        step: StepId(wire.step),
        tokens,
        scored,
        unsampled,
    })
}

impl TryFrom<pb::StageMessage> for (Fence, LinkMessage) {
    type Error = WireError;
    fn try_from(wire: pb::StageMessage) -> Result<Self, WireError> {
        let fence = fence(wire.fence)?;
        let message = match required("body", wire.body)? {
            pb::stage_message::Body::Hello(hello) => LinkMessage::Hello {
                from_stage: hello.from_stage,
                to_stage: hello.to_stage,
            },
            pb::stage_message::Body::Step(wire) => LinkMessage::Step(step(fence, wire)?),
            pb::stage_message::Body::Rows(rows) => LinkMessage::Rows(RowsChunk {
                step: StepId(rows.step),
                first_row: rows.first_row,
                values: rows.values,
            }),
            pb::stage_message::Body::Result(wire) => LinkMessage::Result(result(fence, wire)?),
        };
        Ok((fence, message))
    }
}

impl From<(Fence, LinkMessage)> for pb::StageMessage {
    fn from((fence, message): (Fence, LinkMessage)) -> Self {
        let body = match message {
            LinkMessage::Hello { from_stage, to_stage } => {
                pb::stage_message::Body::Hello(pb::LinkHello { from_stage, to_stage })
            }
            LinkMessage::Step(batch) => pb::stage_message::Body::Step(pb::Step {
                step: batch.step.0,
                chunks: batch.chunks.into_iter().map(Into::into).collect(),
                closed: batch.closed.into_iter().map(|sequence| sequence.0).collect(),
            }),
            LinkMessage::Rows(rows) => pb::stage_message::Body::Rows(pb::Rows {
                step: rows.step.0,
                first_row: rows.first_row,
                values: rows.values,
            }),
            LinkMessage::Result(result) => pb::stage_message::Body::Result(pb::StepResult {
                step: result.step.0,
                tokens: result
                    .tokens
                    .into_iter()
                    .map(|(sequence, sampled)| pb::SequenceToken {
                        sequence: sequence.0,
                        sampled: Some(sampled.into()),
                    })
                    .collect(),
                scored: result
                    .scored
                    .into_iter()
                    .map(|(sequence, tokens)| pb::SequenceScores {
                        sequence: sequence.0,
                        tokens: tokens.into_iter().map(Into::into).collect(),
                    })
                    .collect(),
                unsampled: result
                    .unsampled
                    .into_iter()
                    .map(|entry| pb::Unsampled {
                        sequence: entry.sequence.0,
                        reason: entry.reason,
                        passing: entry.passing,
                    })
                    .collect(),
            }),
        };
        Self {
            fence: Some(fence.into()),
            body: Some(body),
        }
    }
}
