//! What a scheduler is told once: its cache, its limits, its model's bounds.
//!
//! No defaults here: the host derives every number from the placement and its own configuration.

use tramontane_model::footprint::StepCapacity;
use tramontane_model::ids::Fence;
use tramontane_model::placement::KvShape;
use tramontane_model::step::StepLimits;

/// Most steps that may be in flight.
pub const MAX_STEPS_IN_FLIGHT: usize = 256;
/// Most sequences that may hold blocks at one time.
pub const MAX_SEQUENCES: usize = 1 << 16;
/// Most requests that may wait.
pub const MAX_WAITING: usize = 1 << 20;
/// Most blocks of a cache.
pub const MAX_KV_BLOCKS: u32 = 1 << 24;

/// Limits of one scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// The replica and generation that every step carries.
    pub fence: Fence,
    /// The cache, the same on every stage.
    pub kv: KvShape,
    /// Steps between their start on the first stage and their result: at least the number of stages, so that each
    /// stage has one to work on.
    pub steps_in_flight: usize,
    /// What a stage's buffers hold: no step has more rows or sequences.
    pub capacity: StepCapacity,
    /// Rows of a step that are prompt, or emitted tokens computed again; what is longer comes in chunks. Below
    /// `capacity.rows`: the other rows are for decoding.
    pub max_prefill_rows: usize,
    /// Sequences that may hold cache blocks at one time; see [`Self::running_limit`].
    pub max_sequences: usize,
    /// Submissions that may wait for blocks. Preempted sequences wait beside them and are never refused.
    pub max_waiting: usize,
    /// Tokens, prompts and longest outputs together, that submissions may wait with; one alone may have more.
    pub max_waiting_tokens: u64,
    /// Whether full blocks are kept and shared between sequences that begin alike. Never changes a token.
    pub prefix_cache: bool,
    /// Milliseconds that a step with prompt rows may take while sequences decode; where a step without takes more than half
    /// of it, twice what that takes. As far as the host tells what steps take.
    pub target_ms: u32,
    /// Positions that the model takes.
    pub max_positions: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
}

/// A configuration that cannot work, with every fault it has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("scheduler configuration: {}", faults.join("; "))]
pub struct ConfigError {
    /// Each names its field, what was found and what would be right.
    pub faults: Vec<String>,
}

impl SchedulerConfig {
    /// Checks every field, and that prompts leave decode rows and the cache leaves an output some room.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        let mut within = |field: &str, found: usize, limit: usize| {
            if !(1..=limit).contains(&found) {
                faults.push(format!("{field} is {found}, it must be 1 to {limit}"));
            }
        };
        within(
            "kv.block_tokens",
            self.kv.block_tokens as usize,
            u32::MAX as usize,
        );
        within("kv.blocks", self.kv.blocks as usize, MAX_KV_BLOCKS as usize);
        within("steps_in_flight", self.steps_in_flight, MAX_STEPS_IN_FLIGHT);
        within("max_sequences", self.max_sequences, MAX_SEQUENCES);
        within("max_waiting", self.max_waiting, MAX_WAITING);
        let waiting_tokens = usize::try_from(self.max_waiting_tokens).unwrap_or(usize::MAX);
        within("max_waiting_tokens", waiting_tokens, usize::MAX);
        within("target_ms", self.target_ms as usize, u32::MAX as usize);
        within("max_positions", self.max_positions as usize, u32::MAX as usize);
        within("vocab_size", self.vocab_size as usize, u32::MAX as usize);
        faults.extend(self.capacity.validate().err().map(|error| error.to_string()));
        let (prefill, rows) = (self.max_prefill_rows, self.capacity.rows as usize);
        if !(1..rows).contains(&prefill) {
            faults.push(format!(
                "max_prefill_rows is {prefill}, it must be at least 1 and below the {rows} rows of a step"
            ));
        }
        let group = self.capacity.expanded_group;
        if group as usize > prefill {
            faults.push(format!(
                "expanded_group is {group}, it must be at most max_prefill_rows, which is {prefill}"
            ));
        }
        if faults.is_empty() && self.token_limit() < 2 {
            faults.push("max_positions and kv leave no room for one token beside a prompt".to_owned());
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ConfigError { faults })
        }
    }

    /// Tokens that the whole cache holds.
    pub fn cache_tokens(&self) -> u64 {
        u64::from(self.kv.blocks) * u64::from(self.kv.block_tokens)
    }

    /// Most tokens of a sequence, prompt and emitted together: what both the model and the cache take.
    pub fn token_limit(&self) -> u32 {
        u32::try_from(self.cache_tokens()).map_or(self.max_positions, |held| held.min(self.max_positions))
    }

    /// Sequences that run at one time: no more than the steps in flight have room for beside a full
    /// `max_prefill_rows`, so that no sequence is passed over for want of a row.
    pub fn running_limit(&self) -> usize {
        let decode_rows = (self.capacity.rows as usize).saturating_sub(self.max_prefill_rows);
        let step = decode_rows.min(self.capacity.sequences as usize);
        self.max_sequences.min(step.saturating_mul(self.steps_in_flight))
    }

    /// What every step of this scheduler keeps to.
    pub fn step_limits(&self) -> StepLimits {
        StepLimits {
            vocab_size: self.vocab_size,
            max_positions: self.max_positions,
            block_tokens: self.kv.block_tokens,
            blocks: self.kv.blocks,
        }
    }
}
