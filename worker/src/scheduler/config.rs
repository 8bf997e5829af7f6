//! What a scheduler is told once: its cache, its limits, its model's bounds.
//!
//! No defaults here: the host derives every number from the placement and its own configuration.

use tramontane_model::ids::Fence;
use tramontane_model::placement::KvShape;
use tramontane_model::step::{MAX_STEP_ROWS, MAX_STEP_SEQUENCES, StepLimits};

/// Most steps that may be in flight.
pub const MAX_STEPS_IN_FLIGHT: usize = 256;
/// Most requests that may wait.
pub const MAX_WAITING: usize = 65_536;
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
    /// Rows that a stage's buffers hold. No step has more.
    pub max_step_rows: usize,
    /// Rows of a step that are prompt, or emitted tokens computed again; what is longer comes in chunks.
    pub max_prefill_rows: usize,
    /// Sequences that hold cache blocks at one time.
    pub max_sequences: usize,
    /// Submissions that may wait for blocks. Preempted sequences wait beside them and are never refused.
    pub max_waiting: usize,
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
    /// Checks every field, and that a full share of decode rows leaves room for `max_prefill_rows`.
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
        within("max_step_rows", self.max_step_rows, MAX_STEP_ROWS);
        within("max_prefill_rows", self.max_prefill_rows, MAX_STEP_ROWS);
        within("max_sequences", self.max_sequences, MAX_STEP_SEQUENCES);
        within("max_waiting", self.max_waiting, MAX_WAITING);
        within("max_positions", self.max_positions as usize, u32::MAX as usize);
        within("vocab_size", self.vocab_size as usize, u32::MAX as usize);
        if faults.is_empty() {
            let needed = self.max_prefill_rows + self.max_sequences.div_ceil(self.steps_in_flight);
            if needed > self.max_step_rows {
                faults.push(format!(
                    "max_step_rows is {}, it must be at least {needed}: max_prefill_rows and a step's share of max_sequences",
                    self.max_step_rows
                ));
            }
            if self.token_limit() < 2 {
                faults.push("max_positions and kv leave no room for one token beside a prompt".to_owned());
            }
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
