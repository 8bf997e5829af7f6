//! What DET-1 costs: the kernels of fixed sizes against the fastest of other sizes for the very same call.
//!
//! The device's own sizes fix how a sum is cut, whatever the rows beside it. Here every call may have the sizes that suit
//! it. What a trial computes is compared with what the own kernels do: it may differ by rounding alone.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::time::{Duration, Instant};

use super::BenchError;
use super::clock::finish;
use super::measure::{Bench, Work};
use super::probe::Recorded;
use crate::figures::{Fastest, Line};
use crate::gpu::{Concerns, GpuBuffer, Kernels, Trial};
use crate::ops::{Backend, DeviceBuffer, OpError, ReadRange};

/// Bytes of a result that are compared at most.
const COMPARED_BYTES: u64 = 64 << 10;
/// How far values may be apart, relative to the largest, and how many may be further: what is close to a threshold may
/// fall to its other side.
const TOLERANCE: f32 = 0.02;
const MOST_APART: f64 = 0.05;
/// Longest wait for what is read back.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Sizes to try, compiled when they are first used.
#[derive(Debug, Default)]
pub(super) struct Trials {
    trials: Vec<(Trial, Compiled)>,
}

#[derive(Debug, Default)]
enum Compiled {
    #[default]
    NotYet,
    Kernels(Kernels),
    /// The driver does not take them.
    Refused,
}

/// Whether an op has sizes of this kind.
fn concerns(op: &str, concerns: Concerns) -> bool {
    match concerns {
        Concerns::Matrices | Concerns::Tiles => {
            ["linear", "gate_up", "values", "experts", "route"].contains(&op)
        }
        Concerns::Queries => op == "queries",
        Concerns::Attention => op == "attention",
        Concerns::Norms => op == "rms_norm" || op == "latent_write",
        Concerns::Elements => ["embed", "combine", "rotate_qkv"].contains(&op),
        Concerns::Route => op == "route",
        Concerns::Sample => op == "sample",
    }
}

impl Bench<'_> {
    /// Finds the fastest kernels of each line's op, if that was asked.
    pub(super) fn det_cost(
        &mut self,
        work: &Work<'_>,
        listed: &[Recorded<GpuBuffer>],
        lines: &mut [(usize, Line)],
    ) -> Result<(), BenchError> {
        let Some(mut trials) = self.trials.take() else {
            return Ok(());
        };
        if trials.trials.is_empty() {
            let all = self.device.inner().trials().into_iter();
            trials.trials = all.map(|trial| (trial, Compiled::NotYet)).collect();
        }
        let outcome = self.search(work, listed, lines, &mut trials);
        self.trials = Some(trials);
        outcome
    }

    fn search(
        &mut self,
        work: &Work<'_>,
        listed: &[Recorded<GpuBuffer>],
        lines: &mut [(usize, Line)],
        trials: &mut Trials,
    ) -> Result<(), BenchError> {
        let mut results: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        // Of each line, the best trial and its seconds.
        let mut best: BTreeMap<usize, (usize, f64)> = BTreeMap::new();
        // Lines some of whose trials there was no time for.
        let mut untried: BTreeSet<usize> = BTreeSet::new();
        for number in 0..trials.trials.len() {
            let of = trials.trials[number].0.concerns();
            let of_trial: Vec<usize> = (lines.iter())
                .map(|(index, _)| *index)
                .filter(|&index| concerns(listed[index].op, of))
                // One row has a tile of its own, whatever taller ones there are.
                .filter(|&index| of != Concerns::Tiles || listed[index].rows > 1)
                .collect();
            if of_trial.is_empty() {
                continue;
            }
            if self.budget.left_s() <= 0.0 {
                untried.extend(of_trial);
                continue;
            }
            for &index in &of_trial {
                if let btree_map::Entry::Vacant(entry) = results.entry(index)
                    && let Ok(result) = self.device_result(work, &listed[index], index)
                {
                    entry.insert(result);
                }
            }
            let Some(own) = self.put_in(&mut trials.trials[number]) else {
                continue;
            };
            for index in of_trial {
                let Some(expected) = results.get(&index) else {
                    continue;
                };
                let found = self.device_result(work, &listed[index], index);
                if !found.is_ok_and(|found| are_alike(&found, expected)) {
                    continue;
                }
                if let Ok(seconds) = self.time_op(work, index) {
                    let least = best.get(&index).map_or(f64::INFINITY, |best| best.1);
                    if seconds < least {
                        best.insert(index, (number, seconds));
                    }
                }
            }
            trials.trials[number].1 = Compiled::Kernels(self.device.inner().swap(own));
        }
        if !untried.is_empty() {
            let (count, reason) = (untried.len(), self.spent());
            self.miss(format!("what DET-1 costs {count} ops of {}", work.name()), reason)?;
        }
        let decided = lines.iter_mut().filter(|(index, _)| !untried.contains(index));
        self.decide(work, decided, &best, trials);
        Ok(())
    }

    /// Measures the best of each line again beside the own kernels: the least of many was a lucky one.
    fn decide<'l>(
        &mut self,
        work: &Work<'_>,
        lines: impl Iterator<Item = &'l mut (usize, Line)>,
        best: &BTreeMap<usize, (usize, f64)>,
        trials: &mut Trials,
    ) {
        for (index, line) in lines {
            if let Ok(seconds) = self.time_op(work, *index) {
                line.seconds = line.seconds.min(seconds);
            }
            let mut fastest = Fastest {
                seconds: line.seconds,
                sizes: None,
            };
            if let Some(&(number, seconds)) = best.get(index)
                && seconds < line.seconds
                && let Some(own) = self.put_in(&mut trials.trials[number])
            {
                let again = self.time_op(work, *index);
                trials.trials[number].1 = Compiled::Kernels(self.device.inner().swap(own));
                if let Ok(seconds) = again
                    && seconds < line.seconds
                {
                    fastest = Fastest {
                        seconds,
                        sizes: Some(trials.trials[number].0.name()),
                    };
                }
            }
            line.fastest = Some(fastest);
        }
    }

    /// Has the device use a trial's kernels, and gives its own; none where the driver does not take them.
    fn put_in(&mut self, (trial, compiled): &mut (Trial, Compiled)) -> Option<Kernels> {
        let kernels = match std::mem::replace(compiled, Compiled::Refused) {
            Compiled::Kernels(kernels) => Some(kernels),
            Compiled::NotYet => self.device.inner().kernels(trial).ok(),
            Compiled::Refused => None,
        };
        kernels.map(|kernels| self.device.inner().swap(kernels))
    }

    /// What an op makes of what is in its operands, its output zeroed before.
    fn device_result(
        &mut self,
        work: &Work<'_>,
        op: &Recorded<GpuBuffer>,
        index: usize,
    ) -> Result<Vec<f32>, OpError> {
        let bytes = op.output.bytes().min(COMPARED_BYTES);
        self.device
            .write(&op.output, 0, &vec![0; usize::try_from(bytes).unwrap_or(0)])?;
        (work.restore)(&mut self.device)?;
        self.device.only(index, |device| (work.record)(device, 0))?;
        finish(&mut self.device)?;
        let range = ReadRange {
            buffer: op.output.clone(),
            offset: 0,
            bytes,
        };
        let read = self.device.read(&[range], Instant::now() + TIMEOUT)?.concat();
        Ok(bytemuck::pod_collect_to_vec(&read))
    }
}

/// Whether two results differ by rounding alone.
fn are_alike(found: &[f32], expected: &[f32]) -> bool {
    let largest = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let near = found
        .iter()
        .zip(expected)
        .filter(|(found, expected)| (*found - *expected).abs() <= TOLERANCE * largest);
    let least = (1.0 - MOST_APART) * expected.len() as f64;
    found.len() == expected.len() && near.count() as f64 >= least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_told_from_other_results() {
        let expected: Vec<f32> = (0..100).map(|index| (index as f32 * 0.7).sin()).collect();
        let rounded: Vec<f32> = expected.iter().map(|value| value * 1.001).collect();
        assert!(are_alike(&rounded, &expected));
        let mut other = expected.clone();
        other[3] += 1.0;
        assert!(are_alike(&other, &expected), "one may fall to the other side");
        assert!(!are_alike(&vec![0.0; 100], &expected));
        assert!(!are_alike(&vec![f32::NAN; 100], &expected));
        assert!(!are_alike(&expected[1..], &expected));
    }
}
