//! The journal of one live request: everything needed to put it to another replica and go on at the next token.
//!
//! Pure data: no tokio, clock, I/O or randomness here; the simulator drives it as it is. It lives as long as the
//! client's connection does and is not replicated: a connection that is gone has nobody to go on for.
//!
//! **Invariant ST-1:** indexes of emitted tokens increase by exactly one, an emitted prefix never changes, tokens of
//! an older attempt are dropped.

use std::sync::Arc;

use tramontane_model::ids::{RequestId, TraceId};
use tramontane_model::sampling::SamplingParams;
#[cfg(feature = "deliberate-bugs")]
use tramontane_sim::bugs::{Bug, on};

/// What a client asked to have generated: never changes once accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its name in the whole cluster.
    pub id: RequestId,
    /// Ids of the prompt; the border between given and generated rows is its end (DET-1).
    pub prompt: Arc<[u32]>,
    /// How tokens are chosen. The seed is set: a request without one got one at admission.
    pub sampling: SamplingParams,
    /// Most tokens to emit; at least 1.
    pub max_tokens: u32,
    /// Tokens that end the sequence; they are emitted before it ends. Empty if the end token is to be ignored.
    pub stop_tokens: Vec<u32>,
    /// Lower is served first.
    pub priority: i32,
    /// Keeps tenants apart in the prefix cache.
    pub cache_salt: Vec<u8>,
    /// The trace that it is part of.
    pub trace: TraceId,
}

/// Why a finished sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The last token is one of the stop tokens.
    Stop,
    /// As many tokens as asked for, or as the context holds, were emitted.
    Length,
}

/// What became of a token that a head reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the next one of the stream.
    Emitted,
    /// It belongs to an older attempt and was dropped.
    Stale,
}

/// A token that no head may report: the attempt that did is not to be trusted further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// An attempt that was never made.
    #[error("request {request}: a token of attempt {found} came in, the latest attempt is {latest}")]
    Attempt {
        /// The request.
        request: RequestId,
        /// Attempt of the token.
        found: u32,
        /// The latest attempt.
        latest: u32,
    },
    /// A gap or a repetition.
    #[error("request {request}: token index {found} came in, the next one is {expected}")]
    Index {
        /// The request.
        request: RequestId,
        /// Index of the token.
        found: u32,
        /// Index of the next token.
        expected: u32,
    },
    /// Scores of the prompt that leave some out, go past its end or were never asked for; or a token before they were
    /// there.
    #[error(
        "request {request}: {found} came in, log-probabilities of the prompt are known to {scored} of {prompt} tokens"
    )]
    Scores {
        /// The request.
        request: RequestId,
        /// What came in.
        found: String,
        /// Tokens of the prompt that are scored, the first included.
        scored: usize,
        /// Tokens of the prompt.
        prompt: usize,
    },
    /// A token after the end.
    #[error("request {request}: token index {found} came in after the sequence had ended")]
    AfterEnd {
        /// The request.
        request: RequestId,
        /// Index of the token.
        found: u32,
    },
}

/// One live request with what it has emitted so far.
#[derive(Clone, Debug)]
pub struct Journal {
    request: Request,
    attempt: u32,
    /// Tokens at the front of the prompt whose log-probabilities nobody waits for, or no longer.
    scored: usize,
    emitted: Vec<u32>,
}

impl Journal {
    /// A request before its first attempt.
    pub fn new(request: Request) -> Self {
        let prompt = request.prompt.len();
        Self {
            // No token comes before the first.
            scored: request.sampling.prompt_logprobs.map_or(prompt, |_| 1.min(prompt)),
            request,
            attempt: 0,
            emitted: Vec::new(),
        }
    }

    /// What was asked for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The latest attempt, counted from 1; 0 before the first.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Every token emitted so far, over all attempts.
    pub fn emitted(&self) -> &[u32] {
        &self.emitted
    }

    /// Begins the next attempt and returns its number: from here on tokens of older ones are stale.
    pub fn begin_attempt(&mut self) -> u32 {
        #[cfg(feature = "deliberate-bugs")]
        if on(Bug::JournalOffByOne) {
            self.emitted.pop();
        }
        self.attempt = self.attempt.saturating_add(1);
        self.attempt
    }

    /// What the next attempt is asked for beside tokens: what an earlier one has told is not asked for again.
    pub fn sampling(&self) -> SamplingParams {
        let sampling = self.request.sampling.clone();
        let prompt_logprobs = sampling.prompt_logprobs.filter(|_| !self.is_scored());
        SamplingParams {
            prompt_logprobs,
            ..sampling
        }
    }

    /// Whether all is known of the prompt that was asked for.
    fn is_scored(&self) -> bool {
        self.scored >= self.request.prompt.len()
    }

    /// Takes in log-probabilities of `count` tokens of the prompt from position `first` on, which a head reported.
    /// Returns how many of the first are known already; all of them if they belong to an older attempt.
    pub fn record_scores(&mut self, attempt: u32, first: u32, count: usize) -> Result<usize, JournalError> {
        if self.is_stale(attempt)? {
            return Ok(count);
        }
        let (first, prompt) = (first as usize, self.request.prompt.len());
        let wanted = self.request.sampling.prompt_logprobs.is_some();
        let within = (1..=self.scored).contains(&first) && count <= prompt - first;
        if !wanted || !within {
            return Err(self.scores_error(format!("{count} of them from position {first} on")));
        }
        let known = (self.scored - first).min(count);
        self.scored += count - known;
        Ok(known)
    }

    fn scores_error(&self, found: String) -> JournalError {
        JournalError::Scores {
            request: self.request.id,
            found,
            scored: self.scored,
            prompt: self.request.prompt.len(),
        }
    }

    /// Whether an attempt is an older one.
    fn is_stale(&self, attempt: u32) -> Result<bool, JournalError> {
        if attempt > self.attempt {
            return Err(JournalError::Attempt {
                request: self.request.id,
                found: attempt,
                latest: self.attempt,
            });
        }
        Ok(attempt < self.attempt)
    }

    /// Takes in a token that a head reported.
    pub fn record(&mut self, attempt: u32, index: u32, token: u32) -> Result<Verdict, JournalError> {
        let request = self.request.id;
        #[cfg(feature = "deliberate-bugs")]
        let attempt = if on(Bug::LostAttemptFencing) {
            self.attempt
        } else {
            attempt
        };
        if self.is_stale(attempt)? {
            return Ok(Verdict::Stale);
        }
        if !self.is_scored() {
            return Err(self.scores_error(format!("token index {index}")));
        }
        if self.finish().is_some() {
            return Err(JournalError::AfterEnd {
                request,
                found: index,
            });
        }
        let expected = self.next_index();
        if index != expected {
            return Err(JournalError::Index {
                request,
                found: index,
                expected,
            });
        }
        self.emitted.push(token);
        Ok(Verdict::Emitted)
    }

    /// Index of the next token. Below `max_tokens` while the sequence has not ended.
    pub fn next_index(&self) -> u32 {
        // `record` refuses tokens once `max_tokens`, a u32, are there.
        u32::try_from(self.emitted.len()).unwrap_or(u32::MAX)
    }

    /// How the sequence ended, as far as its tokens alone tell: a stream that breaks between the last token and the
    /// head's word of the end needs no other attempt.
    pub fn finish(&self) -> Option<Finish> {
        let stopped = self
            .emitted
            .last()
            .is_some_and(|token| self.request.stop_tokens.contains(token));
        if stopped {
            Some(Finish::Stop)
        } else if self.next_index() >= self.request.max_tokens {
            Some(Finish::Length)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tramontane_model::ids::Origin;

    use super::*;

    const EOS: u32 = 2;

    fn request(max_tokens: u32) -> Request {
        Request {
            id: RequestId(7),
            prompt: [1, 3, 5].into(),
            sampling: SamplingParams::GREEDY,
            max_tokens,
            stop_tokens: vec![EOS],
            priority: 0,
            cache_salt: vec![],
            trace: Origin::NOBODY.trace,
        }
    }

    #[test]
    fn tokens_follow_one_another() {
        let mut journal = Journal::new(request(3));
        assert_eq!(journal.begin_attempt(), 1);
        assert_eq!(journal.record(1, 0, 10), Ok(Verdict::Emitted));
        let repeated = journal.record(1, 0, 10).unwrap_err();
        assert_eq!(
            repeated.to_string(),
            "request 00000000000000000000000000000007: token index 0 came in, the next one is 1"
        );
        assert!(matches!(
            journal.record(1, 2, 11),
            Err(JournalError::Index {
                found: 2,
                expected: 1,
                ..
            })
        ));
        assert_eq!(journal.record(1, 1, 11), Ok(Verdict::Emitted));
        assert_eq!(journal.finish(), None);
        assert_eq!(journal.record(1, 2, 12), Ok(Verdict::Emitted));
        assert_eq!(journal.finish(), Some(Finish::Length));
        assert!(matches!(
            journal.record(1, 3, 13),
            Err(JournalError::AfterEnd { found: 3, .. })
        ));
        assert_eq!(journal.emitted(), [10, 11, 12]);
    }

    #[test]
    fn an_older_attempt_is_dropped_and_a_later_one_is_refused() {
        let mut journal = Journal::new(request(9));
        journal.begin_attempt();
        assert_eq!(journal.record(1, 0, 10), Ok(Verdict::Emitted));
        assert_eq!(journal.begin_attempt(), 2);
        assert_eq!(journal.record(1, 1, 99), Ok(Verdict::Stale));
        assert_eq!(journal.record(2, 1, 11), Ok(Verdict::Emitted));
        assert!(matches!(
            journal.record(3, 2, 12),
            Err(JournalError::Attempt {
                found: 3,
                latest: 2,
                ..
            })
        ));
        assert_eq!(journal.emitted(), [10, 11]);
    }

    #[test]
    fn a_stop_token_ends_the_sequence_unless_there_is_none() {
        let mut journal = Journal::new(request(9));
        journal.begin_attempt();
        assert_eq!(journal.record(1, 0, EOS), Ok(Verdict::Emitted));
        assert_eq!(journal.finish(), Some(Finish::Stop));

        let mut ignoring = Journal::new(Request {
            stop_tokens: vec![],
            ..request(2)
        });
        ignoring.begin_attempt();
        assert_eq!(ignoring.record(1, 0, EOS), Ok(Verdict::Emitted));
        assert_eq!(ignoring.finish(), None);
        assert_eq!(ignoring.record(1, 1, EOS), Ok(Verdict::Emitted));
        assert_eq!(ignoring.finish(), Some(Finish::Length));
    }

    #[test]
    fn a_prompt_is_scored_in_order_and_whole_before_the_first_token() {
        let wanted = Request {
            sampling: SamplingParams {
                prompt_logprobs: Some(4),
                ..SamplingParams::GREEDY
            },
            prompt: [1, 3, 5, 7, 9].into(),
            ..request(9)
        };
        let mut journal = Journal::new(wanted);
        journal.begin_attempt();
        assert_eq!(journal.record_scores(1, 1, 2), Ok(0));
        for (first, count) in [(0, 1), (4, 1), (3, 3), (u32::MAX, 1), (1, usize::MAX)] {
            let error = journal.record_scores(1, first, count).unwrap_err();
            assert!(matches!(error, JournalError::Scores { .. }), "{error}");
        }
        let early = journal.record(1, 0, 10).unwrap_err();
        assert_eq!(
            early.to_string(),
            "request 00000000000000000000000000000007: token index 0 came in, log-probabilities of the prompt are known \
             to 3 of 5 tokens"
        );
        assert_eq!(journal.sampling().prompt_logprobs, Some(4));
        journal.begin_attempt();
        assert_eq!(
            journal.record_scores(1, 3, 2),
            Ok(2),
            "an older attempt brings nothing"
        );
        assert_eq!(journal.record_scores(2, 1, 3), Ok(2));
        assert_eq!(journal.record_scores(2, 4, 1), Ok(0));
        assert_eq!(journal.record(2, 0, 10), Ok(Verdict::Emitted));
        assert_eq!(journal.sampling().prompt_logprobs, None, "all is known");

        let mut unasked = Journal::new(request(9));
        unasked.begin_attempt();
        assert!(unasked.record_scores(1, 1, 1).is_err());
    }

    #[derive(Clone, Debug)]
    enum Input {
        NewAttempt,
        Token { attempt: u32, index: u32, token: u32 },
    }

    fn inputs() -> impl Strategy<Value = Vec<Input>> {
        let token = (0..5u32, 0..8u32, 2..6u32).prop_map(|(attempt, index, token)| Input::Token {
            attempt,
            index,
            token,
        });
        prop::collection::vec(prop_oneof![1 => Just(Input::NewAttempt), 6 => token], 0..200)
    }

    proptest! {
        /// Whatever heads report, in whatever order: what was emitted stays, and grows by one token of the latest
        /// attempt at the next index or not at all.
        #[test]
        fn an_emitted_prefix_never_changes(inputs in inputs()) {
            let mut journal = Journal::new(request(6));
            journal.begin_attempt();
            for input in inputs {
                let before = journal.emitted().to_vec();
                let ended = journal.finish().is_some();
                match input {
                    Input::NewAttempt => {
                        journal.begin_attempt();
                        prop_assert_eq!(journal.emitted(), &before[..]);
                    }
                    Input::Token { attempt, index, token } => {
                        let latest = journal.attempt();
                        let taken = journal.record(attempt, index, token) == Ok(Verdict::Emitted);
                        let due = attempt == latest && index as usize == before.len() && !ended;
                        prop_assert_eq!(taken, due);
                        let expected = if due { [&before[..], &[token]].concat() } else { before };
                        prop_assert_eq!(journal.emitted(), &expected[..]);
                    }
                }
                prop_assert!(journal.emitted().len() <= 6);
            }
        }
    }
}
