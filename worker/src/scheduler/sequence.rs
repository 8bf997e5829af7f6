//! A request as the scheduler holds it: waiting with nothing but its tokens, or running with a place in the cache.
//!
//! No choice of who runs here: that is `compose`. Which of the two a request is, is the map it lies in.

use tramontane_model::ids::{RequestId, SequenceId, StepId};
use tramontane_model::sampling::SamplingParams;
use tramontane_model::step::{Opening, RowRole, SequenceChunk};
use tramontane_model::time::Tick;

use super::blocks::{BlockPool, BlockTable};
use super::event::EndReason;
use super::submission::Submission;

/// Order of submission: a lower one is older. Kept over preemption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Arrival(pub(super) u64);

/// A live request and every token known of it.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) request: RequestId,
    pub(super) attempt: u32,
    pub(super) deadline: Tick,
    sampling: SamplingParams,
    max_tokens: usize,
    /// Empty if stop tokens are to be ignored.
    stop_tokens: Vec<u32>,
    /// The prompt, then every emitted token.
    tokens: Vec<u32>,
    /// How many of `tokens` are the prompt.
    prompt: usize,
}

impl Request {
    pub(super) fn new(submission: Submission) -> Self {
        let Submission {
            request,
            attempt,
            prompt: mut tokens,
            emitted,
            sampling,
            max_tokens,
            stop_tokens,
            ignore_eos,
            deadline,
        } = submission;
        let prompt = tokens.len();
        tokens.extend(emitted);
        Self {
            request,
            attempt,
            deadline,
            sampling,
            max_tokens: max_tokens as usize,
            stop_tokens: if ignore_eos { Vec::new() } else { stop_tokens },
            tokens,
            prompt,
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
}

/// A request with a place in the cache.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) request: Request,
    /// Names this stay in the cache: a preempted request comes back under another id.
    pub(super) sequence: SequenceId,
    pub(super) table: BlockTable,
    /// Rows whose keys and values are in the cache, or will be once the step in flight is through.
    pub(super) computed: usize,
    /// The step that has rows of the sequence; never more than one.
    pub(super) in_flight: Option<StepId>,
}

impl Running {
    /// None of its rows are computed yet; the table covers every known token.
    pub(super) fn new(request: Request, sequence: SequenceId, table: BlockTable) -> Self {
        Self {
            request,
            sequence,
            table,
            computed: 0,
            in_flight: None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_none()
    }

    /// Whether rows other than the newest emitted token's are still to be computed.
    pub(super) fn is_feeding(&self) -> bool {
        self.computed < self.request.prompt.max(self.request.known() - 1)
    }

    /// The next rows, at most so many, which are then in flight. One role: a chunk ends where the prompt does.
    pub(super) fn next_chunk(&mut self, step: StepId, max_rows: usize, blocks: &BlockPool) -> SequenceChunk {
        let Request {
            tokens,
            prompt,
            sampling,
            ..
        } = &self.request;
        let start = self.computed;
        let (role, role_end) = if start < *prompt {
            (RowRole::Given, *prompt)
        } else {
            (RowRole::Generated, tokens.len())
        };
        let end = role_end.min(start + max_rows);
        self.computed = end;
        self.in_flight = Some(step);
        SequenceChunk {
            sequence: self.sequence,
            open: (start == 0).then(|| Opening::new(sampling, tokens, *prompt, start)),
            first_position: start as u32, // below the token limit, a u32
            tokens: tokens[start..end].to_vec(),
            role,
            sample: end == tokens.len(),
            block_table: self.table.ids()[..blocks.needed(end)].to_vec(),
        }
    }
}
