//! How a waiting request gets a place in the cache, and what it finds there.
//!
//! A sequence starts after the longest prefix that full blocks of the cache hold; its last known token is always
//! computed, because its logits are needed, and so is every token whose logits tell the next one's log-probability. A
//! request whose next block a running sequence is computing waits for it
//! rather than compute it again. It waits for nothing else: that sequence has a place in the cache and moves on, and
//! if it leaves, its claim goes with it.

use tramontane_model::ids::SequenceId;

use super::Scheduler;
use super::blocks::Offered;
use super::prefix::Found;
use super::sequence::{Place, Request, Running};

impl Scheduler {
    /// Gives the first waiting request a place in the cache, if it can start. What waits behind it stays behind it.
    pub(super) fn start_first(&mut self) -> Option<Place> {
        let first = self.waiting.first()?;
        let (known, cached) = (first.known(), self.startable(first)?);
        let mut table = self.blocks.share(&cached);
        if !self.blocks.cover(&mut table, known) {
            self.blocks.release(table);
            return None;
        }
        let Some((place, mut request)) = self.waiting.pop_first() else {
            self.blocks.release(table);
            return None;
        };
        let sequence = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        let start = cached.len() * self.config.kv.block_tokens as usize;
        if self.config.prefix_cache {
            self.prefix_lookup_tokens += known as u64;
            self.prefix_hit_tokens += start as u64;
        }
        request.starts_after(start);
        let running = Running::new(request, sequence, table, cached.len(), start);
        self.running.insert(place, running);
        Some(place)
    }

    /// The cached blocks that the request would start after, if it could start now.
    pub(super) fn startable(&self, request: &Request) -> Option<Vec<u32>> {
        // It takes a block of its own whatever is cached: what could not start in any case is not looked up.
        if self.blocks.free() <= self.running.len() {
            return None;
        }
        let cached = self.cached_prefix(request);
        let starts = self.fits(request.known(), &cached) && !self.is_being_computed(request, cached.len());
        starts.then_some(cached)
    }

    /// Whether a sequence of so many tokens can have blocks and leave one for each running sequence to grow into:
    /// without that, an admission would only be preempted.
    fn fits(&self, tokens: usize, cached: &[u32]) -> bool {
        self.blocks.cost(tokens, cached) + self.running.len() <= self.blocks.free()
    }

    /// The blocks of the cache that hold the beginning of a request, as far as its rows need not be computed.
    fn cached_prefix(&self, request: &Request) -> Vec<u32> {
        let block_tokens = self.config.kv.block_tokens as usize;
        let most = request.reusable() / block_tokens;
        let mut cached = Vec::new();
        while cached.len() < most
            && let Some(hash) = request.hash(cached.len())
        {
            let content = request.block(cached.len(), block_tokens, cached.last().copied());
            match self.blocks.index().find(hash, &content) {
                Found::Block(block) => cached.push(block),
                Found::Nothing | Found::Collision => break,
            }
        }
        cached
    }

    /// Whether a running sequence is computing the request's block `at`.
    fn is_being_computed(&self, request: &Request, at: usize) -> bool {
        let end = (at + 1) * self.config.kv.block_tokens as usize;
        let Some(hash) = request.hash(at).filter(|_| end <= request.reusable()) else {
            return false;
        };
        let mut running = self.running.values();
        running.any(|running| running.landed < end && running.request.hash(at) == Some(hash))
    }

    /// Takes the blocks that a sequence has filled, and that every stage has written, into the prefix cache. A block
    /// that is there already is held in the place of the sequence's own, which goes once no step in flight uses it.
    pub(super) fn keep_prefix(&mut self, place: Place) {
        let block_tokens = self.config.kv.block_tokens as usize;
        let Some(running) = self.running.get_mut(&place) else {
            return;
        };
        while running.cached < running.landed / block_tokens {
            let at = running.cached;
            let Some(hash) = running.request.hash(at) else {
                return;
            };
            let before = at.checked_sub(1).map(|before| running.table.ids()[before]);
            let content = running.request.block(at, block_tokens, before);
            match self.blocks.offer(&mut running.table, at, hash, &content) {
                Offered::Cached => {}
                Offered::Replaced(own) => {
                    let last = running.in_flight.back().copied();
                    let mut steps = self.in_flight.iter_mut();
                    match steps.find(|flight| Some(flight.step) == last) {
                        Some(flight) => flight.draining.push(own),
                        None => self.blocks.release(own),
                    }
                }
                Offered::Refused => return,
            }
            running.cached += 1;
        }
    }
}
