//! Reading configuration files: bounded, and with every fault at once.
//!
//! What the keys are is the business of whoever the file is for.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Largest configuration or token file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Join tokens have this many bytes.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=256;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read the configuration: {problem}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The file is no TOML of the known keys.
    #[error("{}: {problem}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Which line and key, and what would be right.
        problem: String,
    },
    /// Values that cannot be.
    #[error("{}: {}", path.display(), faults)]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Every fault found.
        faults: Faults,
    },
}

/// The faults found so far.
#[derive(Debug, Default)]
pub struct Faults(Vec<String>);

impl Faults {
    /// Notes a fault, key first.
    pub fn add(&mut self, fault: impl ToString) {
        self.0.push(fault.to_string());
    }

    /// The value, or a noted fault.
    pub fn check<T, E: ToString>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(error.to_string())).ok()
    }

    /// Notes a fault unless the value of `key` is between `low` and `high`.
    pub fn within(&mut self, key: &str, value: u64, low: u64, high: u64) {
        if !(low..=high).contains(&value) {
            self.add(format_args!(
                "{key} is {value}, it must be between {low} and {high}"
            ));
        }
    }

    /// Whether there are none.
    pub fn none(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// Reads a TOML file of the keys of `Raw` and checks it with `validate`, which returns nothing only after noting a
/// fault. Relative paths in a file are relative to its folder, which `validate` is given.
pub fn read_config<Raw: DeserializeOwned, Config>(
    path: &Path,
    validate: impl FnOnce(Raw, &Path, &mut Faults) -> Option<Config>,
) -> Result<Config, ConfigError> {
    let text = read_bounded(path).map_err(|problem| ConfigError::Read {
        path: path.to_owned(),
        problem,
    })?;
    let raw: Raw = toml::from_str(&text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        problem: error.to_string().trim_end().to_owned(),
    })?;
    let mut faults = Faults::default();
    let config = validate(raw, path.parent().unwrap_or(Path::new(".")), &mut faults);
    match config {
        Some(config) if faults.none() => Ok(config),
        Some(_) | None => Err(ConfigError::Invalid {
            path: path.to_owned(),
            faults,
        }),
    }
}

/// Reads the token that lets workers join; white space around it does not count.
pub fn read_join_token(path: &Path) -> Result<Vec<u8>, String> {
    let named = |problem: String| format!("join_token_file {}: {problem}", path.display());
    let text = read_bounded(path).map_err(named)?;
    let token = text.trim();
    if !TOKEN_BYTES.contains(&token.len()) {
        let (low, high) = (TOKEN_BYTES.start(), TOKEN_BYTES.end());
        return Err(named(format!(
            "the token has {} bytes, it must have {low} to {high}",
            token.len()
        )));
    }
    Ok(token.as_bytes().to_vec())
}

fn read_bounded(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!(
            "it has {size} bytes, at most {MAX_FILE_BYTES} are allowed"
        ));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}
