//! When requests arrive. No clock here: moments are counted from the start of the measurement.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::random::Random;

/// The stream of random numbers that gaps are drawn from.
const STREAM: u64 = 1;
/// Rates that are taken, in requests a second.
const RATES: std::ops::RangeInclusive<f64> = 0.001..=1_000_000.0;

/// How many requests arrive in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rate {
    /// As many as may be in flight: the next one when one ends.
    Unbounded,
    /// So many, whatever becomes of those before.
    PerSecond(f64),
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "inf" {
            return Ok(Self::Unbounded);
        }
        match text.parse::<f64>() {
            Ok(rate) if RATES.contains(&rate) => Ok(Self::PerSecond(rate)),
            Ok(_) | Err(_) => Err(format!(
                "{text:?} is no rate: write requests per second from 0.001 to 1000000, or inf"
            )),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unbounded => f.write_str("inf"),
            Self::PerSecond(rate) => rate.fmt(f),
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unbounded => serializer.serialize_str("inf"),
            Self::PerSecond(rate) => serializer.serialize_f64(*rate),
        }
    }
}

/// How arrivals are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Spacing {
    /// Independent of each other: gaps are exponentially distributed.
    Poisson,
    /// Equal gaps.
    Fixed,
}

/// The moments at which requests arrive; endless.
#[derive(Debug)]
pub(super) struct Arrivals {
    rate: f64,
    spacing: Spacing,
    random: Random,
    /// Seconds, or for equal gaps how many came.
    at: f64,
}

impl Arrivals {
    /// None for an unbounded rate: it has no moments.
    pub(super) fn new(rate: Rate, spacing: Spacing, seed: u64) -> Option<Self> {
        match rate {
            Rate::Unbounded => None,
            Rate::PerSecond(rate) => Some(Self {
                rate,
                spacing,
                random: Random::new(seed, STREAM, 0),
                at: 0.0,
            }),
        }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let seconds = match self.spacing {
            // Counted, so that rounding does not add up.
            Spacing::Fixed => {
                let seconds = self.at / self.rate;
                self.at += 1.0;
                seconds
            }
            Spacing::Poisson => {
                self.at += exponential(self.random.unit()) / self.rate;
                self.at
            }
        };
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// An exponentially distributed number of mean 1 from a uniform one, by inversion.
fn exponential(unit: f64) -> f64 {
    -(-unit).ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(rate: f64, spacing: Spacing, seed: u64, count: usize) -> Vec<f64> {
        let arrivals = Arrivals::new(Rate::PerSecond(rate), spacing, seed).expect("a rate");
        arrivals.take(count).map(|at| at.as_secs_f64()).collect()
    }

    #[test]
    fn equal_gaps_do_not_drift() {
        assert_eq!(arrivals(4.0, Spacing::Fixed, 0, 4), [0.0, 0.25, 0.5, 0.75]);
        let far = arrivals(3.0, Spacing::Fixed, 0, 300_001);
        assert!((far[300_000] - 100_000.0).abs() < 1e-6);
    }

    #[test]
    fn exponentials_are_the_inverse_of_their_distribution() {
        // 1 - exp(-x) at 0, ln 2 and 3.
        for (unit, expected) in [
            (0.0, 0.0),
            (0.5, std::f64::consts::LN_2),
            (0.950_212_931_632_136, 3.0),
        ] {
            assert!((exponential(unit) - expected).abs() < 1e-9, "{unit}");
        }
    }

    #[test]
    fn a_poisson_process_has_its_rate_its_variance_and_its_seed() {
        let at = arrivals(50.0, Spacing::Poisson, 3, 20_000);
        assert!(at.is_sorted());
        let gaps: Vec<f64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Of 20000 gaps the mean is within 3 %, four standard deviations; the deviation of a gap is its mean.
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        assert!((variance.sqrt() * 50.0 - 1.0).abs() < 0.05, "{variance}");
        assert_eq!(at, arrivals(50.0, Spacing::Poisson, 3, 20_000));
        assert_ne!(at[0], arrivals(50.0, Spacing::Poisson, 4, 1)[0]);
    }

    #[test]
    fn rates_are_read() {
        assert_eq!("inf".parse(), Ok(Rate::Unbounded));
        assert_eq!("2.5".parse(), Ok(Rate::PerSecond(2.5)));
        for bad in ["", "0", "-1", "NaN", "infinity", "1e9", "x"] {
            let error = bad.parse::<Rate>().expect_err("refused");
            assert!(error.contains("inf") && error.contains(bad), "{error}");
        }
        assert!(Arrivals::new(Rate::Unbounded, Spacing::Fixed, 0).is_none());
    }
}
