//! Results, as a table for people and as JSON for programs.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result};
use serde::Serialize;

use super::arrivals::{Rate, Spacing};
use super::stats::{Results, Summary};
use crate::table;

/// Where JSON goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Stdout,
    File(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("it must be a file, or - for the standard output".to_owned()),
            "-" => Ok(Self::Stdout),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// A measurement: what was asked for, and what came of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) model: String,
    pub(super) rate: Rate,
    pub(super) arrivals: Option<Spacing>,
    pub(super) concurrency: usize,
    pub(super) load: Shape,
    pub(super) seed: u64,
    pub(super) interrupted: bool,
    #[serde(flatten)]
    pub(super) results: Results,
}

/// Where the load came from.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Shape {
    Synthetic {
        prompt_tokens: u32,
        output_tokens: u32,
        spread: f64,
        shared_prefix: u32,
        prefix_groups: u32,
    },
    File(PathBuf),
}

impl Report {
    /// Shows it where it was asked for.
    pub(super) fn show(&self, target: Option<&Target>) -> Result<()> {
        match target {
            Some(Target::Stdout) => {
                println!("{}", serde_json::to_string(self)?);
                return Ok(());
            }
            Some(Target::File(path)) => {
                let text = serde_json::to_string(self)? + "\n";
                std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
            }
            None => {}
        }
        for line in self.lines() {
            println!("{line}");
        }
        Ok(())
    }

    fn lines(&self) -> Vec<String> {
        let Results {
            seconds, requests, ..
        } = &self.results;
        let mut lines = vec![format!(
            "{}: {} requests in {seconds:.1} s, {} ok, {} failed{}",
            self.model,
            requests.sent,
            requests.ok,
            requests.failed,
            match requests.unfinished {
                0 => String::new(),
                unfinished => format!(", {unfinished} unfinished"),
            }
        )];
        let number = |name: &str, value: String| [name.to_owned(), value];
        let mut numbers = vec![
            number("requests/s", format!("{:.2}", self.results.requests_per_second)),
            number("tokens/s", format!("{:.1}", self.results.tokens_per_second)),
            number(
                "tokens/s with prompts",
                format!("{:.1}", self.results.total_tokens_per_second),
            ),
            number("prompt tokens", self.results.prompt_tokens.to_string()),
            number("cached of them", self.results.cached_tokens.to_string()),
            number("generated tokens", self.results.completion_tokens.to_string()),
        ];
        if let Some(goodput) = &self.results.goodput {
            numbers.push(number(
                "goodput, requests/s",
                format!(
                    "{:.2} ({:.0} %)",
                    goodput.requests_per_second,
                    goodput.share * 100.0
                ),
            ));
        }
        lines.extend(table::lines(&numbers));
        let head = ["MILLISECONDS", "MEAN", "P50", "P90", "P99", "MAX"].map(str::to_owned);
        let rows = [
            ("time to first token", &self.results.ttft_ms),
            ("time between tokens", &self.results.tbt_ms),
            ("time per output token", &self.results.tpot_ms),
            ("whole answer", &self.results.e2e_ms),
            ("wait before sending", &self.results.send_delay_ms),
        ];
        let times: Vec<_> = std::iter::once(head)
            .chain(rows.map(|(name, summary)| row(name, summary)))
            .collect();
        lines.extend(table::lines(&times));
        for (error, count) in &self.results.errors {
            lines.push(format!("  {count} failed: {error}"));
        }
        if self.results.dropped_samples > 0 {
            lines.push(format!(
                "  {} samples were too many to keep: they are in no percentile",
                self.results.dropped_samples
            ));
        }
        lines
    }
}

fn row(name: &str, summary: &Summary) -> [String; 6] {
    let ms = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
    let Summary {
        mean,
        p50,
        p90,
        p99,
        max,
        ..
    } = *summary;
    [name.to_owned(), ms(mean), ms(p50), ms(p90), ms(p99), ms(max)]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::stats::{Recorder, Sample};
    use super::*;

    #[test]
    fn everything_is_in_the_table_and_in_the_json() {
        let limits = "ttft:1s".parse().expect("valid");
        let mut recorder = Recorder::new(Some(limits));
        recorder.sent();
        recorder.sent();
        recorder.take(Ok(Sample {
            delay: Duration::ZERO,
            first_token: Duration::from_millis(12),
            end: Duration::from_millis(50),
            gaps: vec![Duration::from_millis(30)],
            prompt_tokens: 9,
            cached_tokens: 0,
            completion_tokens: 2,
        }));
        recorder.take(Err("429: busy".to_owned()));
        let report = Report {
            model: "m".to_owned(),
            rate: Rate::PerSecond(2.0),
            arrivals: Some(Spacing::Poisson),
            concurrency: 8,
            load: Shape::File("requests.jsonl".into()),
            seed: 1,
            interrupted: false,
            results: recorder.results(Duration::from_secs(1)),
        };
        let lines = report.lines();
        assert_eq!(lines[0], "m: 2 requests in 1.0 s, 1 ok, 1 failed");
        let has = |text: &str| {
            lines
                .iter()
                .any(|line| line.split_whitespace().eq(text.split_whitespace()))
        };
        for line in [
            "goodput, requests/s 1.00 (50 %)",
            "time to first token 12.0 12.0 12.0 12.0 12.0",
            "time between tokens 30.0 30.0 30.0 30.0 30.0",
            "1 failed: 429: busy",
        ] {
            assert!(has(line), "{line:?} is not in {lines:#?}");
        }
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["ttft_ms"]["p99"], 12.0);
        assert_eq!(json["goodput"]["limits_ms"]["ttft"], 1000.0);
        assert_eq!(json["requests"]["failed"], 1);
        assert_eq!(json["load"]["file"], "requests.jsonl");
    }
}
