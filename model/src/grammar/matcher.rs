//! An answer on its way through a grammar.

use llguidance::CancellationHandle;

use super::GrammarError;

/// Gives up what a matcher does, and everything that it would do from then on.
#[derive(Clone, Debug)]
pub struct Cancel(CancellationHandle);

impl Cancel {
    /// Gives up.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

/// The state of a grammar after some tokens.
pub struct Matcher {
    inner: llguidance::Matcher,
    consumed: Vec<u32>,
    vocab_size: usize,
}

/// The mask that allows one token of so many.
pub fn only(token: u32, vocab_size: usize) -> Vec<u32> {
    let mut words = vec![0; vocab_size.div_ceil(32)];
    if let Some(word) = words.get_mut(token as usize / 32) {
        *word = 1 << (token % 32);
    }
    words
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher")
            .field("consumed", &self.consumed.len())
            .finish_non_exhaustive()
    }
}

impl Matcher {
    pub(super) fn new(inner: llguidance::Matcher, vocab_size: usize) -> Self {
        Self {
            inner,
            consumed: Vec::new(),
            vocab_size,
        }
    }

    /// What gives up its work.
    pub fn cancel(&self) -> Cancel {
        Cancel(self.inner.cancellation_handle().unwrap_or_default())
    }

    /// The tokens that it has taken.
    pub fn consumed(&self) -> &[u32] {
        &self.consumed
    }

    /// Takes the next token. After the grammar's end anything is taken, and only the end token is allowed.
    pub fn consume(&mut self, token: u32) -> Result<(), GrammarError> {
        let ended = self.inner.is_stopped();
        self.consumed.push(token);
        if ended {
            return self.check();
        }
        let taken = self.inner.consume_token(token);
        taken.map_err(|error| self.error(error.to_string()))
    }

    /// Which tokens may come next: token `i` if bit `i % 32` of word `i / 32` is set.
    pub fn mask(&mut self) -> Result<Vec<u32>, GrammarError> {
        let mask = self.inner.compute_mask_or_eos();
        let mask = mask.map_err(|error| self.error(error.to_string()))?;
        let mut words = Vec::from(mask);
        words.resize(self.vocab_size.div_ceil(32), 0);
        if words.iter().all(|&word| word == 0) {
            return Err(GrammarError::Stuck("no token is allowed".to_owned()));
        }
        self.check()?;
        Ok(words)
    }

    /// Whether what was taken is whole, so that the answer may end.
    pub fn is_complete(&mut self) -> Result<bool, GrammarError> {
        if self.inner.is_stopped() {
            return self.check().map(|()| true);
        }
        let complete = self.inner.is_accepting();
        complete.map_err(|error| self.error(error.to_string()))
    }

    /// An error if it stopped for another reason than its end.
    fn check(&self) -> Result<(), GrammarError> {
        match self.inner.stop_reason() {
            reason if reason.is_ok() => Ok(()),
            reason => Err(self.error(reason.to_string())),
        }
    }

    fn error(&self, problem: String) -> GrammarError {
        if self.inner.is_cancelled() {
            return GrammarError::Cancelled;
        }
        let first = match problem.lines().next() {
            Some("NoExtensionBias") => "no token is allowed",
            Some(first) => first,
            None => "",
        };
        GrammarError::Stuck(first.chars().take(200).collect())
    }
}
