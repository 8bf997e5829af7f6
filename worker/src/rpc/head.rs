//! The head of a replica: hosts its scheduler, feeds the pipeline and hands tokens to their requests.
//!
//! One task owns the scheduler. Deciding is the scheduler's part; here are the clock, the channels and the deadlines.
//!
//! **BQ-1:** a request's tokens wait in a channel with room for all that it may bring, so that a slow reader holds up
//! nobody, itself included.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tramontane_model::ids::{Fence, RequestId};
use tramontane_model::members::SchedulerLoad;
use tramontane_model::step::{StepBatch, StepResult};
use tramontane_model::time::Tick;
use tramontane_proto::{Ended, GenerateUpdate, LinkMessage, Progress};

use super::assignments::SchedulerLoads;
use super::link::{Link, LinkLost};
use super::stage::STEP_DEADLINE;
use super::telemetry::{self, SchedulerTelemetry};
use crate::scheduler::{CacheKey, EndReason, Event, Refusal, Scheduler, SchedulerConfig, Submission};

/// Commands that wait for the head.
const MAX_COMMANDS: usize = 1024;
/// Longest wait for the next result while steps are in flight: more than any one stage may take.
const RESULT_DEADLINE: Duration = Duration::from_secs(120);
const _: () = assert!(RESULT_DEADLINE.as_secs() > STEP_DEADLINE.as_secs());
/// First and longest pause before the pipeline is opened again.
const REOPEN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What a head tells of a request, or why its replica cannot go on with it.
pub type Update = Result<GenerateUpdate, LinkLost>;

enum Command {
    Submit {
        submission: Box<Submission>,
        updates: mpsc::Sender<Update>,
        answer: oneshot::Sender<Result<(), SubmitError>>,
    },
    Cancel {
        request: RequestId,
        attempt: u32,
    },
}

/// Why a submission was not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// The scheduler refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The head is gone, or has more to do than it can queue.
    #[error("{0}")]
    Unavailable(&'static str),
}

/// A cheap handle to a head.
#[derive(Clone)]
pub struct HeadHandle {
    fence: Fence,
    started: Instant,
    commands: mpsc::Sender<Command>,
}

/// The pipeline as the head sees it.
pub struct Pipeline {
    /// To the first stage.
    pub first: Box<dyn Link>,
    /// From the last stage.
    pub results: mpsc::Receiver<LinkMessage>,
}

/// Opens the pipeline: connects the head with its first and its last stage.
pub trait OpenPipeline: Send + 'static {
    /// Resolves when both ends are there.
    fn open(&mut self) -> impl Future<Output = Result<Pipeline, LinkLost>> + Send;
}

impl HeadHandle {
    /// Whose head it is.
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// The head's clock.
    pub fn now(&self) -> Tick {
        Tick(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Submits a request; its tokens come through the receiver, which ends after `Ended` or an error.
    pub async fn submit(&self, submission: Submission) -> Result<mpsc::Receiver<Update>, SubmitError> {
        let room = (submission.max_tokens as usize).saturating_sub(submission.emitted.len());
        // Every piece of a scored prompt tells of at least one token.
        let scored = submission
            .sampling
            .prompt_logprobs
            .map(|_| submission.prompt.len());
        let room = room.saturating_add(scored.unwrap_or(0));
        let room = room.saturating_add(2).min(tokio::sync::Semaphore::MAX_PERMITS);
        let (updates, receiver) = mpsc::channel(room);
        let (answer, answered) = oneshot::channel();
        let command = Command::Submit {
            submission: Box::new(submission),
            updates,
            answer,
        };
        self.commands
            .try_send(command)
            .map_err(|_| SubmitError::Unavailable("the head of the replica takes no more commands"))?;
        answered
            .await
            .map_err(|_| SubmitError::Unavailable("the replica is being placed anew"))??;
        Ok(receiver)
    }

    /// Cancels a request. Nothing happens if it is over.
    pub async fn cancel(&self, request: RequestId, attempt: u32) {
        // A closed channel means that the head is gone, and the request with it.
        let _ = self.commands.send(Command::Cancel { request, attempt }).await;
    }
}

/// The head's task.
pub struct Head {
    config: SchedulerConfig,
    cache_key: CacheKey,
    scheduler: Scheduler,
    telemetry: SchedulerTelemetry,
    handle: HeadHandle,
    commands: mpsc::Receiver<Command>,
    /// By request and attempt.
    requests: BTreeMap<(RequestId, u32), Client>,
    loads: watch::Sender<SchedulerLoads>,
}

/// Who waits for the tokens of an attempt.
struct Client {
    updates: mpsc::Sender<Update>,
    submitted: Instant,
    /// How long it waited for its first rows in a step; unknown until then.
    queued: Option<Duration>,
}

/// Why the pipeline is left.
enum Left {
    Stopped,
    Lost(LinkLost),
}

impl Head {
    /// A head and its handle; nothing runs before [`Head::run`]. `cache_key` is random, drawn for this head alone.
    pub fn new(
        config: SchedulerConfig,
        cache_key: CacheKey,
        loads: watch::Sender<SchedulerLoads>,
    ) -> Result<(Self, HeadHandle), crate::scheduler::ConfigError> {
        let scheduler = Scheduler::new(config.clone(), cache_key)?;
        let (sender, commands) = mpsc::channel(MAX_COMMANDS);
        let handle = HeadHandle {
            fence: config.fence,
            started: Instant::now(),
            commands: sender,
        };
        let requests = BTreeMap::new();
        let own = handle.clone();
        Ok((
            Self {
                telemetry: SchedulerTelemetry::new(config.fence.replica),
                config,
                cache_key,
                scheduler,
                handle: own,
                commands,
                requests,
                loads,
            },
            handle,
        ))
    }

    /// Serves until `stop`; then everything live ends as lost, for its gateway to submit elsewhere.
    pub async fn run(mut self, mut opener: impl OpenPipeline, stop: CancellationToken) {
        let mut pause = REOPEN.0;
        loop {
            let opened = {
                let opening = opener.open();
                tokio::pin!(opening);
                loop {
                    tokio::select! {
                        () = stop.cancelled() => break None,
                        opened = &mut opening => break Some(opened),
                        () = self.idle() => {}
                    }
                }
            };
            let Some(opened) = opened else { break };
            let lost = match opened {
                Ok(pipeline) => {
                    tracing::info!(fence = %self.config.fence, "pipeline open");
                    pause = REOPEN.0;
                    match self.serve(pipeline, &stop).await {
                        Left::Stopped => break,
                        Left::Lost(lost) => lost,
                    }
                }
                Err(lost) => lost,
            };
            tracing::warn!(fence = %self.config.fence, %lost, "pipeline lost");
            metrics::counter!("tramontane_pipelines_lost_total").increment(1);
            self.fail_all(&lost);
            if let Ok(fresh) = Scheduler::new(self.config.clone(), self.cache_key) {
                self.scheduler = fresh;
                self.telemetry.start_anew();
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(REOPEN.1);
        }
        self.fail_all(&LinkLost("the replica is being placed anew".to_owned()));
        let fence = self.config.fence;
        self.loads.send_if_modified(|loads| {
            let own = loads.get(&fence.replica).is_some_and(|load| load.fence == fence);
            own && loads.remove(&fence.replica).is_some()
        });
    }

    /// Takes commands while the pipeline is being opened; returns after each, so that deadlines are seen.
    async fn idle(&mut self) {
        let command = tokio::time::timeout(Duration::from_millis(100), self.commands.recv()).await;
        if let Ok(Some(command)) = command {
            self.command(command);
        }
        self.elapsed();
    }

    async fn serve(&mut self, mut pipeline: Pipeline, stop: &CancellationToken) -> Left {
        let mut waiting_since = Instant::now();
        // When each step in flight was sent, the oldest first.
        let mut sent = VecDeque::new();
        loop {
            while let Some(batch) = self.scheduler.next_step() {
                if self.scheduler.stats().steps_in_flight == 1 {
                    waiting_since = Instant::now();
                }
                sent.push_back(Instant::now());
                telemetry::step_sent(&batch);
                self.opened(&batch);
                if let Err(lost) = pipeline.first.send(LinkMessage::Step(batch)).await {
                    return Left::Lost(lost);
                }
            }
            self.publish();
            let in_flight = self.scheduler.stats().steps_in_flight > 0;
            let step_deadline = in_flight.then(|| waiting_since + RESULT_DEADLINE);
            let wake = self.next_wake(step_deadline);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Left::Stopped,
                lost = pipeline.first.lost() => return Left::Lost(lost),
                message = pipeline.results.recv() => match message {
                    Some(LinkMessage::Result(result)) => {
                        waiting_since = Instant::now();
                        let took = sent.pop_front().map(|sent| waiting_since - sent);
                        if let Err(lost) = self.complete(result, took) {
                            return Left::Lost(lost);
                        }
                    }
                    Some(LinkMessage::Hello { .. } | LinkMessage::Step(_) | LinkMessage::Rows(_)) => {
                        return Left::Lost(LinkLost("the last stage sent something else than results".to_owned()));
                    }
                    None => return Left::Lost(LinkLost("the last stage closed its link".to_owned())),
                },
                command = self.commands.recv() => if let Some(command) = command { self.command(command) },
                () = tokio::time::sleep_until(wake.into()) => {
                    if step_deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                        return Left::Lost(LinkLost(format!("a step took longer than {RESULT_DEADLINE:?}")));
                    }
                    self.elapsed();
                }
            }
        }
    }

    /// The sequences that a step opens wait no longer.
    fn opened(&mut self, batch: &StepBatch) {
        for opening in batch.chunks.iter().filter_map(|chunk| chunk.open.as_ref()) {
            let request = opening.origin.request;
            let latest = self
                .requests
                .range_mut((request, 0)..=(request, u32::MAX))
                .next_back();
            // One that comes back after a preemption has waited before.
            if let Some((_, client)) = latest
                && client.queued.is_none()
            {
                let waited = client.submitted.elapsed();
                client.queued = Some(waited);
                telemetry::queued(waited);
            }
        }
    }

    fn next_wake(&self, step_deadline: Option<Instant>) -> Instant {
        let due = self.scheduler.next_deadline();
        let due = due.map(|tick| self.handle.started + Duration::from_millis(tick.0.saturating_add(1)));
        let idle = Instant::now() + Duration::from_secs(3600);
        due.into_iter().chain(step_deadline).min().unwrap_or(idle)
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Submit {
                submission,
                updates,
                answer,
            } => {
                let key = (submission.request, submission.attempt);
                let mut events = Vec::new();
                let taken = self.scheduler.submit(self.handle.now(), *submission, &mut events);
                if taken.is_ok() {
                    let client = Client {
                        updates,
                        submitted: Instant::now(),
                        queued: None,
                    };
                    self.requests.insert(key, client);
                }
                // After it is known: a submission may be complete as it stands.
                self.tell(events);
                // Nobody waits for the answer any more: the stream is gone, and its end cancels the request.
                let _ = answer.send(taken.map_err(SubmitError::from));
            }
            Command::Cancel { request, attempt } => {
                let mut events = Vec::new();
                self.scheduler.cancel(request, attempt, &mut events);
                self.tell(events);
            }
        }
    }

    fn complete(&mut self, result: StepResult, took: Option<Duration>) -> Result<(), LinkLost> {
        if let Some(took) = took {
            let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.scheduler.took(microseconds);
        }
        let mut events = Vec::new();
        let completed = self.scheduler.complete(result, &mut events);
        self.tell(events);
        completed.map_err(|error| LinkLost(error.to_string()))
    }

    fn elapsed(&mut self) {
        let mut events = Vec::new();
        self.scheduler.elapsed(self.handle.now(), &mut events);
        self.tell(events);
    }

    fn fail_all(&mut self, lost: &LinkLost) {
        let mut events = Vec::new();
        self.scheduler.fail_all(&lost.0, &mut events);
        self.tell(events);
        self.publish();
    }

    fn tell(&mut self, events: Vec<Event>) {
        for event in events {
            let (request, attempt, update) = match event {
                Event::Token {
                    request,
                    attempt,
                    index,
                    token,
                    cached_prompt_tokens,
                } => {
                    metrics::counter!("tramontane_tokens_generated_total").increment(1);
                    let first = cached_prompt_tokens.is_some();
                    let client = self.requests.get(&(request, attempt)).filter(|_| first);
                    let queued = client.and_then(|client| client.queued);
                    let progress = Progress::Token {
                        index,
                        token,
                        cached_prompt_tokens,
                        queued_us: queued.map(|waited| u64::try_from(waited.as_micros()).unwrap_or(u64::MAX)),
                    };
                    (request, attempt, Ok(progress))
                }
                Event::Prompt {
                    request,
                    attempt,
                    first,
                    tokens,
                } => (request, attempt, Ok(Progress::Prompt { first, tokens })),
                Event::Ended {
                    request,
                    attempt,
                    reason,
                    ..
                } => (request, attempt, ended(reason)),
            };
            let update = update.map(|progress| GenerateUpdate {
                fence: self.config.fence,
                attempt,
                progress,
            });
            let key = (request, attempt);
            let over = !matches!(
                &update,
                Ok(GenerateUpdate {
                    progress: Progress::Token { .. } | Progress::Prompt { .. },
                    ..
                })
            );
            if let Some(client) = self.requests.get(&key) {
                // The channel has room for everything; a closed one belongs to a stream that is gone.
                let _ = client.updates.try_send(update);
            }
            if over {
                self.requests.remove(&key);
            }
        }
    }

    fn publish(&mut self) {
        let stats = self.scheduler.stats();
        let load = SchedulerLoad {
            fence: self.config.fence,
            running: u32::try_from(stats.sequences_running).unwrap_or(u32::MAX),
            waiting: u32::try_from(stats.requests_waiting).unwrap_or(u32::MAX),
            kv_blocks_used: u32::try_from(stats.kv_blocks_used).unwrap_or(u32::MAX),
            kv_blocks_total: u32::try_from(stats.kv_blocks_total).unwrap_or(u32::MAX),
        };
        self.telemetry.show(stats);
        self.loads
            .send_if_modified(|loads| loads.insert(load.fence.replica, load) != Some(load));
    }
}

fn ended(reason: EndReason) -> Result<Progress, LinkLost> {
    Ok(Progress::Ended(match reason {
        EndReason::Stop => Ended::Stop,
        EndReason::Length => Ended::Length,
        EndReason::Cancelled => Ended::Cancelled,
        EndReason::DeadlineExceeded => Ended::Deadline,
        EndReason::Grammar(why) => Ended::Grammar(why.to_string()),
        EndReason::Failed(why) => return Err(LinkLost(why.to_string())),
    }))
}
