//! What a step asks of the device, laid out for its ops.
//!
//! Pure: from a checked step and the model to the arrays that are uploaded. On the device generated rows come before
//! given ones, and these before expanded ones; `order` says which row of the step each of them is.

use tramontane_model::footprint::StepCapacity;
use tramontane_model::placement::KvShape;
use tramontane_model::rope::{RotaryTable, query_scale};
use tramontane_model::spec::{AttentionSpec, ModelSpec};
use tramontane_model::step::{RowRole, SequenceChunk, StepBatch, StepLimits};

use super::DeviceError;
use tramontane_kernels::ops::{PromptRows, RowMeta, Rows};

/// A row whose logits are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SampledRow {
    /// The row on the device.
    pub(super) row: u32,
    /// Its role.
    pub(super) role: RowRole,
    /// The chunk that it is in; its last row if it is sampled.
    pub(super) chunk: usize,
    /// The token of the prompt that follows it and is to be scored; none if its logits are sampled.
    pub(super) scores: Option<u32>,
}

/// A step, laid out.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StepPlan {
    /// Expanded rows are given ones.
    pub(super) rows: Rows,
    /// The expanded ones, which are the last: each chunk's.
    pub(super) expanded: Vec<PromptRows>,
    /// The step's row of each row on the device.
    pub(super) order: Vec<u32>,
    pub(super) tokens: Vec<u32>,
    pub(super) meta: Vec<RowMeta>,
    /// `[rows, rope]`.
    pub(super) rotary: Vec<f32>,
    /// `[chunks, table_width]`; entries past a chunk's last row are 0 and never read.
    pub(super) tables: Vec<u32>,
    pub(super) table_rows: u32,
    pub(super) table_width: u32,
    /// Generated rows first.
    pub(super) samples: Vec<SampledRow>,
}

/// The bounds of a step over a cache of `kv`.
pub(super) fn limits(spec: &ModelSpec, kv: KvShape) -> StepLimits {
    StepLimits {
        vocab_size: spec.vocab_size,
        max_positions: spec.max_context,
        block_tokens: kv.block_tokens,
        blocks: kv.blocks,
    }
}

/// Checks every bound of a step.
pub(super) fn check(
    batch: &StepBatch,
    spec: &ModelSpec,
    kv: KvShape,
    capacity: StepCapacity,
) -> Result<(), DeviceError> {
    for (what, found, limit) in [
        ("rows", batch.rows(), capacity.rows),
        ("sequences", batch.chunks.len(), capacity.sequences),
    ] {
        if found > limit as usize {
            return Err(DeviceError::Capacity {
                step: batch.step,
                what,
                found,
                limit: limit as usize,
            });
        }
    }
    let expanded = |chunk: &&SequenceChunk| chunk.role == RowRole::Expanded;
    if capacity.expanded_group == 0
        && let Some(chunk) = batch.chunks.iter().find(expanded)
    {
        return Err(DeviceError::Capacity {
            step: batch.step,
            what: "expanded rows",
            found: chunk.tokens.len(),
            limit: 0,
        });
    }
    Ok(batch.validate(&limits(spec, kv))?)
}

impl StepPlan {
    /// Lays a checked step out.
    pub(super) fn new(batch: &StepBatch, spec: &ModelSpec, kv: KvShape, rotary: &RotaryTable) -> Self {
        let total = batch.rows();
        let used = |chunk: &SequenceChunk| blocks_of(chunk, kv);
        let width = batch.chunks.iter().map(used).max().unwrap_or(0);
        let mut plan = Self {
            rows: Rows::new(0, 0),
            expanded: Vec::new(),
            order: Vec::with_capacity(total),
            tokens: Vec::with_capacity(total),
            meta: Vec::with_capacity(total),
            rotary: vec![0.0; total * rotary.row_len()],
            tables: vec![0; batch.chunks.len() * width],
            table_rows: batch.chunks.len() as u32,
            table_width: width as u32,
            samples: Vec::with_capacity(batch.looked_at()),
        };
        for (table, chunk) in plan.tables.chunks_exact_mut(width.max(1)).zip(&batch.chunks) {
            let blocks = used(chunk);
            table[..blocks].copy_from_slice(&chunk.block_table[..blocks]);
        }
        for role in [RowRole::Generated, RowRole::Given, RowRole::Expanded] {
            let mut first_row = 0_u32;
            for (index, chunk) in batch.chunks.iter().enumerate() {
                if role_of(chunk, spec) == role {
                    plan.add(index, first_row, chunk, spec, kv);
                }
                first_row += chunk.tokens.len() as u32;
            }
            let rows = plan.order.len() as u32;
            plan.rows = match role {
                RowRole::Generated => Rows::new(rows, 0),
                RowRole::Given | RowRole::Expanded => {
                    Rows::new(plan.rows.generated, rows - plan.rows.generated)
                }
            };
        }
        let row_len = rotary.row_len().max(1);
        for (row, meta) in plan.rotary.chunks_exact_mut(row_len).zip(&plan.meta) {
            rotary.write_row(meta.position, row);
        }
        plan
    }

    fn add(&mut self, index: usize, first_row: u32, chunk: &SequenceChunk, spec: &ModelSpec, kv: KvShape) {
        let positions = chunk.first_position..;
        let first = self.order.len() as u32;
        if role_of(chunk, spec) == RowRole::Expanded {
            self.expanded.push(PromptRows {
                first_row: first,
                rows: chunk.tokens.len() as u32,
                first_position: chunk.first_position,
                table: index as u32,
            });
        }
        for ((token, position), row) in chunk.tokens.iter().zip(positions).zip(first_row..) {
            let block = chunk.block_table[(position / kv.block_tokens) as usize];
            self.order.push(row);
            self.tokens.push(*token);
            self.meta.push(RowMeta {
                position,
                slot: block * kv.block_tokens + position % kv.block_tokens,
                table: index as u32,
                query_scale: query_scale(spec.query_scaling.as_ref(), position),
            });
        }
        self.samples
            .extend((first..).zip(&chunk.scored).map(|(row, &token)| SampledRow {
                row,
                role: chunk.role,
                chunk: index,
                scores: Some(token),
            }));
        if chunk.sample {
            self.samples.push(SampledRow {
                row: self.order.len() as u32 - 1,
                role: chunk.role,
                chunk: index,
                scores: None,
            });
        }
    }

    /// Whether the rows on the device are in the order of the step.
    pub(super) fn is_in_order(&self) -> bool {
        self.order.iter().zip(0..).all(|(&row, index)| row == index)
    }
}

/// As what a chunk's rows are computed: grouped-query attention has no absorbed form, so nothing to expand.
fn role_of(chunk: &SequenceChunk, spec: &ModelSpec) -> RowRole {
    match (chunk.role, &spec.attention) {
        (RowRole::Expanded, AttentionSpec::Gqa(_)) => RowRole::Given,
        (role, AttentionSpec::Mla(_) | AttentionSpec::Gqa(_)) => role,
    }
}

/// Blocks that a chunk's rows reach into, from the start of its sequence.
fn blocks_of(chunk: &SequenceChunk, kv: KvShape) -> usize {
    let end = u64::from(chunk.first_position) + chunk.tokens.len() as u64;
    end.div_ceil(kv.block_tokens.into()) as usize
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tramontane_model::ids::{Fence, Generation, ReplicaId, SequenceId, StepId};
    use tramontane_model::placement::KvFormat;

    use super::*;

    const KV: KvShape = KvShape {
        block_tokens: 4,
        blocks: 8,
        format: KvFormat::F32,
    };

    fn spec() -> ModelSpec {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/mini-large-3/params.json");
        ModelSpec::from_json(&std::fs::read(&file).expect("the fixture"), &file).expect("a valid spec")
    }

    fn chunk(first_position: u32, tokens: &[u32], role: RowRole, block_table: &[u32]) -> SequenceChunk {
        SequenceChunk {
            sequence: SequenceId(first_position.into()),
            open: None,
            first_position,
            tokens: tokens.to_vec(),
            role,
            sample: true,
            scored: vec![],
            block_table: block_table.to_vec(),
        }
    }

    fn batch(chunks: Vec<SequenceChunk>) -> StepBatch {
        StepBatch {
            fence: Fence {
                replica: ReplicaId(1),
                generation: Generation(1),
            },
            step: StepId(0),
            chunks,
            closed: vec![],
        }
    }

    #[test]
    fn generated_rows_come_first_and_every_row_has_its_slot() {
        let spec = spec();
        let batch = batch(vec![
            chunk(3, &[10, 11, 12], RowRole::Given, &[5, 2]),
            chunk(9, &[20], RowRole::Generated, &[7, 6, 1]),
            chunk(4, &[50, 51], RowRole::Expanded, &[0, 6]),
            chunk(300, &[30], RowRole::Given, &[3; 76]),
            SequenceChunk {
                sample: false,
                scored: vec![41, 42],
                ..chunk(0, &[40, 41], RowRole::Given, &[4])
            },
        ]);
        let plan = StepPlan::new(&batch, &spec, KV, &RotaryTable::new(&spec.rope));
        assert_eq!(plan.rows, Rows::new(1, 8));
        assert_eq!(plan.order, [3, 0, 1, 2, 6, 7, 8, 4, 5]);
        assert_eq!(plan.tokens, [20, 10, 11, 12, 30, 40, 41, 50, 51]);
        let expanded = PromptRows {
            first_row: 7,
            rows: 2,
            first_position: 4,
            table: 2,
        };
        assert_eq!(plan.expanded, [expanded]);
        assert!(!plan.is_in_order());
        let slots: Vec<u32> = plan.meta.iter().map(|meta| meta.slot).collect();
        assert_eq!(
            slots,
            [
                4 + 1,
                5 * 4 + 3,
                2 * 4,
                2 * 4 + 1,
                3 * 4,
                4 * 4,
                4 * 4 + 1,
                6 * 4,
                6 * 4 + 1
            ]
        );
        assert_eq!((plan.table_rows, plan.table_width), (5, 76));
        assert_eq!(plan.tables[..3], [5, 2, 0]);
        assert_eq!(plan.tables[76..80], [7, 6, 1, 0]);
        let looked_at = plan.samples.iter();
        let looked_at: Vec<(u32, usize, Option<u32>)> =
            looked_at.map(|row| (row.row, row.chunk, row.scores)).collect();
        assert_eq!(
            looked_at,
            [
                (0, 1, None),
                (3, 0, None),
                (4, 3, None),
                (5, 4, Some(41)),
                (6, 4, Some(42)),
                (8, 2, None)
            ]
        );
        // The miniature's queries grow at position 256.
        assert_eq!(plan.meta[3].query_scale, 1.0);
        assert!(plan.meta[4].query_scale > 1.06);
    }

    #[test]
    fn steps_beyond_the_buffers_are_refused() {
        let spec = spec();
        let capacity = StepCapacity {
            rows: 3,
            sequences: 2,
            expanded_group: 0,
        };
        let row = |position| chunk(position, &[1], RowRole::Generated, &[0]);
        let check = |chunks| check(&batch(chunks), &spec, KV, capacity);
        assert_eq!(check(vec![row(0), row(1)]), Ok(()));
        assert!(matches!(
            check(vec![row(0), row(1), row(2)]),
            Err(DeviceError::Capacity {
                what: "sequences",
                ..
            })
        ));
        let long = chunk(0, &[1; 4], RowRole::Given, &[0]);
        assert!(matches!(
            check(vec![long]),
            Err(DeviceError::Capacity { what: "rows", .. })
        ));
        assert!(matches!(check(vec![row(4)]), Err(DeviceError::Step(_))));
        let expanded = chunk(0, &[1], RowRole::Expanded, &[0]);
        let what = "expanded rows";
        let refused = check(vec![expanded]);
        assert!(matches!(refused, Err(DeviceError::Capacity { what: found, .. }) if found == what));
    }
}
