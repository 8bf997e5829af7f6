//! A request as the scheduler holds it: waiting with nothing but its tokens, or running with a place in the cache.
//!
//! No choice of who runs here: that is `compose`. Which of the two a request is, is the map it lies in.

use std::collections::VecDeque;
use std::sync::Arc;

use tramontane_model::ids::{Origin, RequestId, SequenceId, StepId, TraceId};
use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_model::step::{Opening, RowRole, SequenceChunk, expanded_tokens};
use tramontane_model::time::Tick;

use super::blocks::{BlockPool, BlockTable};
use super::event::EndReason;
use super::prefix::{BlockHash, CacheKey, Content, Roles};
use super::submission::Submission;

/// Order of service: the lower priority number, then the earlier submission. Kept over preemption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) priority: i32,
    pub(super) arrival: u64,
}

/// How much of a request's prompt was found in the cache when it first ran.
#[derive(Clone, Copy, Debug)]
enum CachedPrompt {
    /// It has not run yet.
    Unknown,
    /// So many tokens; nobody has been told yet.
    Found(u32),
    Told,
}

/// A live request and every token known of it.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) request: RequestId,
    trace: TraceId,
    pub(super) attempt: u32,
    pub(super) deadline: Tick,
    pub(super) priority: i32,
    sampling: SamplingParams,
    max_tokens: usize,
    /// Empty if stop tokens are to be ignored.
    stop_tokens: Vec<u32>,
    salt: Arc<[u8]>,
    /// The prompt, then every emitted token.
    tokens: Vec<u32>,
    /// How many of `tokens` are the prompt, and how many of the prompt are in whole groups and so expanded.
    prompt: usize,
    expanded: usize,
    /// Tokens at the front of the prompt whose log-probabilities nobody waits for, or no longer.
    scored: usize,
    /// Most tokens that the sequence may come to.
    most_tokens: usize,
    /// One for each full block of `tokens`; empty without a prefix cache.
    hashes: Vec<BlockHash>,
    cached_prompt: CachedPrompt,
}

impl Request {
    /// `token_limit`: the most tokens of a sequence; `expanded_group`: as in [`StepBounds`](tramontane_model::step::StepBounds).
    pub(super) fn new(submission: Submission, token_limit: usize, expanded_group: u32) -> Self {
        let Submission {
            request,
            trace,
            attempt,
            priority,
            prompt: mut tokens,
            emitted,
            cache_salt,
            sampling,
            max_tokens,
            stop_tokens,
            ignore_eos,
            deadline,
        } = submission;
        let prompt = tokens.len();
        let max_tokens = max_tokens as usize;
        tokens.extend(emitted);
        Self {
            request,
            trace,
            attempt,
            deadline,
            priority,
            // No token comes before the first.
            scored: sampling.prompt_logprobs.map_or(prompt, |_| 1),
            sampling,
            max_tokens,
            stop_tokens: if ignore_eos { Vec::new() } else { stop_tokens },
            salt: cache_salt.into(),
            tokens,
            prompt,
            expanded: expanded_tokens(prompt, expanded_group),
            most_tokens: prompt.saturating_add(max_tokens).min(token_limit),
            hashes: Vec::new(),
            cached_prompt: CachedPrompt::Unknown,
        }
    }

    /// Whom it is for.
    fn origin(&self) -> Origin {
        Origin {
            request: self.request,
            trace: self.trace,
        }
    }

    /// Prompt and emitted tokens.
    pub(super) fn known(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens emitted, over all attempts.
    pub(super) fn emitted(&self) -> u32 {
        (self.tokens.len() - self.prompt) as u32 // at most the token limit, a u32
    }

    /// Prompt and the longest output it may come to.
    pub(super) fn most_tokens(&self) -> u64 {
        self.most_tokens as u64
    }

    /// Rows that may come from the cache: not the last known token's, and none whose logits are still to be told.
    pub(super) fn reusable(&self) -> usize {
        if self.scored < self.prompt {
            self.scored - 1
        } else {
            self.known() - 1
        }
    }

    /// Takes in log-probabilities of the prompt from position `first` on; returns those that are new, and where they begin.
    pub(super) fn score(
        &mut self,
        first: usize,
        mut tokens: Vec<SampledToken>,
    ) -> Option<(u32, Vec<SampledToken>)> {
        let begin = self.scored;
        let known = begin.checked_sub(first).filter(|&known| known < tokens.len())?;
        tokens.drain(..known);
        self.scored += tokens.len();
        // Within the prompt, below the token limit, a u32.
        Some((begin as u32, tokens))
    }

    /// Whether an earlier attempt was given up in the middle, here or elsewhere.
    pub(super) fn comes_back(&self) -> bool {
        self.attempt > 1 && self.emitted() > 0
    }

    /// Takes an emitted token in and gives its index.
    pub(super) fn push(&mut self, token: u32) -> u32 {
        self.tokens.push(token);
        self.emitted() - 1
    }

    /// Whether the sequence is complete as it stands, `token_limit` being the most tokens it may have.
    pub(super) fn completion(&self, token_limit: usize) -> Option<EndReason> {
        let last = self.tokens[self.prompt..].last()?;
        if self.stop_tokens.contains(last) {
            Some(EndReason::Stop)
        } else if self.tokens.len() - self.prompt >= self.max_tokens || self.tokens.len() >= token_limit {
            Some(EndReason::Length)
        } else {
            None
        }
    }

    /// What its full block `at` holds, after the block `before` of the cache.
    pub(super) fn block(&self, at: usize, block_tokens: usize, before: Option<u32>) -> Content<'_> {
        let start = at * block_tokens;
        Content {
            before,
            salt: &self.salt,
            tokens: &self.tokens[start..start + block_tokens],
            roles: Roles {
                expanded: self.expanded.saturating_sub(start).min(block_tokens),
                prompt: self.prompt.saturating_sub(start).min(block_tokens),
            },
        }
    }

    /// Hashes the blocks that have filled up since the last call.
    pub(super) fn hash_blocks(&mut self, key: &CacheKey, block_tokens: usize) {
        while (self.hashes.len() + 1) * block_tokens <= self.tokens.len() {
            let block = self.block(self.hashes.len(), block_tokens, None);
            let hash = block.hash(key, self.hashes.last().copied());
            self.hashes.push(hash);
        }
    }

    /// Hash of full block `at`; none if it is not full yet, or nothing is cached.
    pub(super) fn hash(&self, at: usize) -> Option<BlockHash> {
        self.hashes.get(at).copied()
    }

    /// The sequence starts with so many tokens from the cache; only the first start counts.
    pub(super) fn starts_after(&mut self, cached: usize) {
        match self.cached_prompt {
            CachedPrompt::Unknown => {
                // At most the token limit, a u32.
                self.cached_prompt = CachedPrompt::Found(cached.min(self.prompt) as u32);
            }
            CachedPrompt::Found(_) | CachedPrompt::Told => {}
        }
    }

    /// How many prompt tokens came from the cache, once: to be told with the first token.
    pub(super) fn tell_cached_prompt(&mut self) -> Option<u32> {
        match self.cached_prompt {
            CachedPrompt::Found(cached) => {
                self.cached_prompt = CachedPrompt::Told;
                Some(cached)
            }
            CachedPrompt::Unknown | CachedPrompt::Told => None,
        }
    }
}

/// A request with a place in the cache.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) request: Request,
    /// Names this stay in the cache: a preempted request comes back under another id.
    pub(super) sequence: SequenceId,
    pub(super) table: BlockTable,
    /// Where its own rows begin: what is before came from the cache.
    start: usize,
    /// Rows whose keys and values are in the cache, or will be once the steps in flight are through.
    pub(super) computed: usize,
    /// Rows whose keys and values every stage has written.
    pub(super) landed: usize,
    /// Blocks at the front of the table that are in the prefix cache.
    pub(super) cached: usize,
    /// The steps that have rows of the sequence, oldest first. More than one only while its tokens are all known.
    pub(super) in_flight: VecDeque<StepId>,
}

impl Running {
    /// The first `start` rows, those of `cached` blocks, are in the cache; the table covers every known token.
    pub(super) fn new(
        request: Request,
        sequence: SequenceId,
        table: BlockTable,
        cached: usize,
        start: usize,
    ) -> Self {
        Self {
            request,
            sequence,
            table,
            start,
            computed: start,
            landed: start,
            cached,
            in_flight: VecDeque::new(),
        }
    }

    /// Whether no step has rows of it.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether a step has had rows of it: not while its first group waits for one that has room.
    pub(super) fn is_open(&self) -> bool {
        self.computed > self.start
    }

    /// Whether there are known tokens that no step has computed: the next chunk needs no result of the one before.
    pub(super) fn is_ready(&self) -> bool {
        self.computed < self.request.known()
    }

    /// Whether rows other than the newest emitted token's are still to be computed.
    pub(super) fn is_feeding(&self) -> bool {
        self.computed < self.request.prompt.max(self.request.known() - 1)
    }

    /// Known tokens that no step has computed.
    pub(super) fn rows_left(&self) -> usize {
        self.request.known() - self.computed
    }

    /// Rows that the next chunk may have: expanded rows of its group only if all of them are among `rows`, or, where `whole`,
    /// just the rest of the group.
    pub(super) fn chunk_rows(&self, rows: usize, group: u32, whole: bool) -> usize {
        if self.computed >= self.request.expanded {
            return rows;
        }
        // Rows are expanded only with a group, and up to a multiple of it.
        let group = group.max(1) as usize;
        let first = group - self.computed % group;
        match rows.checked_sub(first) {
            Some(more) => first + more / group * group,
            None if whole => first,
            None => 0,
        }
    }

    /// The next rows, at most so many, which are then in flight. One role: a chunk ends where the prompt or its expanded
    /// part does.
    pub(super) fn next_chunk(&mut self, step: StepId, max_rows: usize, blocks: &BlockPool) -> SequenceChunk {
        let Request {
            tokens,
            prompt,
            expanded,
            sampling,
            scored,
            ..
        } = &self.request;
        let start = self.computed;
        let (role, role_end) = if start < *expanded {
            (RowRole::Expanded, *expanded)
        } else if start < *prompt {
            (RowRole::Given, *prompt)
        } else {
            (RowRole::Generated, tokens.len())
        };
        #[cfg(feature = "deliberate-bugs")]
        let role = if tramontane_sim::bugs::on(tramontane_sim::bugs::Bug::PrefillKernelsForEmittedRows)
            && role_end - start > 1
        {
            RowRole::Given
        } else {
            role
        };
        let end = role_end.min(start + max_rows);
        let scores = if scored < prompt {
            tokens[..*prompt].get(start + 1..(end + 1).min(*prompt))
        } else {
            None
        };
        self.computed = end;
        self.in_flight.push_back(step);
        SequenceChunk {
            sequence: self.sequence,
            open: (start == self.start)
                .then(|| Opening::new(self.request.origin(), sampling, tokens, *prompt, start)),
            first_position: start as u32, // below the token limit, a u32
            tokens: tokens[start..end].to_vec(),
            role,
            sample: end == tokens.len(),
            scored: scores.unwrap_or_default().to_vec(),
            block_table: self.table.ids()[..blocks.needed(end)].to_vec(),
        }
    }
}
