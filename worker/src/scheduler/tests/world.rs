//! A scheduler, its pipeline and its clients, with every promise to a client checked as events come.

use std::collections::{BTreeMap, BTreeSet};

use tramontane_model::ids::RequestId;
use tramontane_model::sampling::SampledToken;
use tramontane_model::step::StepBatch;
use tramontane_model::time::Tick;

use super::pipeline::{Pipeline, alone, prompt_cells, role, scores_alone};
use super::{CACHE_KEY, STOP};
use crate::scheduler::{EndReason, Event, Refusal, Scheduler, SchedulerConfig, Submission};

/// What a gateway knows of a request.
pub(super) struct Client {
    /// As first submitted.
    pub(super) submission: Submission,
    /// The latest attempt.
    pub(super) attempt: u32,
    pub(super) tokens: Vec<u32>,
    /// What its latest attempt was told of its prompt's tokens.
    pub(super) scores: Vec<SampledToken>,
    /// How its latest attempt ended.
    pub(super) ended: Option<EndReason>,
    /// What its latest attempt was told of its prompt.
    pub(super) cached_prompt_tokens: Option<u32>,
}

pub(super) struct World {
    pub(super) scheduler: Scheduler,
    pub(super) pipeline: Pipeline,
    pub(super) now: Tick,
    pub(super) clients: BTreeMap<RequestId, Client>,
    /// Attempts that were accepted and have not ended.
    live: BTreeSet<(RequestId, u32)>,
    stages: usize,
}

impl World {
    pub(super) fn new(config: SchedulerConfig, stages: usize) -> Self {
        Self {
            pipeline: Pipeline::new(&config, stages),
            scheduler: Scheduler::new(config, CACHE_KEY).expect("a valid configuration"),
            now: Tick(0),
            clients: BTreeMap::new(),
            live: BTreeSet::new(),
            stages,
        }
    }

    pub(super) fn submit(&mut self, submission: Submission) -> Result<(), Refusal> {
        let key = (submission.request, submission.attempt);
        let emitted = submission.emitted.clone();
        let mut events = Vec::new();
        self.scheduler.submit(self.now, submission.clone(), &mut events)?;
        assert!(self.live.insert(key), "{key:?} was accepted twice");
        let client = self.clients.entry(key.0).or_insert(Client {
            submission,
            attempt: key.1,
            tokens: emitted,
            scores: Vec::new(),
            ended: None,
            cached_prompt_tokens: None,
        });
        client.attempt = key.1;
        client.ended = None;
        client.scores.clear();
        client.cached_prompt_tokens = None;
        self.take(events);
        Ok(())
    }

    /// A later attempt with what has been emitted so far.
    pub(super) fn resubmit(&mut self, request: RequestId) -> Result<(), Refusal> {
        let client = &self.clients[&request];
        self.submit(Submission {
            attempt: client.attempt + 1,
            emitted: client.tokens.clone(),
            ..client.submission.clone()
        })
    }

    pub(super) fn cancel(&mut self, request: RequestId, attempt: u32) -> bool {
        let mut events = Vec::new();
        let cancelled = self.scheduler.cancel(request, attempt, &mut events);
        self.take(events);
        cancelled
    }

    pub(super) fn elapse(&mut self, milliseconds: u64) {
        self.now = self.now.after_ms(milliseconds);
        let mut events = Vec::new();
        self.scheduler.elapsed(self.now, &mut events);
        self.take(events);
        let late = self.scheduler.next_deadline().filter(|&next| next <= self.now);
        assert_eq!(late, None);
    }

    pub(super) fn fail(&mut self, why: &str) {
        let mut events = Vec::new();
        self.scheduler.fail_all(why, &mut events);
        self.take(events);
    }

    /// Starts the next step and shows it.
    pub(super) fn compose(&mut self) -> Option<StepBatch> {
        let batch = self.scheduler.next_step();
        self.pipeline_start(batch.clone());
        self.scheduler.check().expect("the invariants");
        self.check_cached();
        batch
    }

    fn pipeline_start(&mut self, batch: Option<StepBatch>) {
        match batch {
            Some(batch) => self.pipeline.start(batch),
            None if self.scheduler.stats().steps_in_flight == 0 => {
                assert!(self.live.is_empty(), "nothing moves and {:?} wait", self.live);
            }
            None => {}
        }
    }

    /// Composes until there is nothing to compose and shows the steps.
    pub(super) fn compose_all(&mut self) -> Vec<StepBatch> {
        std::iter::from_fn(|| self.compose()).collect()
    }

    /// Hands the oldest result in, if the last stage has given one.
    pub(super) fn complete(&mut self) -> bool {
        let Some(result) = self.pipeline.results.pop_front() else {
            return false;
        };
        let mut events = Vec::new();
        self.scheduler
            .complete(result, &mut events)
            .expect("the oldest result");
        self.take(events);
        true
    }

    /// One step through everything: composes, runs all stages, completes the oldest step.
    pub(super) fn turn(&mut self) -> Vec<StepBatch> {
        let composed = self.compose_all();
        self.pipeline.run_all();
        self.complete();
        composed
    }

    /// Turns until everything has ended, then checks that nothing is left anywhere and every output is right.
    pub(super) fn finish(&mut self) {
        for _ in 0..20_000 {
            let moved = !self.compose_all().is_empty();
            self.pipeline.run_all();
            if !self.complete() && !moved {
                break;
            }
        }
        assert!(self.live.is_empty(), "{:?} never ended", self.live);
        let stats = self.scheduler.stats();
        let idle = [
            stats.kv_blocks_used,
            stats.steps_in_flight,
            stats.sequences_running,
            stats.requests_waiting,
        ];
        assert_eq!(idle, [0; 4], "KV-1");
        assert_eq!(
            self.pipeline.open(),
            0,
            "the last stage was not told of every close"
        );
        self.check_outputs();
    }

    /// Every client has a prefix of what its request gives alone, and all of it if it ended by itself.
    pub(super) fn check_outputs(&self) {
        let config = self.scheduler.config();
        for (request, client) in &self.clients {
            let Submission {
                prompt,
                sampling,
                max_tokens,
                ignore_eos,
                ..
            } = &client.submission;
            let room = config.token_limit() as usize - prompt.len();
            let (most, stop) = (room.min(*max_tokens as usize), (!ignore_eos).then_some(STOP));
            let group = config.capacity.expanded_group;
            let cells = prompt_cells(prompt, group);
            let expected = alone(self.stages, config.vocab_size, &cells, sampling, most, stop);
            if sampling.prompt_logprobs.is_some() {
                let scores = scores_alone(self.stages, &cells);
                assert!(scores.starts_with(&client.scores), "{request}");
            }
            assert!(
                expected.starts_with(&client.tokens),
                "{request}: {:?}, alone {expected:?}",
                client.tokens
            );
            let reason = match client.ended {
                Some(EndReason::Stop) => EndReason::Stop,
                Some(EndReason::Length) => EndReason::Length,
                Some(EndReason::Cancelled | EndReason::DeadlineExceeded | EndReason::Failed(_))
                | Some(EndReason::Grammar(_))
                | None => {
                    continue;
                }
            };
            assert_eq!(client.tokens, expected, "{request} ended early");
            let stopped = expected.last().copied() == stop;
            assert_eq!(reason == EndReason::Stop, stopped, "{request}: {reason:?}");
        }
    }

    /// Every block of the prefix cache holds on every stage what the scheduler says.
    fn check_cached(&self) {
        for (block, tokens, cached) in self.scheduler.cached_blocks() {
            let roles = (0..).map(|at| role(at, cached.expanded, cached.prompt));
            let expected: Vec<_> = tokens.iter().copied().zip(roles).map(Some).collect();
            for stage in 0..self.stages {
                assert_eq!(
                    self.pipeline.block(stage, block),
                    expected,
                    "block {block}, stage {stage}"
                );
            }
        }
    }

    /// ST-1 and ST-2, event by event.
    fn take(&mut self, events: Vec<Event>) {
        self.scheduler.check().expect("the invariants");
        self.check_cached();
        for event in events {
            match event {
                Event::Token {
                    request,
                    attempt,
                    index,
                    token,
                    cached_prompt_tokens,
                } => {
                    assert!(
                        self.live.contains(&(request, attempt)),
                        "a token after the end: {request}"
                    );
                    let client = self.clients.get_mut(&request).expect("a known request");
                    assert_eq!(
                        client.attempt, attempt,
                        "ST-1: a token of an older attempt: {request}"
                    );
                    assert_eq!(client.tokens.len(), index as usize, "ST-1: {request}");
                    let wanted = client.submission.sampling.prompt_logprobs;
                    let scored = wanted.map_or(0, |_| client.submission.prompt.len() - 1);
                    assert_eq!(
                        client.scores.len(),
                        scored,
                        "a token before the prompt: {request}"
                    );
                    client.tokens.push(token.token);
                    if cached_prompt_tokens.is_some() {
                        assert_eq!(client.cached_prompt_tokens, None, "told twice: {request}");
                        client.cached_prompt_tokens = cached_prompt_tokens;
                    }
                    assert!(client.cached_prompt_tokens.is_some(), "not told: {request}");
                }
                Event::Prompt {
                    request,
                    attempt,
                    first,
                    tokens,
                } => {
                    let client = self.clients.get_mut(&request).expect("a known request");
                    assert_eq!(client.attempt, attempt, "{request}");
                    assert_eq!(client.scores.len() + 1, first as usize, "{request}");
                    assert!(!tokens.is_empty(), "{request}");
                    client.scores.extend(tokens);
                }
                Event::Ended {
                    request,
                    attempt,
                    reason,
                    emitted,
                } => {
                    assert!(
                        self.live.remove(&(request, attempt)),
                        "ST-2: ended twice: {request}"
                    );
                    let client = self.clients.get_mut(&request).expect("a known request");
                    assert_eq!(client.tokens.len(), emitted as usize, "{request}");
                    if client.attempt == attempt {
                        client.ended = Some(reason);
                    }
                }
            }
        }
    }
}
