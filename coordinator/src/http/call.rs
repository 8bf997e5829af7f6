//! What is known of one HTTP request from its arrival to the end of its answer, and the line in the log that tells it.
//!
//! One line for each request, written when its answer has been sent or its client has gone. Never a prompt or an answer,
//! unless the configuration asks for prompts.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use tokio::time::Instant;
use tramontane_model::ids::RequestId;

use super::idempotency::IdempotencyKey;
use super::trace::Trace;
use crate::gateway::Account;

/// Most of a body that stands in the log where prompts are wanted there, in bytes.
const MAX_PROMPT_BYTES: usize = 64 << 10;

/// One request: a cheap handle that goes along with it.
#[derive(Clone, Debug)]
pub(super) struct Call(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: RequestId,
    trace: Trace,
    arrived: Instant,
    key: OnceLock<IdempotencyKey>,
    model: OnceLock<String>,
    prompt: OnceLock<String>,
    choices: Mutex<Vec<Arc<Choice>>>,
}

/// One choice of an answer.
#[derive(Debug)]
pub(super) struct Choice {
    shown_id: RequestId,
    account: Arc<Account>,
    prompt_tokens: u32,
    progress: Mutex<Progress>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    tokens: u32,
    end: Option<&'static str>,
    ended_well: bool,
}

impl Choice {
    /// `shown_id` is what the ids that its answer shows follow from; `prompt_tokens` counts the prompt once, however many
    /// choices continue it.
    pub(super) fn new(shown_id: RequestId, account: Arc<Account>, prompt_tokens: u32) -> Self {
        Self {
            shown_id,
            account,
            prompt_tokens,
            progress: Mutex::default(),
        }
    }

    /// What the ids that its answer shows follow from.
    pub(super) fn shown_id(&self) -> RequestId {
        self.shown_id
    }

    /// A token was given out.
    pub(super) fn token(&self) {
        self.change(|progress| progress.tokens = progress.tokens.saturating_add(1));
    }

    /// It came to its natural end.
    pub(super) fn end(&self, end: &'static str) {
        self.change(|progress| {
            progress.ended_well |= progress.end.is_none();
            progress.end = progress.end.or(Some(end));
        });
    }

    /// It broke off.
    pub(super) fn fail(&self, why: &'static str) {
        self.change(|progress| progress.end = progress.end.or(Some(why)));
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        // Nothing panics while the lock is held.
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn progress(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a request was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome<'a> {
    pub(super) method: &'a Method,
    /// The path, as the table of routes has it.
    pub(super) route: &'a str,
    pub(super) status: StatusCode,
    /// What kind of error the answer is, if it is one.
    pub(super) error: Option<&'static str>,
    /// Whether the line is of little interest.
    pub(super) probe: bool,
}

impl Call {
    pub(super) fn new(id: RequestId, trace: Trace) -> Self {
        Self(Arc::new(Inner {
            id,
            trace,
            arrived: Instant::now(),
            key: OnceLock::new(),
            model: OnceLock::new(),
            prompt: OnceLock::new(),
            choices: Mutex::default(),
        }))
    }

    pub(super) fn id(&self) -> RequestId {
        self.0.id
    }

    /// The request came with this key.
    pub(super) fn keyed(&self, key: IdempotencyKey) {
        self.0.key.get_or_init(|| key);
    }

    /// The key that it came with.
    pub(super) fn key(&self) -> Option<&IdempotencyKey> {
        self.0.key.get()
    }

    /// What the ids that choice `index` of the answer shows follow from: the key, and without one the choice's own id.
    pub(super) fn shown_id(&self, index: usize, own: RequestId) -> RequestId {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        self.key().map_or(own, |key| key.id(index))
    }

    /// The id that the answer as a whole shows.
    pub(super) fn answer_id(&self) -> RequestId {
        self.shown_id(0, self.0.id)
    }

    /// Whether every choice has come to its natural end, and there is one.
    pub(super) fn ended_well(&self) -> bool {
        let choices = self
            .0
            .choices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let well = |choice: &Arc<Choice>| choice.progress().ended_well;
        !choices.is_empty() && choices.iter().all(well)
    }

    pub(super) fn trace(&self) -> Trace {
        self.0.trace
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.0.arrived.elapsed()
    }

    /// The model that it asks.
    pub(super) fn asks(&self, model: &str) {
        self.0.model.get_or_init(|| model.to_owned());
    }

    /// Keeps the body for the log, as far as it is not too long.
    pub(super) fn keep_prompt(&self, body: &[u8]) {
        let cut = &body[..body.len().min(MAX_PROMPT_BYTES)];
        self.0
            .prompt
            .get_or_init(|| String::from_utf8_lossy(cut).into_owned());
    }

    /// One more choice continues a prompt of it.
    pub(super) fn add(&self, choice: Arc<Choice>) {
        // Nothing panics while the lock is held.
        let mut choices = self.0.choices.lock().unwrap_or_else(PoisonError::into_inner);
        choices.push(choice);
    }

    /// Writes the line.
    pub(super) fn tell(&self, outcome: &Outcome<'_>) {
        let Inner {
            id,
            trace,
            arrived,
            key: _,
            model,
            prompt,
            choices,
        } = &*self.0;
        let Outcome {
            method,
            route,
            status,
            error,
            probe,
        } = outcome;
        let (trace, status) = (trace.id, status.as_u16());
        let milliseconds = ms(arrived.elapsed());
        if *probe {
            tracing::debug!(%trace, request = %id, %method, route, status, milliseconds, "response");
            return;
        }
        let choices = choices.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let total = Total::of(&choices, *arrived);
        tracing::info!(
            %trace,
            request = %id,
            %method,
            route,
            status,
            error,
            model = model.get(),
            choices = total.choices,
            prompt_tokens = total.prompt_tokens,
            cached_tokens = total.cached_tokens,
            completion_tokens = total.completion_tokens,
            queue_ms = total.queued.map(ms),
            first_token_ms = total.first_token.map(ms),
            milliseconds,
            finish_reason = total.finish_reason(),
            replica = total.replica,
            generation = total.generation,
            retries = total.retries,
            prompt = prompt.get(),
            "response"
        );
    }
}

/// Milliseconds, to the microsecond.
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// The choices of a request taken together; nothing where it had none.
#[derive(Debug, Default)]
struct Total {
    choices: Option<usize>,
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    /// The longest wait.
    queued: Option<Duration>,
    /// From the request's arrival to the first token of any choice.
    first_token: Option<Duration>,
    /// Where the first choice was served last.
    replica: Option<u64>,
    generation: Option<u64>,
    /// Attempts beyond the first.
    retries: Option<u32>,
    /// Each reason once, in the order of the choices.
    ends: Vec<&'static str>,
}

impl Total {
    fn of(choices: &[Arc<Choice>], arrived: Instant) -> Self {
        let mut total = Self::default();
        if choices.is_empty() {
            return total;
        }
        let (mut prompt, mut cached, mut completion, mut retries) = (0, 0, 0, 0);
        for choice in choices {
            let (facts, progress) = (choice.account.facts(), choice.progress());
            prompt += u64::from(choice.prompt_tokens);
            cached += u64::from(facts.cached_prompt_tokens.min(choice.prompt_tokens));
            completion += u64::from(progress.tokens);
            retries += facts.attempts.saturating_sub(1);
            total.queued = total.queued.max(facts.queued);
            let first = facts.first_token.map(|at| at.saturating_duration_since(arrived));
            total.first_token = [total.first_token, first].into_iter().flatten().min();
            total.replica = total.replica.or(facts.fence.map(|fence| fence.replica.0));
            total.generation = total.generation.or(facts.fence.map(|fence| fence.generation.0));
            // A client that left before the end cancelled it.
            let end = progress.end.unwrap_or("cancelled");
            if !total.ends.contains(&end) {
                total.ends.push(end);
            }
        }
        total.choices = Some(choices.len());
        (total.prompt_tokens, total.cached_tokens) = (Some(prompt), Some(cached));
        (total.completion_tokens, total.retries) = (Some(completion), Some(retries));
        total
    }

    fn finish_reason(&self) -> Option<String> {
        (!self.ends.is_empty()).then(|| self.ends.join(","))
    }
}
