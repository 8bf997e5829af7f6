//! What a measurement found: exact numbers over every recorded sample. No I/O here.
//!
//! Samples are microseconds of four bytes each. Times between tokens are the many: at most [`MAX_SAMPLES`] of a kind are
//! kept, 256 MiB; what comes after that is counted as dropped and told, never thrown away silently.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::amounts::{parse_duration, percentile};

/// Most samples of one kind.
pub(super) const MAX_SAMPLES: usize = 64 << 20;
/// Most kinds of errors that are told apart, and the longest text of one, in characters.
const MAX_ERRORS: usize = 16;
const MAX_ERROR_LENGTH: usize = 200;

/// One answer that came whole. Times are counted from the moment at which the request was to arrive.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    /// How much later than that it was sent.
    pub(super) delay: Duration,
    pub(super) first_token: Duration,
    pub(super) end: Duration,
    /// From each token to the next.
    pub(super) gaps: Vec<Duration>,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) completion_tokens: u64,
}

impl Sample {
    /// Time per output token after the first: the mean of the gaps; nothing of a single token.
    fn per_token(&self) -> Option<Duration> {
        let count = u32::try_from(self.gaps.len()).ok().filter(|count| *count > 0)?;
        Some(self.gaps.iter().sum::<Duration>() / count)
    }
}

/// Limits that an answer must keep to count as good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Limits {
    #[serde(serialize_with = "milliseconds")]
    ttft: Option<Duration>,
    /// Of the longest gap.
    #[serde(serialize_with = "milliseconds")]
    tbt: Option<Duration>,
    /// Of the mean gap.
    #[serde(serialize_with = "milliseconds")]
    tpot: Option<Duration>,
    #[serde(serialize_with = "milliseconds")]
    e2e: Option<Duration>,
}

fn milliseconds<S: serde::Serializer>(limit: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    limit
        .map(|limit| limit.as_secs_f64() * 1000.0)
        .serialize(serializer)
}

impl FromStr for Limits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut limits = Self::default();
        for part in text.split(',') {
            let (name, limit) = part.split_once(':').ok_or_else(|| {
                format!("{part:?} is no limit: write name:time, as ttft:500ms,tbt:50ms,tpot:40ms,e2e:10s")
            })?;
            let field = match name {
                "ttft" => &mut limits.ttft,
                "tbt" => &mut limits.tbt,
                "tpot" => &mut limits.tpot,
                "e2e" => &mut limits.e2e,
                _ => return Err(format!("{name:?} has no limit: ttft, tbt, tpot and e2e have")),
            };
            if field.replace(parse_duration(limit)?).is_some() {
                return Err(format!("{name} is limited twice"));
            }
        }
        Ok(limits)
    }
}

impl Limits {
    /// Whether the answer keeps every limit that is set.
    pub(super) fn keeps(&self, sample: &Sample) -> bool {
        let within = |limit: Option<Duration>, found: Option<Duration>| match (limit, found) {
            (Some(limit), Some(found)) => found <= limit,
            (None, _) | (_, None) => true,
        };
        within(self.ttft, Some(sample.first_token))
            && within(self.tbt, sample.gaps.iter().max().copied())
            && within(self.tpot, sample.per_token())
            && within(self.e2e, Some(sample.end))
    }
}

/// Samples of one kind.
#[derive(Debug, Default)]
struct Samples {
    /// Microseconds.
    kept: Vec<u32>,
    dropped: u64,
}

impl Samples {
    fn add(&mut self, sample: Duration) {
        if self.kept.len() < MAX_SAMPLES {
            // 71 minutes at most: no stream lasts as long.
            self.kept
                .push(u32::try_from(sample.as_micros()).unwrap_or(u32::MAX));
        } else {
            self.dropped += 1;
        }
    }

    fn summary(&mut self) -> Summary {
        self.kept.sort_unstable();
        let at = |share| percentile(&self.kept, share).map(ms);
        let sum: u64 = self.kept.iter().copied().map(u64::from).sum();
        Summary {
            count: self.kept.len(),
            mean: (!self.kept.is_empty()).then(|| sum as f64 / self.kept.len() as f64 / 1000.0),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: self.kept.last().copied().map(ms),
        }
    }
}

fn ms(microseconds: u32) -> f64 {
    f64::from(microseconds) / 1000.0
}

/// A kind of time in milliseconds, percentiles by the nearest rank; nothing of no samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) count: usize,
    pub(super) mean: Option<f64>,
    pub(super) p50: Option<f64>,
    pub(super) p90: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) max: Option<f64>,
}

/// Takes in answers as they end.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    limits: Option<Limits>,
    sent: u64,
    ok: u64,
    good: u64,
    errors: BTreeMap<String, u64>,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
    delay: Samples,
    first_token: Samples,
    gaps: Samples,
    per_token: Samples,
    end: Samples,
}

/// The numbers of a measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Results {
    pub(super) seconds: f64,
    pub(super) requests: Requests,
    /// How often each error came.
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) requests_per_second: f64,
    /// Generated tokens.
    pub(super) tokens_per_second: f64,
    /// Prompt and generated tokens.
    pub(super) total_tokens_per_second: f64,
    pub(super) goodput: Option<Goodput>,
    pub(super) ttft_ms: Summary,
    pub(super) tbt_ms: Summary,
    pub(super) tpot_ms: Summary,
    pub(super) e2e_ms: Summary,
    /// From the moment at which a request was to arrive to its sending: the wait for a place among those in flight.
    pub(super) send_delay_ms: Summary,
    /// Samples beyond those that are kept: they are in no percentile.
    pub(super) dropped_samples: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Requests {
    pub(super) sent: u64,
    pub(super) ok: u64,
    pub(super) failed: u64,
    /// In flight when the measurement was interrupted.
    pub(super) unfinished: u64,
}

/// Answers that kept the limits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Goodput {
    pub(super) limits_ms: Limits,
    pub(super) requests: u64,
    /// Of all that ended, failed ones included.
    pub(super) share: f64,
    pub(super) requests_per_second: f64,
}

impl Recorder {
    pub(super) fn new(limits: Option<Limits>) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    pub(super) fn sent(&mut self) {
        self.sent += 1;
    }

    pub(super) fn sent_so_far(&self) -> u64 {
        self.sent
    }

    /// How many have ended, well or not.
    pub(super) fn ended(&self) -> u64 {
        self.ok + self.failed()
    }

    pub(super) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    pub(super) fn take(&mut self, outcome: Result<Sample, String>) {
        match outcome {
            Ok(sample) => self.take_sample(&sample),
            Err(error) => {
                let mut error: String = error.chars().take(MAX_ERROR_LENGTH).collect();
                if self.errors.len() >= MAX_ERRORS && !self.errors.contains_key(&error) {
                    error = "other errors".to_owned();
                }
                *self.errors.entry(error).or_default() += 1;
            }
        }
    }

    fn take_sample(&mut self, sample: &Sample) {
        self.ok += 1;
        self.good += u64::from(self.limits.is_some_and(|limits| limits.keeps(sample)));
        self.prompt_tokens += sample.prompt_tokens;
        self.cached_tokens += sample.cached_tokens;
        self.completion_tokens += sample.completion_tokens;
        self.delay.add(sample.delay);
        self.first_token.add(sample.first_token);
        self.end.add(sample.end);
        for &gap in &sample.gaps {
            self.gaps.add(gap);
        }
        if let Some(per_token) = sample.per_token() {
            self.per_token.add(per_token);
        }
    }

    /// The numbers, of a measurement that took so long.
    pub(super) fn results(mut self, took: Duration) -> Results {
        let seconds = took.as_secs_f64();
        let per_second = |count: u64| {
            if seconds > 0.0 {
                count as f64 / seconds
            } else {
                0.0
            }
        };
        let (failed, ended) = (self.failed(), self.ended());
        let goodput = self.limits.map(|limits_ms| Goodput {
            limits_ms,
            requests: self.good,
            share: if ended > 0 {
                self.good as f64 / ended as f64
            } else {
                0.0
            },
            requests_per_second: per_second(self.good),
        });
        let kinds = [
            &self.delay,
            &self.first_token,
            &self.gaps,
            &self.per_token,
            &self.end,
        ];
        Results {
            seconds,
            requests: Requests {
                sent: self.sent,
                ok: self.ok,
                failed,
                unfinished: self.sent.saturating_sub(ended),
            },
            dropped_samples: kinds.iter().map(|samples| samples.dropped).sum(),
            errors: self.errors,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.completion_tokens,
            requests_per_second: per_second(self.ok),
            tokens_per_second: per_second(self.completion_tokens),
            total_tokens_per_second: per_second(self.prompt_tokens + self.completion_tokens),
            goodput,
            ttft_ms: self.first_token.summary(),
            tbt_ms: self.gaps.summary(),
            tpot_ms: self.per_token.summary(),
            e2e_ms: self.end.summary(),
            send_delay_ms: self.delay.summary(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn sample(first: u64, gaps: &[u64]) -> Sample {
        Sample {
            delay: at(1),
            first_token: at(first),
            end: at(first + gaps.iter().sum::<u64>() + 5),
            gaps: gaps.iter().copied().map(at).collect(),
            prompt_tokens: 10,
            cached_tokens: 4,
            completion_tokens: gaps.len() as u64 + 1,
        }
    }

    #[test]
    fn the_numbers_are_those_of_every_sample() {
        let mut recorder = Recorder::new(None);
        for _ in 0..5 {
            recorder.sent();
        }
        recorder.take(Ok(sample(100, &[10, 20, 60])));
        recorder.take(Ok(sample(300, &[40])));
        recorder.take(Ok(sample(200, &[])));
        recorder.take(Err("no".to_owned()));
        let results = recorder.results(at(2000));
        let expected = Requests {
            sent: 5,
            ok: 3,
            failed: 1,
            unfinished: 1,
        };
        assert_eq!(results.requests, expected);
        assert_eq!(results.errors, BTreeMap::from([("no".to_owned(), 1)]));
        let tokens = (
            results.prompt_tokens,
            results.cached_tokens,
            results.completion_tokens,
        );
        assert_eq!(tokens, (30, 12, 7));
        let rates = [
            results.requests_per_second,
            results.tokens_per_second,
            results.total_tokens_per_second,
        ];
        assert_eq!(rates, [1.5, 3.5, 18.5]);
        let summary = |count, mean, p50, p90, max| Summary {
            count,
            mean: Some(mean),
            p50: Some(p50),
            p90: Some(p90),
            p99: Some(max),
            max: Some(max),
        };
        assert_eq!(results.ttft_ms, summary(3, 200.0, 200.0, 300.0, 300.0));
        assert_eq!(results.tbt_ms, summary(4, 32.5, 20.0, 60.0, 60.0));
        assert_eq!(results.tpot_ms, summary(2, 35.0, 30.0, 40.0, 40.0));
        assert_eq!(
            results.e2e_ms,
            summary(3, (195.0 + 345.0 + 205.0) / 3.0, 205.0, 345.0, 345.0)
        );
        assert_eq!((results.goodput, results.dropped_samples), (None, 0));
    }

    #[test]
    fn nothing_of_nothing() {
        let results = Recorder::new(Some(Limits::default())).results(Duration::ZERO);
        assert_eq!(
            (results.ttft_ms.count, results.ttft_ms.mean, results.tbt_ms.p99),
            (0, None, None)
        );
        assert!(results.tokens_per_second < f64::EPSILON);
        assert!(
            results
                .goodput
                .is_some_and(|goodput| goodput.share < f64::EPSILON)
        );
    }

    #[test]
    fn an_answer_is_good_that_keeps_every_limit() {
        let limits = |text: &str| text.parse::<Limits>().expect("valid");
        // First after 100 ms, gaps of 10, 20 and 60, mean 30, all of it 195.
        let answer = sample(100, &[10, 20, 60]);
        for (text, good) in [
            ("ttft:100ms", true),
            ("ttft:99ms", false),
            ("tbt:60ms", true),
            ("tbt:0.05s", false),
            ("tpot:30ms", true),
            ("tpot:29999us", false),
            ("e2e:195ms", true),
            ("e2e:194ms,ttft:1s", false),
            ("ttft:1s,tbt:1s,tpot:1s,e2e:1m", true),
        ] {
            assert_eq!(limits(text).keeps(&answer), good, "{text}");
        }
        assert!(
            limits("tbt:1us,tpot:1us").keeps(&sample(5, &[])),
            "a single token has no gap"
        );
        let mut recorder = Recorder::new(Some(limits("ttft:100ms")));
        recorder.take(Ok(answer));
        recorder.take(Ok(sample(101, &[])));
        recorder.take(Err("no".to_owned()));
        recorder.take(Ok(sample(1, &[])));
        let goodput = recorder.results(at(4000)).goodput.expect("limits are set");
        assert_eq!(
            (goodput.requests, goodput.share, goodput.requests_per_second),
            (2, 0.5, 0.5)
        );
    }

    #[test]
    fn limits_that_make_no_sense_are_refused() {
        for (text, says) in [
            ("", "no limit"),
            ("ttft", "no limit"),
            ("ttft:5", "5"),
            ("itl:5ms", "itl"),
            ("e2e:1s,e2e:2s", "twice"),
        ] {
            let error = text.parse::<Limits>().expect_err("refused");
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn errors_are_bounded() {
        let mut recorder = Recorder::new(None);
        for number in 0..100 {
            recorder.take(Err(format!("{number:>1000}")));
            recorder.take(Err(format!("error {number}")));
        }
        let results = recorder.results(at(1));
        assert_eq!(results.requests.failed, 200);
        assert_eq!(results.errors.len(), MAX_ERRORS + 1);
        assert!(
            results
                .errors
                .keys()
                .all(|error| error.chars().count() <= MAX_ERROR_LENGTH)
        );
    }
}
