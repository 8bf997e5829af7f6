//! The scheduler of a replica: which sequences run, in which blocks of the cache, in which step.
//!
//! Pure: no tokio, no clock, no randomness; equal calls give equal steps. It knows nothing of stages, devices or
//! text. Its host, on the head worker, sends its steps to the first stage and brings back the last stage's results,
//! in order.
//!
//! A request waits with its tokens, runs with a place in the cache, and ends. A sequence that must give its blocks up
//! waits again and is later computed anew from its tokens, just as a request that an earlier attempt left behind: there
//! is one way to start a sequence.
//!
//! **ST-1:** token indexes of a request grow by one from the number of tokens submitted as emitted. **ST-2:** every
//! accepted attempt ends with exactly one [`Event::Ended`]. **KV-1:** without requests and steps no block is used.
//! A block that only the prefix cache keeps is not used. **KV-2:** blocks of a sequence whose steps are in flight are
//! freed when the last of them has completed, and a block is shared when every stage has written it, not before.

mod blocks;
mod check;
mod complete;
mod compose;
mod config;
mod event;
mod pace;
mod prefix;
mod queue;
mod sequence;
mod start;
mod submission;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tramontane_model::ids::{RequestId, SequenceId, StepId};
use tramontane_model::time::Tick;

pub use check::Violation;
pub use complete::ProtocolError;
pub use config::{
    ConfigError, MAX_KV_BLOCKS, MAX_SEQUENCES, MAX_STEPS_IN_FLIGHT, MAX_WAITING, SchedulerConfig,
};
pub use event::{EndReason, Event};
pub use prefix::CacheKey;
pub use submission::{MAX_CACHE_SALT_BYTES, MAX_STOP_TOKENS, Refusal, Submission};

use blocks::{BlockPool, BlockTable};
use pace::{Pace, StepLoad};
use queue::Queue;
use sequence::{Place, Request, Running};

/// Where a live request is found.
#[derive(Debug)]
struct Live {
    attempt: u32,
    place: Place,
}

/// A step between its start and its result.
#[derive(Debug)]
struct InFlight {
    step: StepId,
    load: StepLoad,
    /// Rows other than decode rows.
    fed_rows: usize,
    chunks: Vec<FlightChunk>,
    /// Tables that were given back while the step was in flight: it still writes and reads their blocks.
    draining: Vec<BlockTable>,
}

/// Whose rows a step has.
#[derive(Debug)]
struct FlightChunk {
    place: Place,
    sequence: SequenceId,
    /// Rows of the sequence once the step is through.
    end: usize,
    sampled: bool,
    /// Tokens of the prompt that the step scores.
    scored: Vec<u32>,
    /// Position in the prompt of the first of them.
    first_scored: usize,
}

/// Numbers for metrics and status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences that hold blocks.
    pub sequences_running: usize,
    /// Requests that wait, preempted ones included.
    pub requests_waiting: usize,
    /// Steps between start and result.
    pub steps_in_flight: usize,
    /// Blocks of the cache that sequences use; one that several share counts once.
    pub kv_blocks_used: usize,
    /// Blocks that no sequence uses, kept for what they hold; they are free for any use.
    pub kv_blocks_cached: usize,
    /// Blocks of the cache.
    pub kv_blocks_total: usize,
    /// Sequences preempted since the start.
    pub preemptions: u64,
    /// Tokens looked up in the prefix cache since the start: all that a sequence has when it starts.
    pub prefix_lookup_tokens: u64,
    /// Tokens of these that were found.
    pub prefix_hit_tokens: u64,
    /// Cached blocks given out for something else since the start.
    pub prefix_evictions: u64,
}

/// Decides every step of one replica generation.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    cache_key: CacheKey,
    /// Most tokens of a sequence.
    token_limit: usize,
    /// Most sequences that hold blocks.
    running_limit: usize,
    blocks: BlockPool,
    /// Every request that waits or runs.
    live: BTreeMap<RequestId, Live>,
    deadlines: BTreeSet<(Tick, Place)>,
    waiting: Queue,
    running: BTreeMap<Place, Running>,
    /// Oldest first, numbered without a gap.
    in_flight: VecDeque<InFlight>,
    pace: Pace,
    /// Sequences that left the cache since the last step.
    closed: Vec<SequenceId>,
    next_arrival: u64,
    next_sequence: u64,
    next_step: u64,
    preemptions: u64,
    prefix_lookup_tokens: u64,
    prefix_hit_tokens: u64,
    failed: Option<Arc<str>>,
}

impl Scheduler {
    /// A scheduler without requests. `cache_key` is random, drawn for this scheduler alone: nothing is found in its
    /// prefix cache but by it.
    pub fn new(config: SchedulerConfig, cache_key: CacheKey) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            token_limit: config.token_limit() as usize,
            running_limit: config.running_limit(),
            blocks: BlockPool::new(config.kv.block_tokens, config.kv.blocks),
            pace: Pace::new(config.target_ms, config.max_prefill_rows, config.steps_in_flight),
            config,
            cache_key,
            live: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            waiting: Queue::default(),
            running: BTreeMap::new(),
            in_flight: VecDeque::new(),
            closed: Vec::new(),
            next_arrival: 0,
            next_sequence: 0,
            next_step: 0,
            preemptions: 0,
            prefix_lookup_tokens: 0,
            prefix_hit_tokens: 0,
            failed: None,
        })
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Accepts a request, which will end with an event, or says why not.
    ///
    /// A later attempt cancels the earlier one. A submission that was complete when its earlier attempt broke off
    /// (the last emitted token ends it) ends at once, without a step. An attempt is known as long as it is live.
    pub fn submit(
        &mut self,
        now: Tick,
        submission: Submission,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        if let Some(why) = &self.failed {
            return Err(Refusal::Failed(Arc::clone(why)));
        }
        submission.validate(now, &self.config)?;
        let (request, attempt) = (submission.request, submission.attempt);
        let replaced = match self.live.get(&request) {
            None => None,
            Some(live) if live.attempt == attempt => return Err(Refusal::Duplicate { request, attempt }),
            Some(live) if live.attempt > attempt => {
                let live = live.attempt;
                return Err(Refusal::Superseded {
                    request,
                    attempt,
                    live,
                });
            }
            Some(live) => Some(live.place),
        };
        let submitted = Request::new(submission, self.token_limit, self.config.capacity.expanded_group);
        let completion = submitted.completion(self.token_limit);
        let gives_place = replaced.is_some_and(|earlier| self.waiting.get(earlier).is_some());
        if !gives_place && completion.is_none() {
            self.check_queue(&submitted)?;
        }
        if let Some(earlier) = replaced {
            self.end(earlier, EndReason::Cancelled, events);
        }
        match completion {
            Some(reason) => events.push(ended(&submitted, reason)),
            None => self.enqueue(submitted),
        }
        Ok(())
    }

    /// Whether the queue takes another request. One that nobody waits before is taken whatever it may come to.
    fn check_queue(&self, submitted: &Request) -> Result<(), Refusal> {
        let (waiting, limit) = (self.waiting.len(), self.config.max_waiting);
        if waiting >= limit {
            return Err(Refusal::QueueFull { waiting, limit });
        }
        let (tokens, limit) = (submitted.most_tokens(), self.config.max_waiting_tokens);
        let waiting = self.waiting.tokens();
        if waiting > 0 && waiting + tokens > limit {
            return Err(Refusal::TokensFull {
                tokens,
                waiting,
                limit,
            });
        }
        Ok(())
    }

    /// Ends an attempt; `false` if it is not live, which a cancellation that crosses its end finds.
    pub fn cancel(&mut self, request: RequestId, attempt: u32, events: &mut Vec<Event>) -> bool {
        match self.live.get(&request) {
            #[cfg(feature = "deliberate-bugs")]
            Some(live) if tramontane_sim::bugs::on(tramontane_sim::bugs::Bug::LostAttemptFencing) => {
                self.end(live.place, EndReason::Cancelled, events);
                true
            }
            Some(live) if live.attempt == attempt => {
                self.end(live.place, EndReason::Cancelled, events);
                true
            }
            Some(_) | None => false,
        }
    }

    /// What the oldest step in flight took from its start to its result, in microseconds; told before the result is
    /// handed in, or not at all. Decides how prompts are cut while sequences decode, and nothing else.
    pub fn took(&mut self, microseconds: u64) {
        if let Some(flight) = self.in_flight.front() {
            self.pace.took(flight.load, microseconds);
        }
    }

    /// Ends every request whose deadline has come.
    pub fn elapsed(&mut self, now: Tick, events: &mut Vec<Event>) {
        while let Some(&(deadline, place)) = self.deadlines.first()
            && deadline <= now
        {
            self.end(place, EndReason::DeadlineExceeded, events);
        }
    }

    /// When [`Self::elapsed`] next has something to do.
    pub fn next_deadline(&self) -> Option<Tick> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Ends every request because the replica cannot go on. No step comes after it, no submission is accepted, and
    /// results of steps in flight are refused.
    pub fn fail_all(&mut self, why: &str, events: &mut Vec<Event>) {
        let why: Arc<str> = why.into();
        let places: Vec<Place> = self.live.values().map(|live| live.place).collect();
        for place in places {
            self.end(place, EndReason::Failed(Arc::clone(&why)), events);
        }
        for table in self.in_flight.drain(..).flat_map(|flight| flight.draining) {
            self.blocks.release(table);
        }
        self.closed.clear();
        self.failed.get_or_insert(why);
    }

    /// Numbers as of now.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            sequences_running: self.running.len(),
            requests_waiting: self.waiting.len(),
            steps_in_flight: self.in_flight.len(),
            kv_blocks_used: self.blocks.used(),
            kv_blocks_cached: self.blocks.kept(),
            kv_blocks_total: self.blocks.total(),
            preemptions: self.preemptions,
            prefix_lookup_tokens: self.prefix_lookup_tokens,
            prefix_hit_tokens: self.prefix_hit_tokens,
            prefix_evictions: self.blocks.evictions(),
        }
    }

    fn enqueue(&mut self, mut request: Request) {
        if self.config.prefix_cache {
            request.hash_blocks(&self.cache_key, self.config.kv.block_tokens as usize);
        }
        let place = Place {
            priority: request.priority,
            arrival: self.next_arrival,
        };
        self.next_arrival += 1;
        let attempt = request.attempt;
        self.live.insert(request.request, Live { attempt, place });
        self.deadlines.insert((request.deadline, place));
        self.waiting.insert(place, request);
    }

    /// The one way out for a live request.
    fn end(&mut self, place: Place, reason: EndReason, events: &mut Vec<Event>) {
        let request = match (self.waiting.remove(place), self.running.remove(&place)) {
            (Some(request), _) => request,
            (None, Some(running)) => self.leave_cache(running),
            (None, None) => return,
        };
        self.live.remove(&request.request);
        self.deadlines.remove(&(request.deadline, place));
        events.push(ended(&request, reason));
    }

    /// Gives a sequence's blocks back, at once or with the last step that still uses them (KV-2), and lets the last
    /// stage know, if it has heard of it.
    fn leave_cache(&mut self, running: Running) -> Request {
        if running.is_open() {
            self.closed.push(running.sequence);
        }
        let last = running.in_flight.back().copied();
        let is_last = |flight: &&mut InFlight| Some(flight.step) == last;
        match self.in_flight.iter_mut().find(is_last) {
            Some(flight) => flight.draining.push(running.table),
            None => self.blocks.release(running.table),
        }
        running.request
    }
}

fn ended(request: &Request, reason: EndReason) -> Event {
    Event::Ended {
        request: request.request,
        attempt: request.attempt,
        reason,
        emitted: request.emitted(),
    }
}
