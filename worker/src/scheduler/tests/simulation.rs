//! Random histories: arrivals, cancellations, later attempts, deadlines, stages at their own pace, wrong results, the
//! loss of the replica, with a cache so small that sequences are preempted.

use proptest::prelude::*;
use proptest::sample::Index;
use tramontane_model::footprint::StepCapacity;
use tramontane_model::ids::{Fence, Generation, Origin, RequestId, SequenceId, StepId};
use tramontane_model::placement::{KvFormat, KvShape};
use tramontane_model::sampling::SamplingParams;
use tramontane_model::step::StepResult;

use super::pipeline::Pipeline;
use super::world::World;
use super::{CACHE_KEY, STOP, config};
use crate::scheduler::{EndReason, Refusal, Scheduler, SchedulerConfig, Submission};

#[derive(Clone, Debug)]
enum Op {
    Submit {
        prompt: Vec<u32>,
        max_tokens: u32,
        seed: u64,
        ignore_eos: bool,
        timeout_ms: u64,
        priority: i32,
        salt: bool,
    },
    Resubmit(Index),
    Cancel(Index),
    Compose,
    Run(Index),
    Complete,
    Took(u64),
    WrongResult(Index),
    Elapse(u64),
    LoseReplica,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let timeout = prop_oneof![3 => Just(1_000_000), 1 => 1..200u64];
    let who = (-1..=1i32, prop::bool::weighted(0.2));
    let submit = (prompts(), 1..24u32, any::<u64>(), any::<bool>(), timeout, who);
    let submit = submit.prop_map(
        |(prompt, max_tokens, seed, ignore_eos, timeout_ms, (priority, salt))| Op::Submit {
            prompt,
            max_tokens,
            seed,
            ignore_eos,
            timeout_ms,
            priority,
            salt,
        },
    );
    let op = prop_oneof![
        20 => submit,
        4 => any::<Index>().prop_map(Op::Resubmit),
        4 => any::<Index>().prop_map(Op::Cancel),
        60 => Just(Op::Compose),
        90 => any::<Index>().prop_map(Op::Run),
        60 => Just(Op::Complete),
        20 => (0..200_000u64).prop_map(Op::Took),
        5 => any::<Index>().prop_map(Op::WrongResult),
        4 => (1..60u64).prop_map(Op::Elapse),
        1 => Just(Op::LoseReplica),
    ];
    prop::collection::vec(op, 1..500)
}

/// Prompts of which many begin alike.
fn prompts() -> impl Strategy<Value = Vec<u32>> {
    let tail = |most| prop::collection::vec(0..40u32, 0..most);
    prop_oneof![
        prop::collection::vec(0..40u32, 1..30),
        (1..25u32, tail(6)).prop_map(|(common, tail)| (0..common).chain(tail).collect()),
    ]
}

fn configs() -> impl Strategy<Value = (SchedulerConfig, usize)> {
    let shape = (1..5u32, 3..24u32, 1..4usize, 0..2usize);
    let capacity = (1..6u32, 1..6u32, 0..8u32);
    let limits = (1..12usize, 1..9usize, 1..10usize, 8..48u32);
    let waiting = (1..400u64, prop::bool::weighted(0.8));
    let configs = (shape, capacity, limits, waiting).prop_map(|(shape, capacity, limits, waiting)| {
        let (max_waiting_tokens, prefix_cache) = waiting;
        let (block_tokens, blocks, stages, spare_steps) = shape;
        let (max_prefill_rows, max_sequences, max_waiting, max_positions) = limits;
        let steps_in_flight = stages + spare_steps;
        let config = SchedulerConfig {
            kv: KvShape {
                block_tokens,
                blocks,
                format: KvFormat::F32,
            },
            steps_in_flight,
            capacity: StepCapacity {
                rows: max_prefill_rows as u32 + capacity.0,
                sequences: capacity.1,
                expanded_group: capacity.2.min(max_prefill_rows as u32),
            },
            max_prefill_rows,
            max_sequences,
            max_waiting,
            max_waiting_tokens,
            prefix_cache,
            max_positions,
            vocab_size: 40,
            ..config()
        };
        (config, stages)
    });
    configs.prop_filter("one token beside a prompt", |(config, _)| {
        config.token_limit() >= 2
    })
}

struct Simulation {
    world: World,
    config: SchedulerConfig,
    stages: usize,
}

impl Simulation {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Submit {
                prompt,
                max_tokens,
                seed,
                ignore_eos,
                timeout_ms,
                priority,
                salt,
            } => self.submit(Submission {
                request: RequestId(self.world.clients.len() as u128),
                trace: Origin::NOBODY.trace,
                attempt: 1,
                priority,
                prompt,
                emitted: vec![],
                cache_salt: vec![1; usize::from(salt)],
                sampling: SamplingParams {
                    seed,
                    prompt_logprobs: seed.is_multiple_of(4).then_some(0),
                    ..SamplingParams::GREEDY
                },
                max_tokens,
                stop_tokens: vec![STOP],
                ignore_eos,
                deadline: self.world.now.after_ms(timeout_ms),
            }),
            Op::Resubmit(which) => {
                if let Some(request) = self.pick(which)
                    && self.world.clients[&request].submission.deadline > self.world.now
                {
                    self.resubmit(request);
                }
            }
            Op::Cancel(which) => {
                if let Some(request) = self.pick(which) {
                    let client = &self.world.clients[&request];
                    let (attempt, live) = (client.attempt, client.ended.is_none());
                    assert!(!self.world.cancel(request, attempt + 1));
                    assert_eq!(self.world.cancel(request, attempt), live);
                }
            }
            Op::Compose => drop(self.world.compose()),
            Op::Run(which) => drop(self.world.pipeline.run(which.index(self.stages))),
            Op::Complete => drop(self.world.complete()),
            Op::Took(microseconds) => self.world.scheduler.took(microseconds),
            Op::WrongResult(which) => self.wrong_result(which),
            Op::Elapse(milliseconds) => self.world.elapse(milliseconds),
            Op::LoseReplica => self.lose_replica(),
        }
    }

    fn pick(&self, which: Index) -> Option<RequestId> {
        let requests: Vec<RequestId> = self.world.clients.keys().copied().collect();
        (!requests.is_empty()).then(|| *which.get(&requests))
    }

    /// Only what can never fit, or a full queue, is refused.
    fn submit(&mut self, submission: Submission) {
        let (prompt, limit) = (submission.prompt.len(), self.config.token_limit() as usize);
        let waiting = self.world.scheduler.stats().requests_waiting;
        match self.world.submit(submission) {
            Ok(()) => assert!(prompt < limit),
            Err(Refusal::TooLong { .. }) => assert!(prompt >= limit),
            Err(Refusal::QueueFull { .. }) => assert!(waiting >= self.config.max_waiting),
            Err(Refusal::TokensFull { .. }) => assert!(waiting > 0),
            Err(refusal) => panic!("refused: {refusal}"),
        }
    }

    fn resubmit(&mut self, request: RequestId) {
        let waiting = self.world.scheduler.stats().requests_waiting;
        match self.world.resubmit(request) {
            Ok(()) => {}
            Err(Refusal::QueueFull { .. }) => assert!(waiting >= self.config.max_waiting),
            Err(Refusal::TokensFull { .. }) => assert!(waiting > 0),
            Err(refusal) => panic!("refused: {refusal}"),
        }
    }

    /// Every way of answering the oldest step wrongly is refused and changes nothing.
    fn wrong_result(&mut self, which: Index) {
        let results = &self.world.pipeline.results;
        let mut wrong: Vec<StepResult> = results.iter().skip(1).cloned().collect();
        if let Some(right) = results.front() {
            let mut change = |change: fn(&mut StepResult)| {
                let mut changed = right.clone();
                change(&mut changed);
                wrong.push(changed);
            };
            change(|result| result.step = StepId(result.step.0 + 1));
            change(|result| result.fence.generation = Generation(u64::MAX));
            if !right.tokens.is_empty() {
                change(|result| drop(result.tokens.pop()));
                change(|result| result.tokens.push(result.tokens[0].clone()));
                change(|result| result.tokens[0].0 = SequenceId(u64::MAX));
                change(|result| result.tokens[0].1.token = 40);
                change(|result| result.tokens[0].1.top = vec![(1, 0.0); 21]);
            }
        }
        if wrong.is_empty() {
            return;
        }
        let before = self.world.scheduler.stats();
        let mut events = Vec::new();
        let wrong = which.get(&wrong).clone();
        let refused = self.world.scheduler.complete(wrong.clone(), &mut events);
        assert!(refused.is_err(), "{wrong:?} was taken");
        assert_eq!((events, self.world.scheduler.stats()), (vec![], before));
    }

    /// Everything in flight is lost; live requests go on with the next generation, as far as its queue takes them.
    fn lose_replica(&mut self) {
        self.world.fail("a stage was lost");
        let failed = self.world.scheduler.stats();
        assert_eq!((failed.kv_blocks_used, failed.steps_in_flight), (0, 0), "KV-1");
        assert!(self.world.scheduler.next_step().is_none());
        let Fence { replica, generation } = self.config.fence;
        self.config.fence = Fence {
            replica,
            generation: Generation(generation.0 + 1),
        };
        self.world.scheduler = Scheduler::new(self.config.clone(), CACHE_KEY).expect("a valid configuration");
        self.world.pipeline = Pipeline::new(&self.config, self.stages);
        let lost = self.world.clients.iter().filter(|(_, client)| {
            let failed = matches!(client.ended, Some(EndReason::Failed(_)));
            failed && client.submission.deadline > self.world.now
        });
        let lost: Vec<RequestId> = lost.map(|(&request, _)| request).collect();
        for request in lost {
            self.resubmit(request);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_output_is_what_its_request_gives_alone((config, stages) in configs(), ops in ops()) {
        let world = World::new(config.clone(), stages);
        let mut simulation = Simulation { world, config, stages };
        for op in ops {
            simulation.apply(op);
        }
        simulation.world.finish();
    }
}
