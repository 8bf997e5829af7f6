//! What the process says while it runs: lines for people or JSON, on the standard error stream.

use std::io::IsTerminal;

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// The environment variable that chooses what is logged, as `info` or `tramontane_worker=debug,info`.
const VARIABLE: &str = "TRAMONTANE_LOG";
const DEFAULT: &str = "info";

/// How the process logs.
#[derive(Args, Clone, Debug)]
pub(crate) struct LogArgs {
    /// How log lines are written. What is logged follows the environment variable TRAMONTANE_LOG, as
    /// `debug` or `tramontane_worker=debug,info`.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// For machines: one object a line.
    Json,
}

/// Starts logging; once per process. `default` is what is logged where the environment says nothing.
fn start_with(format: LogFormat, default: &str) -> Result<()> {
    let directives = std::env::var(VARIABLE).unwrap_or_else(|_| default.to_owned());
    let filter = EnvFilter::try_new(&directives).with_context(|| {
        format!("{VARIABLE} is {directives:?}, it must be like info or tramontane_worker=debug,info")
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A line that cannot be written, as on a full disk, would be complained about where it could not be written.
        .log_internal_errors(false);
    let started = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    started.map_err(|error| anyhow!("logging cannot start: {error}"))
}

impl LogArgs {
    /// Starts logging; once per process.
    pub(crate) fn start(&self) -> Result<()> {
        start_with(self.log_format, DEFAULT)
    }
}
