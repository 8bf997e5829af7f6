//! What happened last, for whoever reads of a failure.
//!
//! Off while seeds pass: a seed that fails is run once more with it on.

use std::collections::VecDeque;

/// Most lines that are kept.
const LINES: usize = 120;

#[derive(Debug, Default)]
pub(super) struct Trace {
    is_on: bool,
    lines: VecDeque<String>,
}

impl Trace {
    pub(super) fn new(is_on: bool) -> Self {
        Self {
            is_on,
            lines: VecDeque::new(),
        }
    }

    pub(super) fn add(&mut self, now: u64, line: impl FnOnce() -> String) {
        if !self.is_on {
            return;
        }
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines
            .push_back(format!("{:>7}.{:03} {}", now / 1000, now % 1000, line()));
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}
