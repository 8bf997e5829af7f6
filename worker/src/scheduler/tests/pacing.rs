//! Long prompts beside running streams, on machines whose steps take a time that the scheduler is told.

use std::collections::VecDeque;

use tramontane_model::footprint::StepCapacity;
use tramontane_model::ids::RequestId;
use tramontane_model::placement::{KvFormat, KvShape};
use tramontane_model::step::StepBatch;

use super::world::World;
use super::{config, prompt, submission};
use crate::scheduler::{SchedulerConfig, Submission};

const STREAMS: u128 = 8;
const PROMPT: u128 = 99;
const PROMPT_TOKENS: u32 = 600;

/// What a step takes on one stage, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Machine {
    step: u64,
    decode_row: u64,
    /// Of a step with any prompt row.
    prompt: u64,
    prompt_row: u64,
}

impl Machine {
    fn takes(self, batch: &StepBatch) -> u64 {
        let rows = |is_prompt| {
            let chunks = batch
                .chunks
                .iter()
                .filter(move |chunk| chunk.role.is_prompt() == is_prompt);
            chunks.map(|chunk| chunk.tokens.len() as u64).sum::<u64>()
        };
        let (given, generated) = (rows(true), rows(false));
        self.step
            + self.decode_row * generated
            + self.prompt_row * given
            + if given > 0 { self.prompt } else { 0 }
    }
}

/// A world with a clock: stages work one after the other on each step, each on one step at a time.
struct Timed {
    world: World,
    machine: Machine,
    now: u64,
    free_at: Vec<u64>,
    /// When each step in flight was sent, and when its result comes.
    in_flight: VecDeque<(u64, u64)>,
}

impl Timed {
    fn new(machine: Machine, stages: usize, target_ms: u32) -> Self {
        let config = SchedulerConfig {
            steps_in_flight: stages,
            kv: KvShape {
                block_tokens: 16,
                blocks: 256,
                format: KvFormat::F32,
            },
            capacity: StepCapacity {
                rows: 256,
                sequences: 32,
                expanded_group: 0,
            },
            max_prefill_rows: 128,
            max_positions: 2048,
            target_ms,
            ..config()
        };
        Self {
            world: World::new(config, stages),
            machine,
            now: 0,
            free_at: vec![0; stages],
            in_flight: VecDeque::new(),
        }
    }

    /// Sends what there is to send, then waits for the oldest result.
    fn turn(&mut self) {
        for batch in self.world.compose_all() {
            let takes = self.machine.takes(&batch);
            let mut at = self.now;
            for free_at in &mut self.free_at {
                at = at.max(*free_at) + takes;
                *free_at = at;
            }
            self.in_flight.push_back((self.now, at));
        }
        self.world.pipeline.run_all();
        let (sent, done) = self.in_flight.pop_front().expect("a step in flight");
        self.now = done;
        self.world.scheduler.took(done - sent);
        assert!(self.world.complete());
    }

    fn tokens(&self, request: u128) -> usize {
        self.world.clients[&RequestId(request)].tokens.len()
    }

    /// Times between the streams' tokens while `going`.
    fn gaps(&mut self, mut going: impl FnMut(&Self) -> bool) -> Vec<u64> {
        let mut last: Vec<(usize, u64)> = (0..STREAMS)
            .map(|stream| (self.tokens(stream), self.now))
            .collect();
        let mut gaps = Vec::new();
        while going(self) {
            self.turn();
            for (stream, (tokens, at)) in last.iter_mut().enumerate() {
                if self.tokens(stream as u128) > *tokens {
                    gaps.push(self.now - *at);
                    (*tokens, *at) = (*tokens + 1, self.now);
                }
            }
        }
        gaps.sort_unstable();
        gaps
    }
}

fn p99(sorted: &[u64]) -> u64 {
    sorted[(sorted.len() * 99).div_ceil(100) - 1]
}

const SLOW: Machine = Machine {
    step: 10_000,
    decode_row: 6_000,
    prompt: 5_000,
    prompt_row: 4_400,
};
const FAST: Machine = Machine {
    step: 4_000,
    decode_row: 50,
    prompt: 1_000,
    prompt_row: 60,
};
const UNEVEN: Machine = Machine {
    step: 20_000,
    decode_row: 1_000,
    prompt: 12_000,
    prompt_row: 500,
};

#[test]
fn a_long_prompt_slows_running_streams_less_than_threefold() {
    for (machine, target_ms) in [(SLOW, 40), (FAST, 1), (FAST, 40), (UNEVEN, 40)] {
        for stages in [1, 2, 3] {
            let mut timed = Timed::new(machine, stages, target_ms);
            for stream in 0..STREAMS {
                let stream = submission(stream, &prompt(20), 1500);
                timed.world.submit(stream).expect("accepted");
            }
            // Until all decode, then without a prompt, then with one.
            timed.gaps(|timed| (0..STREAMS).any(|stream| timed.tokens(stream) < 5));
            let end = timed.tokens(0) + 40;
            let before = timed.gaps(|timed| timed.tokens(0) < end);
            let arrival = submission(PROMPT, &prompt(PROMPT_TOKENS), 1);
            timed.world.submit(arrival).expect("accepted");
            let arrived = timed.now;
            let beside = timed.gaps(|timed| timed.tokens(PROMPT) == 0);
            let what = format!("{machine:?}, {stages} stages, target {target_ms} ms");
            let most = (3 * p99(&before)).max(u64::from(target_ms) * 1200);
            assert!(
                p99(&beside) <= most,
                "{what}: {} without, {} with",
                p99(&before),
                p99(&beside)
            );
            assert!(beside.len() >= STREAMS as usize, "{what}: streams stood still");
            // The prompt takes no longer than if every step had the fewest rows.
            let steps = u64::from(PROMPT_TOKENS / 4);
            assert!(
                timed.now - arrived < steps * 3 * p99(&before).max(40_000),
                "{what}"
            );
        }
    }
}

#[test]
fn a_fast_machine_and_a_lone_prompt_are_not_held_back() {
    let mut timed = Timed::new(FAST, 1, 40);
    timed
        .world
        .submit(submission(PROMPT, &prompt(PROMPT_TOKENS), 1))
        .expect("accepted");
    for _ in 0..PROMPT_TOKENS.div_ceil(128) {
        timed.turn();
    }
    assert_eq!(timed.tokens(PROMPT), 1, "alone it takes whole chunks");
    timed
        .world
        .submit(submission(0, &prompt(3), 500))
        .expect("accepted");
    for _ in 0..5 {
        timed.turn();
    }
    timed
        .world
        .submit(submission(PROMPT + 1, &prompt(PROMPT_TOKENS), 1))
        .expect("accepted");
    // One step to see that a row costs next to nothing here.
    for _ in 0..PROMPT_TOKENS.div_ceil(128) + 1 {
        timed.turn();
    }
    assert_eq!(timed.tokens(PROMPT + 1), 1, "steps are not full");
}

#[test]
fn prompts_that_never_end_do_not_keep_decode_steps_from_being_measured() {
    let mut timed = Timed::new(SLOW, 1, 40);
    timed
        .world
        .submit(submission(0, &prompt(3), 1800))
        .expect("accepted");
    for _ in 0..5 {
        timed.turn();
    }
    let mut without_prompt = 0;
    for next in 0..400_u128 {
        if timed.world.scheduler.stats().requests_waiting == 0 {
            let more = submission(1000 + next, &prompt(PROMPT_TOKENS), 1);
            timed.world.submit(more).expect("accepted");
        }
        let before = timed.now;
        timed.turn();
        // A step of one decode row alone.
        without_prompt += u32::from(timed.now - before == 16_000);
    }
    assert!((3..=20).contains(&without_prompt), "{without_prompt} of 400");
}

/// Times after which each of the streams goes on that broke off with `emitted` tokens, while `others` run that did not.
fn back_after(others: u128, emitted: usize) -> Vec<u64> {
    let mut before = Timed::new(SLOW, 2, 40);
    for stream in 0..STREAMS {
        before
            .world
            .submit(submission(stream, &prompt(20), 1500))
            .expect("accepted");
    }
    while (0..STREAMS).any(|stream| before.tokens(stream) < emitted) {
        before.turn();
    }
    let mut timed = Timed::new(SLOW, 2, 40);
    for stream in STREAMS..STREAMS + others {
        timed
            .world
            .submit(submission(stream, &prompt(3), 1800))
            .expect("accepted");
    }
    while (STREAMS..STREAMS + others).any(|stream| timed.tokens(stream) < 5) {
        timed.turn();
    }
    for stream in 0..STREAMS {
        let come_back = Submission {
            attempt: 2,
            emitted: before.world.clients[&RequestId(stream)].tokens[..emitted].to_vec(),
            ..submission(stream, &prompt(20), 1500)
        };
        timed.world.submit(come_back).expect("accepted");
    }
    let (started, mut after) = (timed.now, vec![None; STREAMS as usize]);
    while after.iter().any(Option::is_none) {
        timed.turn();
        for (stream, after) in (0..).zip(&mut after) {
            if timed.tokens(stream) > emitted {
                after.get_or_insert(timed.now - started);
            }
        }
    }
    after.into_iter().flatten().collect()
}

#[test]
fn streams_that_broke_off_come_back_in_whole_chunks_where_nobody_else_is_held_up() {
    let emitted = 100;
    let last = |others| back_after(others, emitted).into_iter().max().expect("streams");
    let rows = STREAMS as u64 * (20 + emitted as u64);
    // Every row at its price, on each stage in turn, and what steps cost beside that.
    let least = rows * SLOW.decode_row;
    assert!(last(0) < least * 3 / 2, "{} for {rows} rows", last(0));
    assert!(last(4) > least * 3 / 2, "{} beside streams that run", last(4));
}
