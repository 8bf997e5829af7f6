//! The scheduler's invariants as one check, for tests and simulations to call after every event.
//!
//! Not for the running program: it looks at every block.

use std::collections::{BTreeMap, BTreeSet};

use tramontane_model::ids::SequenceId;

use super::Scheduler;
use super::blocks::BlockTable;
#[cfg(test)]
use super::prefix::Roles;

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

fn ensure(holds: bool, message: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation(message())) }
}

impl Scheduler {
    /// Checks ST-1, KV-1, KV-2 and every limit of the configuration against the whole state.
    pub fn check(&self) -> Result<(), Violation> {
        self.check_blocks()?;
        self.check_prefixes()?;
        self.check_requests()?;
        self.check_running()?;
        self.check_steps()
    }

    /// What every block of the prefix cache holds: its tokens, and their roles.
    #[cfg(test)]
    pub(super) fn cached_blocks(&self) -> Vec<(u32, Vec<u32>, Roles)> {
        let index = self.blocks.index();
        let contents = index
            .blocks()
            .filter_map(|block| Some((block, index.content(block)?)));
        contents
            .map(|(block, content)| (block, content.tokens.to_vec(), content.roles))
            .collect()
    }

    /// KV-1 and KV-2.
    fn check_blocks(&self) -> Result<(), Violation> {
        let running = self.running.values().map(|running| &running.table);
        let draining = self.in_flight.iter().flat_map(|flight| &flight.draining);
        let mut held: BTreeMap<u32, u32> = BTreeMap::new();
        for &block in running.chain(draining).flat_map(BlockTable::ids) {
            *held.entry(block).or_default() += 1;
        }
        for (&block, &tables) in &held {
            ensure(block < self.config.kv.blocks, || {
                format!("block {block} does not exist")
            })?;
            let holders = self.blocks.holders(block);
            ensure(holders == tables, || {
                format!("KV-2: block {block} is in {tables} tables and counts {holders}")
            })?;
            ensure(!self.blocks.is_free(block), || {
                format!("KV-2: block {block} is in a table and free")
            })?;
            ensure(tables == 1 || self.blocks.index().contains(block), || {
                format!("KV-2: block {block} is in {tables} tables and not in the prefix cache")
            })?;
        }
        let (used, held) = (self.blocks.used(), held.len());
        ensure(used == held, || {
            format!("KV-1: {used} blocks are used, tables hold {held}")
        })
    }

    /// What the prefix cache says of its blocks, and that each follows on one that is there too.
    fn check_prefixes(&self) -> Result<(), Violation> {
        let index = self.blocks.index();
        let mut kept = 0;
        for block in index.blocks() {
            kept += usize::from(self.blocks.holders(block) == 0);
            let before = index.content(block).and_then(|content| content.before);
            let follows = before.is_none_or(|before| {
                index.contains(before) && self.blocks.holders(before) >= self.blocks.holders(block)
            });
            ensure(follows, || {
                format!("block {block} is cached, block {before:?} before it is not, or has fewer holders")
            })?;
        }
        let found = self.blocks.kept();
        ensure(found == kept, || {
            format!("{kept} cached blocks are held by nobody, {found} are kept")
        })?;
        for running in self.running.values() {
            let cached = &running.table.ids()[..running.cached];
            ensure(cached.iter().all(|&block| index.contains(block)), || {
                let sequence = running.sequence;
                format!("sequence {sequence} has {cached:?} in front, not all are cached")
            })?;
        }
        Ok(())
    }

    fn check_requests(&self) -> Result<(), Violation> {
        let waiting = self.waiting.iter();
        let running = self
            .running
            .iter()
            .map(|(place, running)| (place, &running.request));
        for (place, request) in waiting.chain(running) {
            let id = request.request;
            let live = self.live.get(&id);
            let found = live.is_some_and(|live| live.place == *place && live.attempt == request.attempt);
            ensure(found, || format!("request {id} is not found by its id"))?;
            let timed = self.deadlines.contains(&(request.deadline, *place));
            ensure(timed, || format!("request {id} has no deadline"))?;
            ensure(request.completion(self.token_limit).is_none(), || {
                format!("ST-2: request {id} is complete and has not ended")
            })?;
        }
        let tokens: u64 = self
            .waiting
            .iter()
            .map(|(_, request)| request.most_tokens())
            .sum();
        let found = self.waiting.tokens();
        ensure(tokens == found, || {
            format!("{tokens} tokens wait, the queue says {found}")
        })?;
        let count = self.waiting.len() + self.running.len();
        let indexed = (self.live.len(), self.deadlines.len());
        ensure(indexed == (count, count), || {
            format!("{count} requests are live, ids and deadlines say {indexed:?}")
        })?;
        let (limit, running) = (self.running_limit, self.running.len());
        ensure(running <= limit, || {
            format!("{running} sequences run, at most {limit} may")
        })?;
        let (limit, waiting) = (self.config.max_waiting + limit, self.waiting.len());
        ensure(waiting <= limit, || {
            format!("BQ-1: {waiting} requests wait, at most {limit} may")
        })
    }

    fn check_running(&self) -> Result<(), Violation> {
        for (place, running) in &self.running {
            let id = running.sequence;
            let known = running.request.known();
            let pending = known.checked_sub(running.computed);
            // A token is missing only while a step is to sample it.
            let expected = usize::from(running.is_idle());
            ensure(pending.is_some_and(|rows| rows >= expected), || {
                format!("sequence {id}: {} of {known} rows are computed", running.computed)
            })?;
            let landed = running.landed;
            let through = landed <= running.computed && (landed == running.computed || !running.is_idle());
            ensure(through, || {
                format!("sequence {id}: {landed} of {} rows are through", running.computed)
            })?;
            let covered = running.table.ids().len();
            ensure(covered >= self.blocks.needed(running.computed), || {
                format!(
                    "sequence {id}: {covered} blocks do not cover {} rows",
                    running.computed
                )
            })?;
            let steps = self.in_flight.iter().filter(|flight| {
                let mut chunks = flight.chunks.iter();
                chunks.any(|chunk| chunk.sequence == id && chunk.place == *place)
            });
            let steps: Vec<_> = steps.map(|flight| flight.step).collect();
            ensure(running.in_flight == steps, || {
                format!(
                    "sequence {id} is in steps {steps:?}, it says {:?}",
                    running.in_flight
                )
            })?;
        }
        Ok(())
    }

    fn check_steps(&self) -> Result<(), Violation> {
        let (limit, count) = (self.config.steps_in_flight, self.in_flight.len());
        ensure(count <= limit, || {
            format!("{count} steps are in flight, at most {limit} may")
        })?;
        let first = self.next_step - count as u64;
        for (expected, flight) in (first..).zip(&self.in_flight) {
            let found = flight.step;
            ensure(found.0 == expected, || {
                format!("step {found} is in flight in the place of step {expected}")
            })?;
        }
        let running: BTreeSet<SequenceId> = self.running.values().map(|running| running.sequence).collect();
        let reopened = self.closed.iter().find(|closed| running.contains(closed));
        ensure(reopened.is_none(), || {
            format!("sequence {reopened:?} is closed and runs")
        })?;
        let idle = self.failed.is_none() || (running.is_empty() && count == 0);
        ensure(idle, || "a failed scheduler is not idle".to_owned())
    }
}
