//! How many prompt rows a step may have while sequences decode: so many that it stays within the time that is meant.
//!
//! Pure: what a step took is told by the host, and without that no step is held back. Times decide how prompts are cut
//! and nothing else, so they never change a token (DET-1).
//!
//! What is meant is `target_ms`, or twice what a step takes without prompt rows where that is more. The cost of a prompt
//! row is what a step took beyond a step without any, over the prompt rows that were in flight with it; before it is known
//! they are few. A cost that does not grow in proportion settles as well: where steps take too long the rows shrink, where
//! there is time left they grow, by no more than a third from one step to the next.

/// A step with prompt rows may take so many times what one without takes.
const SLOWDOWN: f64 = 2.0;
/// Fewest prompt rows of a step, so that prompts always move.
const MIN_ROWS: usize = 4;
/// After so many steps a measured decode step is old: one without prompt rows is made to measure it again.
const STALE_AFTER: u32 = 64;
/// Weights of a new measurement: a cost that has grown is believed sooner than one that has shrunk.
const UP: f64 = 0.5;
const DOWN: f64 = 0.25;

/// What a step has to do, as far as its time depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StepLoad {
    /// Sequences that decode in it.
    pub(super) decodes: usize,
    /// Prompt rows, or rows computed again, of the step and of those that were in flight before it.
    pub(super) feed_rows: usize,
}

/// A decode step without prompt rows.
#[derive(Clone, Copy, Debug)]
struct DecodeStep {
    us: f64,
    decodes: usize,
    /// Steps that were told since it was measured.
    age: u32,
}

/// What steps take, as far as it is known.
#[derive(Debug)]
pub(super) struct Pace {
    target_us: f64,
    max_rows: usize,
    steps_in_flight: usize,
    /// Whether the host tells times at all.
    timed: bool,
    decode: Option<DecodeStep>,
    /// Microseconds for each prompt row in flight.
    row_us: Option<f64>,
}

impl Pace {
    pub(super) fn new(target_ms: u32, max_rows: usize, steps_in_flight: usize) -> Self {
        Self {
            target_us: f64::from(target_ms) * 1000.0,
            max_rows,
            steps_in_flight,
            timed: false,
            decode: None,
            row_us: None,
        }
    }

    /// A step of this load took so long from its start to its result.
    pub(super) fn took(&mut self, load: StepLoad, us: u64) {
        self.timed = true;
        let us = us as f64;
        let known = self.decode.as_mut().map(|step| {
            step.age = step.age.saturating_add(1);
            *step
        });
        let fresh = known.filter(|step| step.is_of(load.decodes));
        match (load.decodes, load.feed_rows) {
            // What rows cost by themselves says little: many at once are cheaper each.
            (0, _) => {}
            (decodes, 0) => {
                let us = fresh.map_or(us, |step| step.us + DOWN * (us - step.us));
                self.decode = Some(DecodeStep { us, decodes, age: 0 });
            }
            (_, rows) => {
                if let Some(step) = fresh {
                    let row_us = (us - step.us).max(0.0) / rows as f64;
                    self.row_us = Some(self.row_us.map_or(row_us, |known| {
                        known + if row_us > known { UP } else { DOWN } * (row_us - known)
                    }));
                }
            }
        }
    }

    /// Most prompt rows of the next step while so many sequences decode. None: what decode steps take is to be measured
    /// first.
    pub(super) fn rows(&self, decoding: usize) -> usize {
        if decoding == 0 || !self.timed {
            return self.max_rows;
        }
        // Decodes are shared out over the steps in flight.
        let decodes = decoding.div_ceil(self.steps_in_flight);
        let Some(step) = self.decode.filter(|step| step.is_of(decodes)) else {
            return 0;
        };
        let Some(row_us) = self.row_us else {
            return MIN_ROWS.min(self.max_rows);
        };
        let time_left = self.target_us.max(SLOWDOWN * step.us) - step.us;
        let rows = time_left / (row_us * self.steps_in_flight as f64);
        // A cost of nothing makes it endless, which is cut to the most there may be.
        (rows as usize).max(MIN_ROWS).min(self.max_rows)
    }
}

impl DecodeStep {
    /// Whether it tells of a step of so many sequences: measured not long ago, of no more than twice and no fewer than
    /// half as many.
    fn is_of(&self, decodes: usize) -> bool {
        self.age < STALE_AFTER && decodes <= 2 * self.decodes && self.decodes <= 2 * decodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(decodes: usize, feed_rows: usize) -> StepLoad {
        StepLoad { decodes, feed_rows }
    }

    #[test]
    fn nothing_is_held_back_without_times_or_without_sequences_that_decode() {
        let mut pace = Pace::new(40, 128, 1);
        assert_eq!((pace.rows(0), pace.rows(8)), (128, 128));
        pace.took(load(8, 0), 1_000_000);
        assert_eq!(pace.rows(0), 128);
    }

    #[test]
    fn rows_fill_the_time_that_is_left() {
        let mut pace = Pace::new(40, 128, 1);
        // 10 ms without prompt rows: 30 ms are left of the target. Unknown rows are few.
        pace.took(load(2, 0), 10_000);
        assert_eq!(pace.rows(2), MIN_ROWS);
        // 0.5 ms a row.
        pace.took(load(2, 4), 12_000);
        assert_eq!(pace.rows(2), 60);
        // 60 ms without prompt rows: it may double.
        let mut slow = Pace::new(40, 128, 1);
        slow.took(load(2, 0), 60_000);
        slow.took(load(2, 4), 72_000);
        assert_eq!(slow.rows(2), 20);
        // Two steps in flight share the time.
        let mut two = Pace::new(40, 128, 2);
        two.took(load(1, 0), 60_000);
        two.took(load(1, 8), 84_000);
        assert_eq!(two.rows(2), 10);
        // A fast device is not held back.
        let mut fast = Pace::new(40, 128, 1);
        fast.took(load(2, 0), 5_000);
        fast.took(load(2, 4), 5_100);
        assert_eq!(fast.rows(2), 128);
    }

    #[test]
    fn a_cost_that_is_not_in_proportion_settles_where_the_time_is_used() {
        // Any prompt row costs 20 ms, and 1 ms more each: 40 rows take the 60 ms that are left.
        let mut pace = Pace::new(40, 128, 1);
        pace.took(load(4, 0), 60_000);
        for _ in 0..40 {
            let rows = pace.rows(4);
            pace.took(load(4, rows), 60_000 + 20_000 + 1000 * rows as u64);
        }
        assert!((39..=40).contains(&pace.rows(4)), "{}", pace.rows(4));
    }

    #[test]
    fn decode_steps_are_measured_again_when_they_are_old_or_of_others() {
        let mut pace = Pace::new(40, 128, 1);
        pace.took(load(0, 128), 128_000);
        assert_eq!(pace.rows(4), 0, "never measured");
        pace.took(load(4, 0), 20_000);
        pace.took(load(4, 20), 40_000);
        assert_eq!(pace.rows(4), 20);
        assert_eq!(
            (pace.rows(8) > 0, pace.rows(9)),
            (true, 0),
            "more than twice as many"
        );
        assert_eq!((pace.rows(2) > 0, pace.rows(1)), (true, 0), "fewer than half");
        for _ in 2..STALE_AFTER {
            pace.took(load(4, 20), 40_000);
            assert_eq!(pace.rows(4), 20);
        }
        pace.took(load(4, 20), 40_000);
        assert_eq!(pace.rows(4), 0, "old");
        pace.took(load(4, 0), 50_000);
        assert_eq!(pace.rows(4), 50, "what was old counts no more");
    }
}
