//! Bytes that a device needs beside its weights: the key-value cache and the buffers of the largest step.
//!
//! The planner plans with these numbers and the executor allocates from them, so that what is planned is what is held
//! (PL-2). Formulas only: no allocation here, and no weights (see [`crate::tensors::ModelBytes`]).

use crate::placement::{KvFormat, KvShape};
use crate::sampling::MAX_TOP_LOGPROBS;
use crate::spec::{AttentionSpec, ModelSpec};
use crate::step::{MAX_STEP_ROWS, MAX_STEP_SEQUENCES};
use crate::tensors::SECTION_ALIGN;

/// Most rows of logits on a device at once; a step that samples more does so in turns.
pub const LOGIT_ROWS: u32 = 32;
/// Bytes of one value of a buffer: f32, or an index.
const WORD: u64 = 4;
/// Words that accompany a row: position, slot, block table, query scale.
const ROW_META_WORDS: u64 = 4;
/// Words of one row's sampling parameters.
const SAMPLE_PARAM_WORDS: u64 = 12;
/// Words that say which logits an adjusted copy is made of and which adjustments are its own.
const ADJUSTED_ROW_WORDS: u64 = 8;
/// Words of the adjustment of one token's logit.
const ADJUSTMENT_WORDS: u64 = 4;
/// Words of one row's sampling result: token, log-probability, and the alternatives with theirs.
pub const SAMPLE_RESULT_WORDS: u64 = 2 + 2 * MAX_TOP_LOGPROBS as u64;

/// The largest step that a stage's buffers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepCapacity {
    /// Rows of a step, at most [`MAX_STEP_ROWS`].
    pub rows: u32,
    /// Sequences of a step, at most [`MAX_STEP_SEQUENCES`].
    pub sequences: u32,
    /// [`crate::step::StepBounds::expanded_group`]: with 0 no row is expanded, and nothing is held for it.
    pub expanded_group: u32,
}

impl Default for StepCapacity {
    /// A prompt chunk of some hundred rows beside the decode rows of as many sequences as a small cluster serves.
    fn default() -> Self {
        Self {
            rows: 512,
            sequences: 128,
            expanded_group: 0,
        }
    }
}

/// A capacity that no step can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("step capacity: {field} is {found}, it must be 1 to {limit}")]
pub struct CapacityError {
    /// Which field.
    pub field: &'static str,
    /// What it is.
    pub found: u32,
    /// What it may be.
    pub limit: usize,
}

impl StepCapacity {
    /// Checks both bounds.
    pub fn validate(&self) -> Result<(), CapacityError> {
        for (field, found, limit) in [
            ("rows", self.rows, MAX_STEP_ROWS),
            ("sequences", self.sequences, MAX_STEP_SEQUENCES),
        ] {
            if found == 0 || found as usize > limit {
                return Err(CapacityError { field, found, limit });
            }
        }
        Ok(())
    }
}

/// Bytes of one layer's cache: latent and rotated key of each token, or its keys and values.
pub fn kv_layer_bytes(spec: &ModelSpec, kv: KvShape) -> u64 {
    u64::from(kv.blocks)
        .saturating_mul(u64::from(kv.block_tokens))
        .saturating_mul(u64::from(spec.kv_values_per_token_layer()) * kv.format.value_bytes())
}

/// Blocks in the table of the longest sequence that cache and context allow.
pub fn max_table_width(spec: &ModelSpec, kv: KvShape) -> u32 {
    spec.max_context.div_ceil(kv.block_tokens.max(1)).min(kv.blocks)
}

/// Tokens that a split of attention has at least.
pub const LEAST_ATTENTION_SPLIT: u32 = 256;
/// Heads at most that attention computes together.
pub const MOST_TILE_HEADS: u32 = 16;
/// Rows at most of whose sequences all splits are in memory at once.
pub const MOST_PARTIAL_ROWS: u32 = 64;
/// Bytes at most of what splits come to before they are merged, as long as that suffices for [`MOST_TILE_HEADS`] of a row.
pub const MOST_PARTIAL_BYTES: u64 = 64 << 20;

/// Tokens of a context that are expanded at once, at multiples of it from position 0.
pub const EXPANDED_TOKENS: u32 = 512;
/// Words of how far a head of an expanded row has come: the largest score and the sum of shares, by fours.
pub const EXPANDED_STATE_WORDS: u32 = 4;

/// Words of what one head comes to in one split: sums, the largest score, the sum of shares; by fours.
pub const fn attention_partial_words(value: u32) -> u64 {
    value as u64 + 4
}

/// Bytes of every buffer that a stage's owner needs to run a step, each a multiple of [`SECTION_ALIGN`]. Those of the
/// other kind of attention are as small as a buffer can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerScratch {
    /// Token ids, `[rows]`.
    pub tokens: u64,
    /// Position, slot, table and query scale, `[rows, 4]`.
    pub meta: u64,
    /// Cosines and sines, `[rows, rotated values of a head]`.
    pub rotary: u64,
    /// Block tables, `[sequences, longest]`.
    pub tables: u64,
    /// Residual stream, `[rows, dim]`.
    pub hidden: u64,
    /// Its norm, `[rows, dim]`.
    pub normed: u64,
    /// Compressed query, `[rows, q_lora_rank]`.
    pub compressed: u64,
    /// Its norm, `[rows, q_lora_rank]`.
    pub compressed_normed: u64,
    /// Expanded query before it is rotated, `[rows, heads * (nope + rope)]` or `[rows, heads * head_dim]`.
    pub expanded: u64,
    /// Latent and key before the norm, `[rows, kv_lora_rank + rope]`.
    pub latent: u64,
    /// Keys before they are rotated, `[rows, kv_heads * head_dim]`.
    pub keys: u64,
    /// Values, `[rows, kv_heads * head_dim]`.
    pub values: u64,
    /// Query that attention reads, `[rows, heads * (kv_lora_rank + rope)]` or `[rows, heads * head_dim]`.
    pub queries: u64,
    /// Sums of attention over splits of sequences, of as many rows and heads at once as fit:
    /// [`MOST_PARTIAL_ROWS`], [`MOST_PARTIAL_BYTES`].
    pub partials: u64,
    /// Attention over the latents, `[rows, heads * kv_lora_rank]`, or its values, `[rows, heads * head_dim]`.
    pub context: u64,
    /// Values of attention over latents, `[rows, heads * v]`.
    pub attended: u64,
    /// Latents of [`EXPANDED_TOKENS`] tokens, `[tokens, kv_lora_rank]`. This and what follows only where rows are expanded:
    /// [`StepCapacity::expanded_group`].
    pub expanded_latents: u64,
    /// Their keys and values, `[tokens, heads * (nope + v)]`, and the keys' rotated parts, `[tokens, rope]`.
    pub expanded_tokens: u64,
    /// How far rows have come in their contexts, `[rows, heads, 4]`.
    pub expanded_state: u64,
    /// Hidden layer of the dense or shared feed-forward, `[rows, hidden]`.
    pub gated: u64,
    /// Result of the shared experts, `[rows, dim]`.
    pub shared: u64,
    /// The router's logits, `[rows, n_experts]`.
    pub router_logits: u64,
    /// Chosen experts, `[rows, experts_per_token]`.
    pub expert_ids: u64,
    /// Their weights, `[rows, experts_per_token]`.
    pub expert_weights: u64,
    /// Their results, `[rows * experts_per_token, dim]`.
    pub expert_results: u64,
}

/// Bytes of the buffers that only the owner of the last stage needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadScratch {
    /// Rows to sample, `[LOGIT_ROWS]`.
    pub picks: u64,
    /// Their norms, `[LOGIT_ROWS, dim]`.
    pub normed: u64,
    /// Their logits, then adjusted copies of some of them, `[2 * LOGIT_ROWS, vocab]`.
    pub logits: u64,
    /// Their sampling parameters, `[LOGIT_ROWS, 12]`.
    pub params: u64,
    /// The adjusted copies, `[LOGIT_ROWS, 8]`.
    pub adjusted: u64,
    /// Which tokens they may have, a bit each, `[LOGIT_ROWS, vocab / 32]`.
    pub masks: u64,
    /// Adjustments of tokens, as many as one row can have, `[vocab, 4]`.
    pub adjustments: u64,
    /// What the sampler says, `[LOGIT_ROWS, 42]`.
    pub sampled: u64,
}

/// Bytes of the buffers inside the routed experts' op, for one call at a time, whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertScratchBytes {
    /// Pairs of row and expert grouped by expert, where each expert's begin, and tiles of them.
    pub plan: u64,
    /// Hidden layers, `[rows * experts_per_token, expert_hidden_dim]`.
    pub hidden: u64,
}

/// Bytes of the buffers in which a device computes experts for the owners of stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HolderScratch {
    /// One normed row per pair of row and expert, `[rows * experts_per_token, dim]`.
    pub input: u64,
    /// The expert of each pair.
    pub expert_ids: u64,
    /// Their results, `[rows * experts_per_token, dim]`.
    pub results: u64,
}

/// A buffer of `count * width` words, rounded up as a device does.
fn words(count: u64, width: u64) -> u64 {
    count
        .saturating_mul(width)
        .saturating_mul(WORD)
        .max(WORD)
        .checked_next_multiple_of(SECTION_ALIGN)
        .unwrap_or(u64::MAX - SECTION_ALIGN + 1)
}

/// Experts per token and expert width; 0 for a dense model.
fn expert_sizes(spec: &ModelSpec) -> (u64, u64) {
    spec.moe.as_ref().map_or((0, 0), |moe| {
        (
            u64::from(moe.n_experts_per_token),
            u64::from(moe.expert_hidden_dim),
        )
    })
}

/// Widths of a row in the buffers of attention; 0 where the kind of attention does not use them.
#[derive(Default)]
struct AttentionWidths {
    compressed: u32,
    expanded: u32,
    latent: u32,
    kv: u32,
    queries: u32,
    context: u32,
    attended: u32,
    /// What expanding reads and gives of a token.
    expanded_latent: u32,
    expanded_token: u32,
    heads: u32,
}

impl AttentionWidths {
    fn new(attention: &AttentionSpec) -> Self {
        match attention {
            AttentionSpec::Mla(mla) => Self {
                compressed: mla.q_lora_rank,
                expanded: mla.n_heads * mla.qk_head_dim(),
                latent: mla.kv_values(),
                queries: mla.n_heads.saturating_mul(mla.kv_values()),
                context: mla.n_heads.saturating_mul(mla.kv_lora_rank),
                attended: mla.n_heads * mla.v_head_dim,
                expanded_latent: mla.kv_lora_rank,
                expanded_token: (mla.qk_nope_head_dim + mla.v_head_dim)
                    .saturating_mul(mla.n_heads)
                    .saturating_add(mla.qk_rope_head_dim),
                heads: mla.n_heads,
                ..Self::default()
            },
            AttentionSpec::Gqa(gqa) => Self {
                expanded: gqa.q_dim(),
                kv: gqa.kv_dim(),
                queries: gqa.q_dim(),
                context: gqa.q_dim(),
                heads: gqa.n_heads,
                ..Self::default()
            },
        }
    }

    /// Partials of the longest sequences, of [`MOST_PARTIAL_ROWS`] rows or [`MOST_PARTIAL_BYTES`], and at least of the heads
    /// that are computed together.
    fn partials(&self, capacity: StepCapacity, table_width: u32, block_tokens: u32) -> u64 {
        let tokens = u64::from(table_width).saturating_mul(block_tokens.into());
        let splits = tokens.div_ceil(LEAST_ATTENTION_SPLIT.into());
        if splits <= 1 {
            return words(1, 1);
        }
        let of_head = splits.saturating_mul(attention_partial_words(self.context / self.heads.max(1)));
        let all = words(
            u64::from(capacity.rows.min(MOST_PARTIAL_ROWS)) * u64::from(self.heads),
            of_head,
        );
        let least = words(self.heads.min(MOST_TILE_HEADS).into(), of_head);
        all.min(MOST_PARTIAL_BYTES).max(least)
    }
}

impl OwnerScratch {
    /// The buffers for steps of `capacity` over a cache of `kv`.
    pub fn new(spec: &ModelSpec, capacity: StepCapacity, kv: KvShape) -> Self {
        let rows = |width: u32| words(u64::from(capacity.rows), u64::from(width));
        let attention = AttentionWidths::new(&spec.attention);
        let tokens = |width: u32| match (capacity.expanded_group, attention.expanded_token) {
            (0, _) | (_, 0) => words(1, 1),
            _ => words(EXPANDED_TOKENS.into(), width.into()),
        };
        let pairs = u64::from(capacity.rows) * expert_sizes(spec).0;
        let shared_hidden = spec.moe.as_ref().map_or(0, |moe| moe.shared_hidden_dim());
        Self {
            tokens: rows(1),
            meta: words(u64::from(capacity.rows), ROW_META_WORDS),
            rotary: rows(spec.rope.dim),
            tables: words(
                u64::from(capacity.sequences),
                u64::from(max_table_width(spec, kv)),
            ),
            hidden: rows(spec.dim),
            normed: rows(spec.dim),
            compressed: rows(attention.compressed),
            compressed_normed: rows(attention.compressed),
            expanded: rows(attention.expanded),
            latent: rows(attention.latent),
            keys: rows(attention.kv),
            values: rows(attention.kv),
            queries: rows(attention.queries),
            partials: attention.partials(capacity, max_table_width(spec, kv), kv.block_tokens),
            context: rows(attention.context),
            attended: rows(attention.attended),
            expanded_latents: tokens(attention.expanded_latent),
            expanded_tokens: tokens(attention.expanded_token),
            expanded_state: match capacity.expanded_group {
                0 => words(1, 1),
                _ => rows(attention.expanded_token.min(1) * attention.heads * EXPANDED_STATE_WORDS),
            },
            gated: rows(spec.dense_hidden_dim.max(shared_hidden)),
            shared: rows(spec.dim),
            router_logits: rows(spec.n_experts()),
            expert_ids: words(pairs, 1),
            expert_weights: words(pairs, 1),
            expert_results: words(pairs, spec.dim.into()),
        }
    }

    /// All buffers with their names.
    pub fn each(&self) -> [(&'static str, u64); 25] {
        [
            ("tokens", self.tokens),
            ("row meta", self.meta),
            ("rotary", self.rotary),
            ("block tables", self.tables),
            ("hidden", self.hidden),
            ("normed", self.normed),
            ("compressed query", self.compressed),
            ("normed compressed query", self.compressed_normed),
            ("expanded query", self.expanded),
            ("latent", self.latent),
            ("keys", self.keys),
            ("values", self.values),
            ("query", self.queries),
            ("attention partials", self.partials),
            ("attention context", self.context),
            ("attention values", self.attended),
            ("latents to expand", self.expanded_latents),
            ("expanded keys and values", self.expanded_tokens),
            ("state of expanded rows", self.expanded_state),
            ("gated", self.gated),
            ("shared expert result", self.shared),
            ("router logits", self.router_logits),
            ("expert ids", self.expert_ids),
            ("expert weights", self.expert_weights),
            ("expert results", self.expert_results),
        ]
    }

    /// All bytes.
    pub fn total(&self) -> u64 {
        sum(&self.each())
    }
}

impl HeadScratch {
    /// The buffers, which do not depend on the step.
    pub fn new(spec: &ModelSpec) -> Self {
        let rows = |width: u64| words(LOGIT_ROWS.into(), width);
        Self {
            picks: rows(1),
            normed: rows(spec.dim.into()),
            logits: rows(2 * u64::from(spec.vocab_size)),
            params: rows(SAMPLE_PARAM_WORDS),
            adjusted: rows(ADJUSTED_ROW_WORDS),
            masks: rows(u64::from(spec.vocab_size).div_ceil(32)),
            adjustments: words(spec.vocab_size.into(), ADJUSTMENT_WORDS),
            sampled: rows(SAMPLE_RESULT_WORDS),
        }
    }

    /// All buffers with their names.
    pub fn each(&self) -> [(&'static str, u64); 8] {
        [
            ("sampled rows", self.picks),
            ("normed sampled rows", self.normed),
            ("logits", self.logits),
            ("sampling parameters", self.params),
            ("adjusted rows", self.adjusted),
            ("masks", self.masks),
            ("adjustments", self.adjustments),
            ("sampling results", self.sampled),
        ]
    }

    /// All bytes.
    pub fn total(&self) -> u64 {
        sum(&self.each())
    }
}

/// Pairs that a tile has room for at least, where the pairs of experts are cut in tiles.
pub const LEAST_PAIR_TILE: u64 = 4;

/// Words of an expert plan: bounds of each expert's pairs, the number of tiles, the pairs, and two words a tile.
pub const fn expert_plan_words(pairs: u64, experts: u64) -> u64 {
    experts + 2 + pairs + 2 * (pairs / LEAST_PAIR_TILE + experts)
}

impl ExpertScratchBytes {
    /// The buffers for steps of `capacity`.
    pub fn new(spec: &ModelSpec, capacity: StepCapacity) -> Self {
        let (per_token, hidden) = expert_sizes(spec);
        let pairs = u64::from(capacity.rows) * per_token;
        Self {
            plan: words(expert_plan_words(pairs, spec.n_experts().into()), 1),
            hidden: words(pairs, hidden),
        }
    }

    /// All buffers with their names.
    pub fn each(&self) -> [(&'static str, u64); 2] {
        [("expert plan", self.plan), ("expert hidden", self.hidden)]
    }

    /// All bytes.
    pub fn total(&self) -> u64 {
        sum(&self.each())
    }
}

impl HolderScratch {
    /// The buffers for requests of owners whose steps are of `capacity`.
    pub fn new(spec: &ModelSpec, capacity: StepCapacity) -> Self {
        let pairs = u64::from(capacity.rows) * expert_sizes(spec).0;
        Self {
            input: words(pairs, spec.dim.into()),
            expert_ids: words(pairs, 1),
            results: words(pairs, spec.dim.into()),
        }
    }

    /// All buffers with their names.
    pub fn each(&self) -> [(&'static str, u64); 3] {
        [
            ("requested rows", self.input),
            ("requested experts", self.expert_ids),
            ("requested results", self.results),
        ]
    }

    /// All bytes.
    pub fn total(&self) -> u64 {
        sum(&self.each())
    }
}

fn sum(buffers: &[(&'static str, u64)]) -> u64 {
    buffers
        .iter()
        .fold(0, |total, (_, bytes)| total.saturating_add(*bytes))
}

/// Most bytes beside weights and cache that owning any stage takes, its own experts and the head included.
///
/// The cache may have any number of blocks: block tables are counted for the longest context.
pub fn owner_scratch_bytes(spec: &ModelSpec, capacity: StepCapacity, block_tokens: u32) -> u64 {
    let kv = KvShape {
        block_tokens,
        blocks: u32::MAX,
        // Of no consequence for buffers.
        format: KvFormat::F32,
    };
    OwnerScratch::new(spec, capacity, kv)
        .total()
        .saturating_add(ExpertScratchBytes::new(spec, capacity).total())
}

/// Bytes that the owner of the last stage needs beside that, to sample.
pub fn head_scratch_bytes(spec: &ModelSpec) -> u64 {
    HeadScratch::new(spec).total()
}

/// Most bytes beside weights that holding expert groups of stages of others takes, however many groups.
pub fn holder_scratch_bytes(spec: &ModelSpec, capacity: StepCapacity) -> u64 {
    HolderScratch::new(spec, capacity)
        .total()
        .saturating_add(ExpertScratchBytes::new(spec, capacity).total())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const CAPACITY: StepCapacity = StepCapacity {
        rows: 100,
        sequences: 10,
        expanded_group: 0,
    };
    const KV: KvShape = KvShape {
        block_tokens: 16,
        blocks: 64,
        format: KvFormat::F32,
    };

    fn spec(path: &str) -> ModelSpec {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        ModelSpec::from_json(&std::fs::read(&file).expect("a fixture"), &file).expect("a valid spec")
    }

    #[test]
    fn the_miniature_needs_what_its_widths_say() {
        let spec = spec("cli/assets/mini-large-3/params.json");
        let owner = OwnerScratch::new(&spec, CAPACITY, KV);
        // 100 rows of 256, of 8 heads x (64 + 16), of 8 x 64; 400 pairs of 256.
        assert_eq!(owner.hidden, 102_400);
        assert_eq!(owner.queries, 256_000);
        assert_eq!(owner.context, 204_800);
        // 64 rows of 8 heads x 4 splits x (64 + 4).
        assert_eq!(owner.partials, 557_056);
        assert_eq!(owner.expert_results, 409_600);
        assert_eq!(owner.tables, 10 * 64 * 4);
        assert_eq!(kv_layer_bytes(&spec, KV), 64 * 16 * 80 * 4);
        let halves = KvShape {
            format: KvFormat::F16,
            ..KV
        };
        assert_eq!(kv_layer_bytes(&spec, halves), 64 * 16 * 80 * 2);
        assert_eq!(OwnerScratch::new(&spec, CAPACITY, halves), owner);
        assert_eq!(HeadScratch::new(&spec).logits, 2 * 32 * 8192 * 4);
        assert_eq!(ExpertScratchBytes::new(&spec, CAPACITY).plan, 2608);
        let sum: u64 = owner.each().iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(owner.total(), sum);
    }

    #[test]
    fn splits_of_attention_take_no_more_than_they_may() {
        let large = spec("tests/fixtures/params/large-3.json");
        let partials = |rows: u32, blocks: u32| {
            let capacity = StepCapacity { rows, ..CAPACITY };
            OwnerScratch::new(&large, capacity, KvShape { blocks, ..KV }).partials
        };
        let of_row = 128 * attention_partial_words(512) * 4;
        assert_eq!(partials(100, 16), SECTION_ALIGN);
        assert_eq!(partials(3, 17), 3 * 2 * of_row);
        assert_eq!(partials(100, 32), u64::from(MOST_PARTIAL_ROWS) * 2 * of_row);
        assert_eq!(partials(100, 1 << 20), MOST_PARTIAL_BYTES);
    }

    #[test]
    fn a_table_is_no_longer_than_the_context() {
        let spec = spec("cli/assets/mini-large-3/params.json");
        let kv = KvShape {
            blocks: 1 << 20,
            ..KV
        };
        assert_eq!(max_table_width(&spec, kv), 256);
        assert_eq!(max_table_width(&spec, KV), 64);
    }

    #[test]
    fn what_is_planned_for_any_stage_covers_each() {
        for path in [
            "cli/assets/mini-large-3/params.json",
            "tests/fixtures/params/large-3.json",
        ] {
            let spec = spec(path);
            let planned = owner_scratch_bytes(&spec, CAPACITY, KV.block_tokens);
            let used = OwnerScratch::new(&spec, CAPACITY, KV).total()
                + ExpertScratchBytes::new(&spec, CAPACITY).total();
            assert!(used <= planned, "{path}: {used} {planned}");
            assert!(planned < 2 << 30, "{path}: {planned}");
        }
    }

    #[test]
    fn capacities_are_bounded() {
        assert_eq!(StepCapacity::default().validate(), Ok(()));
        for (rows, sequences) in [(0, 1), (1, 0), (8193, 1), (1, 1025)] {
            let capacity = StepCapacity {
                rows,
                sequences,
                expanded_group: 0,
            };
            assert!(capacity.validate().is_err());
        }
    }
}
