//! Tests of the scheduler against a pipeline whose tokens depend on every row that went through it.

mod batching;
mod cache;
mod groups;
mod lifecycle;
mod pacing;
mod pipeline;
mod prefixes;
mod priorities;
mod refusals;
mod simulation;
mod world;

use tramontane_model::footprint::StepCapacity;
use tramontane_model::ids::{Fence, Generation, Origin, ReplicaId, RequestId};
use tramontane_model::placement::{KvFormat, KvShape};
use tramontane_model::sampling::SamplingParams;
use tramontane_model::time::Tick;

use super::{CacheKey, SchedulerConfig, Submission};

/// Finds everything in the prefix caches of these tests.
const CACHE_KEY: CacheKey = [9; 16];
/// Ends a sequence in these tests.
const STOP: u32 = 0;

fn config() -> SchedulerConfig {
    SchedulerConfig {
        fence: Fence {
            replica: ReplicaId(1),
            generation: Generation(1),
        },
        kv: KvShape {
            block_tokens: 4,
            blocks: 256,
            format: KvFormat::F32,
        },
        steps_in_flight: 1,
        capacity: StepCapacity {
            rows: 64,
            sequences: 32,
            expanded_group: 0,
        },
        max_prefill_rows: 16,
        max_sequences: 16,
        max_waiting: 16,
        max_waiting_tokens: 1 << 20,
        prefix_cache: false,
        target_ms: 40,
        max_positions: 128,
        vocab_size: 50,
    }
}

/// A greedy request for exactly `max_tokens` tokens.
fn submission(request: u128, prompt: &[u32], max_tokens: u32) -> Submission {
    Submission {
        request: RequestId(request),
        trace: Origin::NOBODY.trace,
        attempt: 1,
        priority: 0,
        prompt: prompt.to_vec(),
        emitted: vec![],
        cache_salt: vec![],
        sampling: SamplingParams::GREEDY,
        max_tokens,
        stop_tokens: vec![STOP],
        ignore_eos: true,
        deadline: Tick(u64::MAX),
    }
}

/// A prompt of so many tokens.
fn prompt(tokens: u32) -> Vec<u32> {
    (0..tokens).map(|index| 1 + index % 49).collect()
}
