//! raft-rs's log records, handed to `tracing`.
//!
//! raft-rs tells every vote and every refused message at "info"; here those are "debug", because a change of
//! leader is already logged once by the driver.

use std::fmt::{self, Write};

use slog::{Drain, KV, Key, Level, Logger, Never, OwnedKVList, Record, Serializer};

/// The name under which raft-rs's records are filtered.
const TARGET: &str = "raft";

/// A logger for raft-rs that writes to `tracing`.
pub(crate) fn tracing_logger() -> Logger {
    Logger::root(TracingDrain.ignore_res(), slog::o!())
}

struct TracingDrain;

impl Drain for TracingDrain {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, context: &OwnedKVList) -> Result<(), Never> {
        // Formatting a message that holds entries is dear, so it is done only for a level somebody listens to.
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: TARGET, "{}", Line(record, context)),
            Level::Warning => tracing::warn!(target: TARGET, "{}", Line(record, context)),
            Level::Info => tracing::debug!(target: TARGET, "{}", Line(record, context)),
            Level::Debug | Level::Trace => tracing::trace!(target: TARGET, "{}", Line(record, context)),
        }
        Ok(())
    }
}

/// One record as text: the message, then its keys and values.
struct Line<'a>(&'a Record<'a>, &'a OwnedKVList);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.msg())?;
        let mut pairs = Pairs(String::new());
        self.0
            .kv()
            .serialize(self.0, &mut pairs)
            .map_err(|_| fmt::Error)?;
        self.1.serialize(self.0, &mut pairs).map_err(|_| fmt::Error)?;
        f.write_str(&pairs.0)
    }
}

struct Pairs(String);

impl Serializer for Pairs {
    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}")?;
        Ok(())
    }
}
