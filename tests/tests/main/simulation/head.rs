//! The head of a replica in the world: its scheduler, and what joins it with gateways and stages in the program
//! (`worker/src/rpc/head.rs`).

use std::collections::BTreeMap;

use tramontane_coordinator::gateway::HeadError;
use tramontane_model::ids::{Fence, ReplicaId, RequestId};
use tramontane_model::members::SchedulerLoad;
use tramontane_model::placement::Replica;
use tramontane_model::step::StepResult;
use tramontane_model::time::Tick;
use tramontane_proto::{GenerateSubmission, GenerateUpdate, Progress};
use tramontane_worker::scheduler::{EndReason, Event, Scheduler, SchedulerConfig};

use super::answers::{ended, refused, submission};
use super::clients::Mark;
use super::invariants::{ensure, kv2};
use super::network::{ConnId, Message, Proc, Step};
use super::scenario::{MAX_POSITIONS, VOCAB};
use super::worker::{Running, Timer};
use super::world::World;

/// First and longest pause before the pipeline is opened again.
const REOPEN_MS: (u64, u64) = (20, 1000);
/// Longest wait for a result; shorter than in the program, as steps are.
const RESULT_MS: u64 = 15_000;

pub(super) struct Head {
    pub(super) fence: Fence,
    config: SchedulerConfig,
    pub(super) scheduler: Scheduler,
    /// Which opening of the pipeline this is; none while it is closed.
    pub(super) run: Option<u64>,
    pause: u64,
    clients: BTreeMap<(RequestId, u32), ConnId>,
    by_conn: BTreeMap<ConnId, (RequestId, u32)>,
    waiting_since: u64,
}

impl Head {
    pub(super) fn load(&self) -> SchedulerLoad {
        let stats = self.scheduler.stats();
        SchedulerLoad {
            fence: self.fence,
            running: stats.sequences_running as u32,
            waiting: stats.requests_waiting as u32,
            kv_blocks_used: stats.kv_blocks_used as u32,
            kv_blocks_total: stats.kv_blocks_total as u32,
        }
    }
}

impl World {
    pub(super) fn new_head(&mut self, number: usize, running: &mut Running, replica: &Replica) {
        let fence = replica.fence();
        let config = SchedulerConfig {
            fence,
            kv: replica.kv,
            steps_in_flight: replica.stages.len(),
            capacity: replica.steps.capacity(),
            max_prefill_rows: replica.steps.max_prefill_rows as usize,
            max_sequences: replica.steps.max_sequences as usize,
            max_waiting: replica.steps.max_waiting as usize,
            max_waiting_tokens: replica.steps.max_waiting_tokens,
            prefix_cache: replica.steps.prefix_cache,
            target_ms: replica.steps.target_ms,
            max_positions: MAX_POSITIONS,
            vocab_size: VOCAB,
        };
        let scheduler = Scheduler::new(config.clone(), [7; 16]).expect("a valid configuration");
        let head = Head {
            fence,
            config,
            scheduler,
            run: None,
            pause: REOPEN_MS.0,
            clients: BTreeMap::new(),
            by_conn: BTreeMap::new(),
            waiting_since: 0,
        };
        running.heads.insert(replica.id, head);
        self.timer(number, REOPEN_MS.0, Timer::Open(fence));
    }

    /// Everything that a head has ends: its replica is placed anew.
    pub(super) fn end_head(&mut self, number: usize, running: &mut Running, replica: ReplicaId) {
        if let Some(mut head) = running.heads.remove(&replica) {
            self.fail_all(number, &mut head, "the replica is being placed anew");
            self.count(&head);
        }
    }

    fn count(&mut self, head: &Head) {
        let stats = head.scheduler.stats();
        self.coverage.preemptions += stats.preemptions;
        self.coverage.prefix_hits += stats.prefix_hit_tokens;
    }

    fn fail_all(&mut self, number: usize, head: &mut Head, why: &str) {
        let mut events = Vec::new();
        head.scheduler.fail_all(why, &mut events);
        self.tell(number, head, events);
    }

    pub(super) fn open_pipeline(&mut self, number: usize, running: &mut Running, fence: Fence) {
        let run = self.next_run();
        let Some(head) = running
            .heads
            .get_mut(&fence.replica)
            .filter(|head| head.fence == fence)
        else {
            return;
        };
        if head.run.is_none() {
            head.run = Some(run);
            self.pump(number, running, fence.replica);
        }
    }

    /// The pipeline is lost: everything in it ends, for gateways to submit it again.
    pub(super) fn lose_pipeline(&mut self, number: usize, running: &mut Running, fence: Fence) {
        let Some(head) = running
            .heads
            .get_mut(&fence.replica)
            .filter(|head| head.fence == fence)
        else {
            return;
        };
        if head.run.take().is_none() {
            return;
        }
        self.coverage.pipelines_lost += 1;
        let now = self.now;
        self.trace
            .add(now, || format!("worker {number} loses the pipeline of {fence}"));
        self.fail_all(number, head, "the pipeline was lost");
        self.count(head);
        head.scheduler = Scheduler::new(head.config.clone(), [7; 16]).expect("a valid configuration");
        let pause = head.pause;
        head.pause = (pause * 2).min(REOPEN_MS.1);
        self.timer(number, pause, Timer::Open(fence));
    }

    /// Starts all steps that may be started.
    pub(super) fn pump(&mut self, number: usize, running: &mut Running, replica: ReplicaId) {
        let mut steps = Vec::new();
        if let Some(head) = running.heads.get_mut(&replica)
            && let Some(run) = head.run
        {
            while let Some(batch) = head.scheduler.next_step() {
                if head.scheduler.stats().steps_in_flight == 1 {
                    head.waiting_since = self.now;
                }
                let states = vec![0; batch.chunks.len()];
                steps.push(Step {
                    run,
                    head: number,
                    stage: 0,
                    batch,
                    states,
                });
            }
            let checked = kv2::check(&head.scheduler);
            self.check(checked);
        }
        for step in steps {
            self.enqueue_step(number, running, step);
        }
    }

    pub(super) fn submitted(
        &mut self,
        number: usize,
        running: &mut Running,
        conn: ConnId,
        submitted: GenerateSubmission,
    ) {
        let own = Proc::Worker(number);
        let (fence, key) = (submitted.fence, (submitted.request, submitted.attempt));
        let now = Tick(self.now);
        let heads = &mut running.heads;
        let Some(head) = heads.get_mut(&fence.replica).filter(|head| head.fence == fence) else {
            let detail = "it is not served here".to_owned();
            let address = String::new();
            return self.send(conn, own, Message::Broken(HeadError::Fenced { address, detail }));
        };
        let mut events = Vec::new();
        match head
            .scheduler
            .submit(now, submission(submitted, now), &mut events)
        {
            Ok(()) => {
                head.clients.insert(key, conn);
                head.by_conn.insert(conn, key);
                self.send(conn, own, Message::Accepted);
            }
            Err(refusal) => self.send(conn, own, Message::Broken(refused(&refusal))),
        }
        self.tell(number, head, events);
        self.pump(number, running, fence.replica);
    }

    /// A gateway is gone from an attempt.
    pub(super) fn left(&mut self, number: usize, running: &mut Running, conn: ConnId) {
        let mut pump = None;
        for (&replica, head) in &mut running.heads {
            let Some((request, attempt)) = head.by_conn.remove(&conn) else {
                continue;
            };
            head.clients.remove(&(request, attempt));
            let mut events = Vec::new();
            head.scheduler.cancel(request, attempt, &mut events);
            pump = Some((replica, events));
        }
        let Some((replica, events)) = pump else { return };
        if let Some(head) = running.heads.get_mut(&replica) {
            self.tell(number, head, events);
        }
        self.pump(number, running, replica);
    }

    pub(super) fn result(&mut self, number: usize, running: &mut Running, run: u64, result: StepResult) {
        let fence = result.fence;
        let Some(head) = running.heads.get_mut(&fence.replica) else {
            self.coverage.stale_steps += 1;
            return;
        };
        if head.run != Some(run) {
            // It came over a link that is no more.
            self.coverage.stale_steps += 1;
            return;
        }
        head.pause = REOPEN_MS.0;
        head.scheduler.took((self.now - head.waiting_since) * 1000);
        head.waiting_since = self.now;
        let mut events = Vec::new();
        let completed = head.scheduler.complete(result, &mut events);
        self.tell(number, head, events);
        self.check(ensure("KV-2", completed.is_ok(), || {
            format!("a result was refused: {completed:?}")
        }));
        self.pump(number, running, fence.replica);
    }

    pub(super) fn head_elapsed(&mut self, number: usize, running: &mut Running) {
        let replicas: Vec<ReplicaId> = running.heads.keys().copied().collect();
        for replica in replicas {
            let Some(head) = running.heads.get_mut(&replica) else {
                continue;
            };
            let mut events = Vec::new();
            head.scheduler.elapsed(Tick(self.now), &mut events);
            self.tell(number, head, events);
            let waits = head.scheduler.stats().steps_in_flight > 0;
            if waits && self.now > head.waiting_since + RESULT_MS {
                let fence = head.fence;
                self.lose_pipeline(number, running, fence);
            }
            self.pump(number, running, replica);
        }
    }

    fn tell(&mut self, number: usize, head: &mut Head, events: Vec<Event>) {
        let checked = kv2::check(&head.scheduler);
        self.check(checked);
        for event in events {
            let (key, message) = match event {
                Event::Token {
                    request,
                    attempt,
                    index,
                    mut token,
                    cached_prompt_tokens,
                } => {
                    Mark::write(attempt, index, &mut token);
                    let progress = Progress::Token {
                        index,
                        token,
                        cached_prompt_tokens,
                        queued_us: None,
                    };
                    ((request, attempt), Ok(progress))
                }
                Event::Prompt {
                    request,
                    attempt,
                    first,
                    tokens,
                } => ((request, attempt), Ok(Progress::Prompt { first, tokens })),
                Event::Ended {
                    request,
                    attempt,
                    reason,
                    ..
                } => {
                    let key = (request, attempt);
                    self.check_cancelled(head, key, &reason);
                    (key, ended(reason))
                }
            };
            let over = !matches!(message, Ok(Progress::Token { .. } | Progress::Prompt { .. }));
            let message = match message {
                Ok(progress) => Message::Update(GenerateUpdate {
                    fence: head.fence,
                    attempt: key.1,
                    progress,
                }),
                Err(error) => Message::Broken(error),
            };
            let conn = if over {
                head.clients.remove(&key)
            } else {
                head.clients.get(&key).copied()
            };
            if let Some(conn) = conn {
                if over {
                    head.by_conn.remove(&conn);
                }
                self.send(conn, Proc::Worker(number), message);
            }
        }
    }

    /// An attempt is cancelled by its own gateway, which is gone by then, or by a later attempt.
    fn check_cancelled(&mut self, head: &Head, key: (RequestId, u32), reason: &EndReason) {
        let later = head.clients.range((key.0, key.1 + 1)..=(key.0, u32::MAX)).next();
        let own = head.clients.contains_key(&key) && later.is_none();
        self.check(ensure("ST-1", *reason != EndReason::Cancelled || !own, || {
            format!("attempt {} of request {} was cancelled by another", key.1, key.0)
        }));
    }
}
