//! Time as pure code sees it: an argument, never a clock.
//!
//! No calendar and no conversion from the system's clock here: whoever owns a clock makes the ticks.

use std::fmt;

/// A moment on one process's own monotonic clock, in milliseconds from a start that only that process knows.
///
/// Never sent to another process: what travels is the time left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tick(pub u64);

impl Tick {
    /// The moment so many milliseconds later; the last one there is rather than an overflow.
    pub fn after_ms(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }

    /// Milliseconds since an earlier moment; 0 if it is not earlier.
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Tick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_end_overflows() {
        assert_eq!(Tick(5).after_ms(3), Tick(8));
        assert_eq!(Tick(5).after_ms(u64::MAX), Tick(u64::MAX));
        assert_eq!(Tick(5).ms_since(Tick(3)), 2);
        assert_eq!(Tick(3).ms_since(Tick(5)), 0);
    }
}
