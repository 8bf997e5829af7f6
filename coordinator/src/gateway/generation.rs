//! One accepted request from its first attempt to its end: the one recovery path is to submit it again.
//!
//! A task of its own drives each request and owns its journal. No decision about placement here, and no text: tokens
//! go to the client's side through a bounded queue, so a slow client slows itself only (BQ-1).
//!
//! **Invariant ST-2:** the task ends with exactly one of a finish, an error, or the client's departure, no later than
//! the deadline, whatever heads and the cluster do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tramontane_model::ids::Fence;
use tramontane_proto::{Ended, GenerateSubmission, GenerateUpdate, Progress};

use super::account::Account;
use super::balance::{Chosen, Together};
use super::error::GatewayError;
use super::head::{HeadError, HeadStream};
use super::journal::{Finish, Journal, Verdict};
use super::prefixes::Prefix;
use super::routes::{NotServing, Routes, Target};
use super::telemetry;
use super::{Piece, Shared};

/// Pause before the second attempt; doubles with each further one that brings no token.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Attempts without a new token that may end in a failure of the replica's own before the request is given up.
/// Attempts that meet an unreachable head are not counted: the placement map tells when it has gone.
const MAX_FAILURES_IN_A_ROW: u32 = 16;

/// How one attempt came out.
enum Attempted {
    /// The sequence is complete.
    Finished(Finish),
    /// No other attempt would fare better.
    Over(GatewayError),
    /// The attempt broke off and another one may go on.
    Broken {
        /// What happened.
        why: String,
        /// Whether the replica itself gave up, rather than being out of reach.
        failed: bool,
    },
    /// The replica has no room.
    Full {
        /// What its head said.
        detail: String,
    },
}

impl Attempted {
    fn broken(why: impl ToString) -> Self {
        Self::Broken {
            why: why.to_string(),
            failed: false,
        }
    }
}

/// One accepted request, driven by [`Run::run`].
pub(super) struct Run {
    pub(super) shared: Arc<Shared>,
    pub(super) prefix: Prefix,
    pub(super) together: Together,
    pub(super) journal: Journal,
    /// When it was submitted.
    pub(super) submitted: Instant,
    /// When its last token came from a head.
    pub(super) last_token: Option<Instant>,
    pub(super) deadline: Instant,
    pub(super) routes: watch::Receiver<Arc<Routes>>,
    pub(super) tokens: mpsc::Sender<Piece>,
    /// Told once a head has taken the request in.
    pub(super) started: Option<oneshot::Sender<()>>,
    /// Set by the client's side when it leaves because it has all it wants.
    pub(super) satisfied: Arc<AtomicBool>,
    /// Tells the client's side what becomes known.
    pub(super) account: Arc<Account>,
}

impl Run {
    /// Drives the request to its end and tells it to `end`. Returns at once when the client's side is gone.
    pub(super) async fn run(mut self, end: oneshot::Sender<Result<Finish, GatewayError>>) {
        let client = self.tokens.clone();
        let over = self.shared.over.clone();
        let result = tokio::select! {
            biased;
            () = client.closed() => None,
            () = over.cancelled() => Some(Err(GatewayError::ShuttingDown)),
            result = timeout_at(self.deadline, self.drive()) => {
                let limit = self.shared.options.request_timeout;
                Some(result.unwrap_or(Err(GatewayError::Deadline { limit })))
            }
        };
        let satisfied = self.satisfied.load(Ordering::Relaxed);
        telemetry::ended(result.as_ref(), satisfied, self.submitted.elapsed());
        tracing::debug!(
            trace = %self.journal.request().trace,
            request = %self.journal.request().id,
            attempts = self.journal.attempt(),
            prompt_tokens = self.journal.request().prompt.len(),
            generated_tokens = self.journal.emitted().len(),
            end = telemetry::end_name(result.as_ref(), satisfied),
            "request ended"
        );
        if let Some(result) = result {
            // The client's side may have left in this moment: then nobody needs to know.
            let _ = end.send(result);
        }
    }

    async fn drive(&mut self) -> Result<Finish, GatewayError> {
        let mut pause = FIRST_PAUSE;
        let mut failures = 0;
        // Generations that this request found broken or full since its last token.
        let mut tried = BTreeSet::new();
        loop {
            let chosen = self.pick(&tried).await?;
            let fence = chosen.target.fence;
            let before = self.journal.next_index();
            let attempted = self.attempt(&chosen.target).await;
            drop(chosen);
            if self.journal.next_index() > before {
                (pause, failures) = (FIRST_PAUSE, 0);
                tried.clear();
            }
            tried.insert(fence);
            let (why, failed) = match attempted {
                Attempted::Finished(finish) => return Ok(finish),
                Attempted::Over(error) => return Err(error),
                Attempted::Full { detail } if self.started.is_some() && !self.has_another(&tried) => {
                    return Err(GatewayError::QueueFull { detail });
                }
                Attempted::Full { detail } => (detail, false),
                Attempted::Broken { why, failed } => {
                    self.shared.balancer.suspect(fence, Instant::now());
                    (why, failed)
                }
            };
            if let Some(finish) = self.journal.finish() {
                return Ok(finish);
            }
            failures += u32::from(failed);
            if failures >= MAX_FAILURES_IN_A_ROW {
                return Err(GatewayError::Failed {
                    attempts: failures,
                    detail: why,
                });
            }
            tracing::warn!(
                trace = %self.journal.request().trace,
                request = %self.journal.request().id,
                attempt = self.journal.attempt(),
                %fence,
                emitted = self.journal.next_index(),
                why,
                "attempt broke off, the request is submitted again"
            );
            telemetry::resubmitted();
            if !self.has_another(&tried) {
                self.pause(pause).await?;
                pause = (pause * 2).min(LONGEST_PAUSE);
                tried = BTreeSet::from([fence]);
            }
        }
    }

    /// Whether a replica serves that was not tried.
    fn has_another(&self, tried: &BTreeSet<Fence>) -> bool {
        let routes = self.routes.borrow();
        routes.targets().any(|target| !tried.contains(&target.fence))
    }

    /// A serving replica. A request that no head has seen yet is refused when there is none; one that has been
    /// taken in waits for one until its deadline.
    async fn pick(&mut self, tried: &BTreeSet<Fence>) -> Result<Chosen, GatewayError> {
        loop {
            let routes = Arc::clone(&self.routes.borrow_and_update());
            let (balancer, now) = (&self.shared.balancer, Instant::now());
            match balancer.choose(&routes, &self.prefix, tried, &self.together, now) {
                Ok(chosen) => {
                    let fence = chosen.target.fence;
                    telemetry::routed(fence.replica, chosen.reason);
                    tracing::debug!(
                        request = %self.journal.request().id,
                        %fence,
                        by = chosen.reason.name(),
                        load = chosen.load,
                        blocks = self.prefix.len(),
                        "replica chosen"
                    );
                    return Ok(chosen);
                }
                Err(missing) if !self.may_wait(&missing) => return Err(missing.into()),
                Err(_) => {}
            }
            self.changed().await?;
        }
    }

    fn may_wait(&self, missing: &NotServing) -> bool {
        let taken_in = self.started.is_none();
        taken_in || (self.journal.attempt() > 0 && missing.is_passing())
    }

    async fn changed(&mut self) -> Result<(), GatewayError> {
        self.routes
            .changed()
            .await
            .map_err(|_| GatewayError::ShuttingDown)
    }

    /// Waits before the next attempt, but no longer once the cluster has changed.
    async fn pause(&mut self, pause: Duration) -> Result<(), GatewayError> {
        timeout(pause, self.changed()).await.unwrap_or(Ok(()))
    }

    async fn attempt(&mut self, target: &Target) -> Attempted {
        let submission = self.submission(target.fence);
        self.account.attempt(target.fence, submission.attempt);
        let heads = Arc::clone(&self.shared.heads);
        let mut stream = tokio::select! {
            biased;
            answer = heads.generate(&target.address, submission) => match answer {
                Ok(stream) => stream,
                Err(error) => return Self::refused(error),
            },
            gone = superseded(&mut self.routes, target.fence) => return gone,
        };
        if let Some(started) = self.started.take() {
            // Fails only if the client's side has left, which ends the task.
            let _ = started.send(());
        }
        self.follow(target, &mut stream).await
    }

    fn submission(&mut self, fence: Fence) -> GenerateSubmission {
        let attempt = self.journal.begin_attempt();
        let left = self.deadline.saturating_duration_since(Instant::now());
        let request = self.journal.request();
        GenerateSubmission {
            fence,
            request: request.id,
            attempt,
            prompt: request.prompt.to_vec(),
            emitted: self.journal.emitted().to_vec(),
            sampling: self.journal.sampling(),
            max_tokens: request.max_tokens,
            stop_tokens: request.stop_tokens.clone(),
            ignore_eos: request.stop_tokens.is_empty(),
            timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1),
            priority: request.priority,
            cache_salt: request.cache_salt.clone(),
            trace: request.trace,
        }
    }

    fn refused(error: HeadError) -> Attempted {
        match error {
            HeadError::Rejected { detail, .. } => Attempted::Over(GatewayError::Rejected { detail }),
            HeadError::QueueFull { detail, .. } => Attempted::Full { detail },
            HeadError::Protocol { .. } => Attempted::Broken {
                why: error.to_string(),
                failed: true,
            },
            HeadError::Unavailable { .. } | HeadError::Fenced { .. } => Attempted::broken(error),
        }
    }

    /// Takes in the stream of one attempt until it ends, breaks, or the placement map has moved on from it.
    async fn follow(&mut self, target: &Target, stream: &mut HeadStream) -> Attempted {
        loop {
            let update = tokio::select! {
                // What has come is taken in before its generation is given up.
                biased;
                update = stream.next() => update,
                gone = superseded(&mut self.routes, target.fence) => return gone,
            };
            match update {
                None => return Attempted::broken("the stream ended before the sequence did"),
                Some(Err(error)) => return Self::refused(error),
                Some(Ok(update)) => {
                    if let Some(attempted) = self.take(target.fence, update).await {
                        return attempted;
                    }
                }
            }
        }
    }

    /// Takes in one update; returns how the attempt came out if that was its end.
    async fn take(&mut self, fence: Fence, update: GenerateUpdate) -> Option<Attempted> {
        let is_stale = update.attempt < self.journal.attempt();
        #[cfg(feature = "deliberate-bugs")]
        let is_stale = is_stale && !tramontane_sim::bugs::on(tramontane_sim::bugs::Bug::LostAttemptFencing);
        if update.fence != fence || is_stale {
            telemetry::stale();
            return None;
        }
        match update.progress {
            Progress::Token {
                index,
                token,
                cached_prompt_tokens,
                queued_us,
            } => {
                match self.journal.record(update.attempt, index, token.token) {
                    Ok(Verdict::Stale) => None,
                    Ok(Verdict::Emitted) => {
                        self.count(cached_prompt_tokens, queued_us);
                        // Fails only if the client's side has left, which ends the task.
                        let _ = self.tokens.send(Piece::Token(token)).await;
                        None
                    }
                    Err(error) => Some(Attempted::Broken {
                        why: error.to_string(),
                        failed: true,
                    }),
                }
            }
            Progress::Prompt { first, mut tokens } => {
                match self.journal.record_scores(update.attempt, first, tokens.len()) {
                    Ok(known) => {
                        tokens.drain(..known);
                        if !tokens.is_empty() {
                            // Fails only if the client's side has left, which ends the task.
                            let _ = self.tokens.send(Piece::Prompt(tokens)).await;
                        }
                        None
                    }
                    Err(error) => Some(Attempted::Broken {
                        why: error.to_string(),
                        failed: true,
                    }),
                }
            }
            Progress::Ended(ended) => Some(self.ended(ended)),
        }
    }

    /// Counts a token that came. What a later attempt than the first finds cached is for the most part this request's
    /// own work, so only the first token tells.
    fn count(&mut self, cached_prompt_tokens: Option<u32>, queued_us: Option<u64>) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            Some(last) => telemetry::between_tokens(now - last),
            None => {
                let prompt = self.journal.request().prompt.len();
                let most = u32::try_from(prompt).unwrap_or(u32::MAX);
                let cached = cached_prompt_tokens.unwrap_or(0).min(most);
                telemetry::first_token(now - self.submitted, cached);
                self.account
                    .first_token(now, cached, queued_us.map(Duration::from_micros));
            }
        }
    }

    fn ended(&self, ended: Ended) -> Attempted {
        match ended {
            Ended::Stop => Attempted::Finished(Finish::Stop),
            Ended::Length => Attempted::Finished(Finish::Length),
            Ended::Cancelled => Attempted::broken("the head gave the sequence up"),
            Ended::Deadline => Attempted::Over(GatewayError::Deadline {
                limit: self.shared.options.request_timeout,
            }),
            Ended::Failed(why) => Attempted::Broken { why, failed: true },
            Ended::Grammar(detail) => Attempted::Over(GatewayError::Grammar { detail }),
        }
    }
}

/// Resolves once the placement map says that this generation serves no more: its head may be cut off without knowing.
/// When nobody follows the map any more, as in a shutdown, what runs may go on until it breaks.
async fn superseded(routes: &mut watch::Receiver<Arc<Routes>>, fence: Fence) -> Attempted {
    let followed = routes.wait_for(|routes| !routes.serves(fence)).await.is_ok();
    if !followed {
        std::future::pending::<()>().await;
    }
    Attempted::broken("the placement map says that it serves no more")
}
