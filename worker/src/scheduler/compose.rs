//! Batch composition: which rows the next step computes.
//!
//! Decode rows come first and prompt rows fill up to `max_prefill_rows`, or to what `pace` says while sequences decode,
//! so a long prompt never holds up a running stream by more than the rows of one chunk. A sequence has at most one chunk in a step. Consecutive chunks of known
//! tokens may be in flight in consecutive steps: every stage runs its steps in order, so that a chunk finds what those
//! before it wrote. The two roles of a sequence that is computed again are two steps. Work is shared out evenly over
//! the steps that may be in flight, so that every stage has some.
//!
//! Places order everything: who comes first takes blocks from who comes last, never the other way, which is why
//! somebody always moves.

use std::ops::Bound;

use tramontane_model::ids::StepId;
use tramontane_model::step::{SequenceChunk, StepBatch};

use super::pace::StepLoad;
use super::sequence::{Place, Request, Running};
use super::{FlightChunk, InFlight, Scheduler};

/// A step being composed.
struct Plan {
    step: StepId,
    chunks: Vec<SequenceChunk>,
    flight: Vec<FlightChunk>,
    /// Sequences that decode.
    decodes: usize,
    /// Rows other than decode rows.
    fed_rows: usize,
    /// Rows other than decode rows that may still be added; a first group of expanded rows may be more.
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
        let decoding = self.running.values().filter(|running| !running.is_feeding());
        let feed_rows = match self.brings_back() {
            true => self.config.max_prefill_rows,
            false => self.pace.rows(decoding.count()),
        };
        let mut plan = self.plan(feed_rows);
        if plan.chunks.is_empty() && self.in_flight.is_empty() {
            // What decodes may wait for blocks of what does not.
            plan = self.plan(self.config.max_prefill_rows);
        }
        let close_alone = self.in_flight.is_empty() && !self.closed.is_empty();
        if plan.chunks.is_empty() && !close_alone {
            return None;
        }
        let load = self.load(&plan);
        self.next_step += 1;
        self.in_flight.push_back(InFlight {
            step: plan.step,
            load,
            fed_rows: plan.fed_rows,
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

    /// Whether streams are to be brought back that broke off, and nobody is held up by that but others of them: the last
    /// one goes on soonest in whole chunks.
    fn brings_back(&self) -> bool {
        let (feeding, decoding): (Vec<_>, Vec<_>) =
            self.running.values().partition(|running| running.is_feeding());
        let mut coming = feeding
            .iter()
            .map(|running| &running.request)
            .chain(self.waiting.iter().map(|(_, request)| request));
        coming.any(Request::comes_back) && decoding.iter().all(|running| running.request.comes_back())
    }

    /// The rows of the next step, at most so many of them other than decode rows.
    fn plan(&mut self, feed_rows: usize) -> Plan {
        let mut plan = Plan {
            step: StepId(self.next_step),
            chunks: Vec::new(),
            flight: Vec::new(),
            decodes: 0,
            fed_rows: 0,
            feed_rows,
        };
        let share = self.share();
        self.add_decodes(&mut plan, share.decodes);
        plan.decodes = plan.chunks.len();
        self.add_feeds(&mut plan, share.sequences);
        self.add_waiting(&mut plan, share.sequences);
        plan
    }

    /// What a step will have to do, and what is in flight before it.
    fn load(&self, plan: &Plan) -> StepLoad {
        let before = self.in_flight.iter().map(|flight| flight.fed_rows);
        StepLoad {
            decodes: plan.decodes,
            feed_rows: before.sum::<usize>() + plan.fed_rows,
        }
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
            ready_decodes += usize::from(decode && running.is_ready());
            ready += usize::from(running.is_ready());
        }
        let places = self.running_limit - self.running.len();
        let admissible = match self.waiting.first() {
            Some(first) if places > 0 && self.startable(first).is_some() => self.waiting.len().min(places),
            Some(_) | None => 0,
        };
        Share {
            decodes: even(decodes, ready_decodes),
            sequences: even(self.running.len() + admissible, ready + admissible),
        }
    }

    fn add_decodes(&mut self, plan: &mut Plan, share: usize) {
        for place in self.ready(|running| !running.is_feeding()) {
            if plan.chunks.len() >= share {
                return;
            }
            if self.make_room(place) {
                self.add_chunk(place, 1, plan);
            }
        }
    }

    /// A prompt that goes on after this step does not count towards the step's share: it does not yet decode with the
    /// others, and each of its chunks is to find a step of its own.
    fn add_feeds(&mut self, plan: &mut Plan, share: usize) {
        for (place, rows_left) in self.ready_feeds() {
            if plan.feed_rows == 0 || plan.chunks.len() >= self.config.capacity.sequences as usize {
                return;
            }
            if plan.chunks.len() < share || rows_left > plan.feed_rows {
                self.feed(place, plan);
            }
        }
    }

    fn add_waiting(&mut self, plan: &mut Plan, share: usize) {
        while plan.chunks.len() < share && plan.feed_rows > 0 && self.running.len() < self.running_limit {
            let Some(place) = self.start_first() else {
                return;
            };
            if self.feed(place, plan) == 0 {
                return;
            }
        }
    }

    /// Sequences of one sort with rows to compute, first places first.
    fn ready(&self, sort: impl Fn(&Running) -> bool) -> Vec<Place> {
        let ready = |running: &Running| running.is_ready() && sort(running);
        let places = self.running.iter().filter(|(_, running)| ready(running));
        places.map(|(&place, _)| place).collect()
    }

    fn ready_feeds(&self) -> Vec<(Place, usize)> {
        let feeds = self.running.iter().filter(|(_, running)| running.is_feeding());
        feeds
            .map(|(&place, running)| (place, running.rows_left()))
            .collect()
    }

    /// Sees to a block for the sequence's next row, if need be from one with a later place. `false`: it must wait, or
    /// was itself preempted a moment ago.
    fn make_room(&mut self, place: Place) -> bool {
        loop {
            let Some(running) = self.running.get_mut(&place) else {
                return false;
            };
            if self.blocks.cover(&mut running.table, running.computed + 1) {
                return true;
            }
            if !self.preempt_after(place) {
                return false;
            }
        }
    }

    /// Sends the last idle sequence with a later place than this one back to the queue, where it keeps its place. Its
    /// tokens are computed again once it fits, as far as the prefix cache has not kept them until then.
    fn preempt_after(&mut self, place: Place) -> bool {
        let later = (Bound::Excluded(place), Bound::Unbounded);
        let mut last_first = self.running.range(later).rev();
        let Some((&victim, _)) = last_first.find(|(_, running)| running.is_idle()) else {
            return false;
        };
        if let Some(running) = self.running.remove(&victim) {
            let request = self.leave_cache(running);
            self.waiting.insert(victim, request);
            self.preemptions += 1;
        }
        true
    }

    /// Adds the next rows of a sequence whose known tokens have their blocks, as far as the step has room; gives how many.
    ///
    /// A group of expanded rows is not cut: the first rows of a step may be such a group whatever time they take, because
    /// its parts would take nearly as long each.
    fn feed(&mut self, place: Place, plan: &mut Plan) -> usize {
        let group = self.config.capacity.expanded_group;
        let rows = self.running.get(&place).map_or(0, |running| {
            running.chunk_rows(plan.feed_rows, group, plan.fed_rows == 0)
        });
        if rows == 0 {
            return 0;
        }
        let rows = self.add_chunk(place, rows, plan);
        plan.feed_rows = plan.feed_rows.saturating_sub(rows);
        plan.fed_rows += rows;
        rows
    }

    fn add_chunk(&mut self, place: Place, max_rows: usize, plan: &mut Plan) -> usize {
        let Some(running) = self.running.get_mut(&place) else {
            return 0;
        };
        let chunk = running.next_chunk(plan.step, max_rows, &self.blocks);
        plan.flight.push(FlightChunk {
            place,
            sequence: chunk.sequence,
            end: running.computed,
            sampled: chunk.sample,
            scored: chunk.scored.clone(),
            first_scored: chunk.first_position as usize + 1,
        });
        let rows = chunk.tokens.len();
        plan.chunks.push(chunk);
        rows
    }
}
