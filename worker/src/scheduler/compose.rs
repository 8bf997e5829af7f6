//! Batch composition: which rows the next step computes.
//!
//! Decode rows come first and prompt rows fill up to `max_prefill_rows`, so a long prompt never holds up a running
//! stream by more than the rows of one chunk. A sequence has at most one chunk in a step and at most one step in
//! flight; the two roles of a sequence that is computed again are therefore two steps. Work is shared out evenly over
//! the steps that may be in flight, so that every stage has some. There is no priority here but age: the oldest takes
//! blocks from the youngest, never the other way, which is why somebody always moves.

use std::ops::Bound;

use tramontane_model::ids::{SequenceId, StepId};
use tramontane_model::step::{SequenceChunk, StepBatch};

use super::blocks::BlockTable;
use super::sequence::{Arrival, Running};
use super::{FlightChunk, InFlight, Scheduler};

/// A step being composed.
struct Plan {
    step: StepId,
    chunks: Vec<SequenceChunk>,
    flight: Vec<FlightChunk>,
    /// Rows other than decode rows that may still be added.
    feed_rows: usize,
}

/// How many of the sequences that are ready go into the step being composed.
struct Share {
    decodes: usize,
    sequences: usize,
}

impl Scheduler {
    /// The next step for the first stage, or `None` until a result, a submission or a cancellation comes.
    ///
    /// The host asks until it gets `None`. A step without rows carries sequences that have closed to the last stage;
    /// it is made only when nothing is in flight and nothing else is to be done, and is answered by a result without
    /// tokens.
    pub fn next_step(&mut self) -> Option<StepBatch> {
        if self.failed.is_some() || self.in_flight.len() >= self.config.steps_in_flight {
            return None;
        }
        let mut plan = Plan {
            step: StepId(self.next_step),
            chunks: Vec::new(),
            flight: Vec::new(),
            feed_rows: self.config.max_prefill_rows,
        };
        let share = self.share();
        self.add_decodes(&mut plan, share.decodes);
        self.add_feeds(&mut plan, share.sequences);
        self.add_waiting(&mut plan, share.sequences);
        let close_alone = self.in_flight.is_empty() && !self.closed.is_empty();
        if plan.chunks.is_empty() && !close_alone {
            return None;
        }
        self.next_step += 1;
        self.in_flight.push_back(InFlight {
            step: plan.step,
            chunks: plan.flight,
            draining: Vec::new(),
        });
        Some(StepBatch {
            fence: self.config.fence,
            step: plan.step,
            chunks: plan.chunks,
            closed: std::mem::take(&mut self.closed),
        })
    }

    /// Even shares: what there is over all steps, but no more than is ready over the steps that are still free.
    fn share(&self) -> Share {
        let slots = self.config.steps_in_flight;
        let free_slots = (slots - self.in_flight.len()).max(1);
        let even = |total: usize, ready: usize| total.div_ceil(slots).min(ready.div_ceil(free_slots));
        let (mut decodes, mut ready_decodes, mut ready) = (0, 0, 0);
        for running in self.running.values() {
            let decode = !running.is_feeding();
            decodes += usize::from(decode);
            ready_decodes += usize::from(decode && running.is_idle());
            ready += usize::from(running.is_idle());
        }
        let admissible = match self.waiting.values().next() {
            Some(head) if self.fits(head.known()) => {
                let places = self.running_limit - self.running.len();
                self.waiting.len().min(places)
            }
            Some(_) | None => 0,
        };
        Share {
            decodes: even(decodes, ready_decodes),
            sequences: even(self.running.len() + admissible, ready + admissible),
        }
    }

    /// Whether a sequence of so many tokens can have blocks and leave one for each running sequence to grow into:
    /// without that, an admission would only be preempted.
    fn fits(&self, tokens: usize) -> bool {
        self.blocks.needed(tokens) + self.running.len() <= self.blocks.free()
    }

    fn add_decodes(&mut self, plan: &mut Plan, share: usize) {
        for arrival in self.ready(|running| !running.is_feeding()) {
            if plan.chunks.len() >= share {
                return;
            }
            if self.make_room(arrival) {
                self.place(arrival, 1, plan);
            }
        }
    }

    fn add_feeds(&mut self, plan: &mut Plan, share: usize) {
        for arrival in self.ready(Running::is_feeding) {
            if plan.chunks.len() >= share || plan.feed_rows == 0 {
                return;
            }
            self.feed(arrival, plan);
        }
    }

    fn add_waiting(&mut self, plan: &mut Plan, share: usize) {
        while plan.chunks.len() < share && plan.feed_rows > 0 && self.running.len() < self.running_limit {
            let Some(arrival) = self.admit_oldest() else {
                return;
            };
            self.feed(arrival, plan);
        }
    }

    /// Gives the oldest waiting request a place in the cache, if it fits. What waits behind it stays behind it: first
    /// come, first served.
    fn admit_oldest(&mut self) -> Option<Arrival> {
        let (_, oldest) = self.waiting.first_key_value()?;
        let known = oldest.known();
        let mut table = BlockTable::default();
        if !self.fits(known) || !self.blocks.cover(&mut table, known) {
            return None;
        }
        let (arrival, request) = self.waiting.pop_first()?;
        let sequence = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        self.running
            .insert(arrival, Running::new(request, sequence, table));
        Some(arrival)
    }

    /// Idle sequences of one sort, oldest first.
    fn ready(&self, sort: impl Fn(&Running) -> bool) -> Vec<Arrival> {
        let ready = |running: &Running| running.is_idle() && sort(running);
        let arrivals = self.running.iter().filter(|(_, running)| ready(running));
        arrivals.map(|(&arrival, _)| arrival).collect()
    }

    /// Sees to a block for the sequence's next row, if need be from a younger sequence. `false`: it must wait, or
    /// was itself preempted a moment ago.
    fn make_room(&mut self, arrival: Arrival) -> bool {
        loop {
            let Some(running) = self.running.get_mut(&arrival) else {
                return false;
            };
            if self.blocks.cover(&mut running.table, running.computed + 1) {
                return true;
            }
            if !self.preempt_younger_than(arrival) {
                return false;
            }
        }
    }

    /// Sends the youngest idle sequence that is younger than this one back to the queue, at its old place. Its tokens
    /// are computed again once it fits: there is no other copy of its cache.
    fn preempt_younger_than(&mut self, arrival: Arrival) -> bool {
        let younger = (Bound::Excluded(arrival), Bound::Unbounded);
        let mut youngest_first = self.running.range(younger).rev();
        let Some((&victim, _)) = youngest_first.find(|(_, running)| running.is_idle()) else {
            return false;
        };
        if let Some(running) = self.running.remove(&victim) {
            let request = self.leave_cache(running);
            self.waiting.insert(victim, request);
            self.preemptions += 1;
        }
        true
    }

    /// Adds the next rows of a sequence whose known tokens have their blocks, as far as the step has room.
    fn feed(&mut self, arrival: Arrival, plan: &mut Plan) {
        let rows = self.place(arrival, plan.feed_rows, plan);
        plan.feed_rows -= rows;
    }

    fn place(&mut self, arrival: Arrival, max_rows: usize, plan: &mut Plan) -> usize {
        let Some(running) = self.running.get_mut(&arrival) else {
            return 0;
        };
        let chunk = running.next_chunk(plan.step, max_rows, &self.blocks);
        plan.flight.push(FlightChunk {
            arrival,
            sequence: chunk.sequence,
            sampled: chunk.sample,
        });
        let rows = chunk.tokens.len();
        plan.chunks.push(chunk);
        rows
    }
}
