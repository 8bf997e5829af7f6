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
//! **KV-2:** blocks of a sequence whose step is in flight are freed when that step has completed, not before.

mod blocks;
mod check;
mod complete;
mod compose;
mod config;
mod event;
mod sequence;
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
pub use submission::{MAX_STOP_TOKENS, Refusal, Submission};

use blocks::{BlockPool, BlockTable};
use sequence::{Arrival, Request, Running};

/// Where a live request is found.
#[derive(Debug)]
struct Live {
    attempt: u32,
    arrival: Arrival,
}

/// A step between its start and its result.
#[derive(Debug)]
struct InFlight {
    step: StepId,
    chunks: Vec<FlightChunk>,
    /// Tables of sequences that left while the step was in flight: it still writes and reads their blocks.
    draining: Vec<BlockTable>,
}

/// Whose rows a step has.
#[derive(Debug)]
struct FlightChunk {
    arrival: Arrival,
    sequence: SequenceId,
    sampled: bool,
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
    /// Blocks of the cache in use.
    pub kv_blocks_used: usize,
    /// Blocks of the cache.
    pub kv_blocks_total: usize,
    /// Sequences preempted since the start.
    pub preemptions: u64,
}

/// Decides every step of one replica generation.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    /// Most tokens of a sequence.
    token_limit: usize,
    /// Most sequences that hold blocks.
    running_limit: usize,
    blocks: BlockPool,
    /// Every request that waits or runs.
    live: BTreeMap<RequestId, Live>,
    deadlines: BTreeSet<(Tick, Arrival)>,
    waiting: BTreeMap<Arrival, Request>,
    running: BTreeMap<Arrival, Running>,
    /// Oldest first, numbered without a gap.
    in_flight: VecDeque<InFlight>,
    /// Sequences that left the cache since the last step.
    closed: Vec<SequenceId>,
    next_arrival: u64,
    next_sequence: u64,
    next_step: u64,
    preemptions: u64,
    failed: Option<Arc<str>>,
}

impl Scheduler {
    /// A scheduler without requests.
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            token_limit: config.token_limit() as usize,
            running_limit: config.running_limit(),
            blocks: BlockPool::new(config.kv.block_tokens, config.kv.blocks),
            config,
            live: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            in_flight: VecDeque::new(),
            closed: Vec::new(),
            next_arrival: 0,
            next_sequence: 0,
            next_step: 0,
            preemptions: 0,
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
            Some(live) => Some(live.arrival),
        };
        let submitted = Request::new(submission);
        let completion = submitted.completion(self.token_limit);
        let gives_place = replaced.is_some_and(|earlier| self.waiting.contains_key(&earlier));
        let (waiting, limit) = (self.waiting.len(), self.config.max_waiting);
        if waiting >= limit && !gives_place && completion.is_none() {
            return Err(Refusal::QueueFull { waiting, limit });
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

    /// Ends an attempt; `false` if it is not live, which a cancellation that crosses its end finds.
    pub fn cancel(&mut self, request: RequestId, attempt: u32, events: &mut Vec<Event>) -> bool {
        match self.live.get(&request) {
            Some(live) if live.attempt == attempt => {
                self.end(live.arrival, EndReason::Cancelled, events);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Ends every request whose deadline has come.
    pub fn elapsed(&mut self, now: Tick, events: &mut Vec<Event>) {
        while let Some(&(deadline, arrival)) = self.deadlines.first()
            && deadline <= now
        {
            self.end(arrival, EndReason::DeadlineExceeded, events);
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
        let arrivals: Vec<Arrival> = self.live.values().map(|live| live.arrival).collect();
        for arrival in arrivals {
            self.end(arrival, EndReason::Failed(Arc::clone(&why)), events);
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
            kv_blocks_total: self.blocks.total(),
            preemptions: self.preemptions,
        }
    }

    fn enqueue(&mut self, request: Request) {
        let arrival = Arrival(self.next_arrival);
        self.next_arrival += 1;
        let attempt = request.attempt;
        self.live.insert(request.request, Live { attempt, arrival });
        self.deadlines.insert((request.deadline, arrival));
        self.waiting.insert(arrival, request);
    }

    /// The one way out for a live request.
    fn end(&mut self, arrival: Arrival, reason: EndReason, events: &mut Vec<Event>) {
        let request = match (self.waiting.remove(&arrival), self.running.remove(&arrival)) {
            (Some(request), _) => request,
            (None, Some(running)) => self.leave_cache(running),
            (None, None) => return,
        };
        self.live.remove(&request.request);
        self.deadlines.remove(&(request.deadline, arrival));
        events.push(ended(&request, reason));
    }

    /// Gives a sequence's blocks back, at once or with the step that still uses them (KV-2), and lets the last stage
    /// know.
    fn leave_cache(&mut self, running: Running) -> Request {
        self.closed.push(running.sequence);
        let in_flight = |flight: &&mut InFlight| Some(flight.step) == running.in_flight;
        match self.in_flight.iter_mut().find(in_flight) {
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
