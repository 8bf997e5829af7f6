//! Masks of sequences that are held to a grammar, computed beside the device.
//!
//! As soon as a token is sampled, a thread of the pool computes which tokens may follow it; the device's thread waits for
//! that only when it samples the sequence again. The prediction is never more than that: what counts is the ids that come
//! in as rows, and where they differ the matcher starts anew, so that a mask is a function of the ids alone (DET-1).
//!
//! A grammar that fails, or a mask that is not ready in time, ends the attempt; that is logged and counted.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tramontane_model::grammar::{Cancel, Compiler, Grammar, GrammarError, Matcher, Pool, Words};
use tramontane_model::ids::SequenceId;
use tramontane_model::step::{Opening, SequenceChunk};
use tramontane_model::tekken::{self, Vocabulary};

use super::run::MAX_OPEN_SEQUENCES;
use crate::weights::ModelFiles;

/// Most threads that compute masks.
const MAX_THREADS: usize = 4;
/// Longest that the device waits for a mask.
const MASK_DEADLINE: Duration = Duration::from_secs(5);
/// How long to wait before a full queue is tried again.
const RETRY: Duration = Duration::from_millis(1);
/// The token that ends an answer.
const END: &str = "</s>";

/// Makes masks for the sequences of a last stage.
#[derive(Clone, Debug)]
pub(super) struct MaskMaker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pool: Pool,
    path: PathBuf,
    vocab_size: usize,
    /// Made of the vocabulary in the checkpoint's folder.
    compiler: OnceLock<Result<Compiler, GrammarError>>,
}

impl MaskMaker {
    /// Starts the threads, and has them get ready.
    pub(super) fn start(model: &ModelFiles) -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let pool = Pool::start("masks", (cores / 2).clamp(1, MAX_THREADS), MAX_OPEN_SEQUENCES)?;
        let shared = Arc::new(Shared {
            pool,
            path: tekken::file_in(model.checkpoint.dir()),
            vocab_size: model.spec.vocab_size as usize,
            compiler: OnceLock::new(),
        });
        // Weak, for the pool ends with what it works for.
        let weak = Arc::downgrade(&shared);
        let warm = move || {
            if let Some(shared) = weak.upgrade()
                && let Err(error) = shared.compiler()
            {
                tracing::warn!(%error, "answers cannot be held to grammars");
            }
        };
        if shared.pool.try_run(warm).is_err() {
            tracing::warn!("the first work on grammars was not taken");
        }
        Ok(Self(shared))
    }
}

impl Shared {
    fn compiler(&self) -> Result<&Compiler, GrammarError> {
        let made = self.compiler.get_or_init(|| {
            let unusable = GrammarError::Vocabulary;
            let vocabulary = Vocabulary::load(&self.path, self.vocab_size);
            let vocabulary = vocabulary.map_err(|error| unusable(error.to_string()))?;
            let end = vocabulary.special_id(END);
            let end = end.ok_or_else(|| unusable(format!("it has no {END}")))?;
            Compiler::new(&Words {
                special: vocabulary.special.len(),
                tokens: &vocabulary.tokens,
                end,
            })
        });
        made.as_ref().map_err(Clone::clone)
    }
}

/// What an open sequence is held to.
#[derive(Debug)]
pub(super) struct Constraint {
    maker: MaskMaker,
    work: Arc<Work>,
    prompt_tokens: u32,
    /// The generated tokens that came in as rows, or before the first of them.
    generated: Vec<u32>,
}

/// What is worked at for one sequence: at most one job at a time.
#[derive(Debug)]
struct Work {
    sequence: SequenceId,
    grammar: Grammar,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The generated tokens of which the mask is wanted next.
    wanted: Vec<u32>,
    /// Whether a job is in the queue or runs.
    busy: bool,
    /// Gone while a job runs.
    matcher: Option<Matcher>,
    cancel: Option<Cancel>,
    /// The last mask.
    made: Option<Made>,
    /// Whether a failure was told.
    failed: bool,
    closed: bool,
}

#[derive(Debug)]
struct Made {
    /// The generated tokens that it follows.
    after: Vec<u32>,
    mask: Result<Vec<u32>, GrammarError>,
}

impl Constraint {
    /// Begins to compile the grammar of a sequence that opens.
    pub(super) fn new(maker: &MaskMaker, sequence: SequenceId, grammar: &Grammar, opening: &Opening) -> Self {
        let constraint = Self {
            maker: maker.clone(),
            work: Arc::new(Work {
                sequence,
                grammar: grammar.clone(),
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
            prompt_tokens: opening.prompt_tokens,
            generated: opening.generated_before.clone(),
        };
        constraint.ask(&mut constraint.work.state(), constraint.generated.clone());
        constraint
    }

    /// Takes the generated tokens of a chunk; those that are there already only once.
    pub(super) fn take_in(&mut self, chunk: &SequenceChunk) {
        for (position, &token) in (chunk.first_position..).zip(&chunk.tokens) {
            let Some(place) = position.checked_sub(self.prompt_tokens) else {
                continue;
            };
            let place = place as usize;
            if self.generated.get(place) != Some(&token) {
                self.generated.truncate(place);
                self.generated.push(token);
            }
        }
    }

    /// Begins with the mask that will be wanted if this token is the next one.
    pub(super) fn expect(&self, token: u32) {
        let mut wanted = self.generated.clone();
        wanted.push(token);
        self.ask(&mut self.work.state(), wanted);
    }

    /// Which tokens may follow those that came in: waits for it.
    pub(super) fn mask(&self, deadline: Instant) -> Result<Vec<u32>, GrammarError> {
        let started = Instant::now();
        let deadline = deadline.min(started + MASK_DEADLINE);
        let mut state = self.work.state();
        let made = loop {
            if let Some(made) = &state.made
                && made.after == self.generated
            {
                break made.mask.clone();
            }
            self.ask(&mut state, self.generated.clone());
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if let Some(cancel) = &state.cancel {
                    cancel.cancel();
                }
                break Err(GrammarError::Cancelled);
            }
            let wait = if state.busy { left } else { left.min(RETRY) };
            let waited = self.work.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        metrics::histogram!("tramontane_grammar_wait_seconds").record(started.elapsed().as_secs_f64());
        made.inspect_err(|error| {
            if !std::mem::replace(&mut state.failed, true) {
                metrics::counter!("tramontane_grammar_failures_total").increment(1);
                let (sequence, generated) = (self.work.sequence, self.generated.len());
                tracing::warn!(%sequence, generated, %error, "an attempt is ended: its grammar failed");
            }
        })
    }

    fn ask(&self, state: &mut State, wanted: Vec<u32>) {
        state.wanted = wanted;
        if state.busy {
            return;
        }
        let (shared, work) = (Arc::downgrade(&self.maker.0), Arc::clone(&self.work));
        let job = move || {
            if let Some(shared) = shared.upgrade() {
                work.run(&shared);
            }
        };
        state.busy = self.maker.0.pool.try_run(job).is_ok();
    }
}

impl Drop for Constraint {
    fn drop(&mut self) {
        let mut state = self.work.state();
        state.closed = true;
        if let Some(cancel) = &state.cancel {
            cancel.cancel();
        }
    }
}

impl Work {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes masks until the one that is wanted is there.
    fn run(&self, shared: &Shared) {
        loop {
            let mut state = self.state();
            let is_made = state.made.as_ref().is_some_and(|made| made.after == state.wanted);
            if is_made || state.closed {
                state.busy = false;
                return;
            }
            let (wanted, mut matcher) = (state.wanted.clone(), state.matcher.take());
            drop(state);
            let mask = self.make(shared, &mut matcher, &wanted);
            let mut state = self.state();
            state.matcher = matcher;
            state.made = Some(Made { after: wanted, mask });
            self.changed.notify_all();
        }
    }

    fn make(
        &self,
        shared: &Shared,
        matcher: &mut Option<Matcher>,
        wanted: &[u32],
    ) -> Result<Vec<u32>, GrammarError> {
        let going_on = matcher.take_if(|matcher| wanted.starts_with(matcher.consumed()));
        let mut going_on = match going_on {
            Some(matcher) => matcher,
            None => {
                let compiler = shared.compiler()?;
                let started = Instant::now();
                let new = compiler.matcher(&self.grammar)?;
                metrics::histogram!("tramontane_grammar_compile_seconds")
                    .record(started.elapsed().as_secs_f64());
                self.state().cancel = Some(new.cancel());
                new
            }
        };
        let started = Instant::now();
        let taken = going_on.consumed().len();
        let consumed = wanted[taken..]
            .iter()
            .try_for_each(|&token| going_on.consume(token));
        let mask = consumed.and_then(|()| going_on.mask());
        metrics::histogram!("tramontane_grammar_mask_seconds").record(started.elapsed().as_secs_f64());
        *matcher = Some(going_on);
        mask
    }
}
