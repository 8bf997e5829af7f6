//! Which parts of the files are on disk.
//!
//! ```text
//! tramontane fetched 1 5f0c…            the model's fingerprint
//! consolidated.safetensors 0 31208      name, first byte, bytes
//! ```
//!
//! Lines are added, each synced before it counts. A last line that is torn is dropped.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tramontane_model::checkpoint::Fingerprint;

use super::MirrorError;

/// Name of the ledger in the folder.
pub const LEDGER_FILE: &str = "fetched.txt";
/// Longest ledger that is read, in bytes.
const MAX_LEDGER_BYTES: u64 = 256 << 20;

/// Bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Part {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let part = Self {
            name: words.next()?.to_owned(),
            offset: words.next()?.parse().ok()?,
            bytes: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(part)
    }
}

/// The parts that are there.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    file: File,
    parts: BTreeSet<Part>,
}

impl Ledger {
    /// Reads the folder's ledger, or begins one in a folder that is empty or not there.
    pub(super) fn open(dir: &Path, fingerprint: [u8; 32]) -> Result<Self, MirrorError> {
        let path = dir.join(LEDGER_FILE);
        let failed = |source| MirrorError::Write {
            path: path.clone(),
            source,
        };
        let wrong = |problem: String| MirrorError::Folder {
            dir: dir.to_owned(),
            problem,
        };
        let title = format!("tramontane fetched 1 {}", Fingerprint(fingerprint));
        std::fs::create_dir_all(dir).map_err(failed)?;
        if !path.exists() {
            let mut entries = std::fs::read_dir(dir).map_err(failed)?;
            if entries.next().is_some() {
                return Err(wrong(format!(
                    "has files and no {LEDGER_FILE}: files are fetched to a folder that is empty or not there"
                )));
            }
            let mut file = File::create_new(&path).map_err(failed)?;
            writeln!(file, "{title}")
                .and_then(|()| file.sync_all())
                .map_err(failed)?;
            let parts = BTreeSet::new();
            return Ok(Self { path, file, parts });
        }
        let length = std::fs::metadata(&path).map_err(failed)?.len();
        if length > MAX_LEDGER_BYTES {
            return Err(wrong(format!(
                "{LEDGER_FILE} has {length} bytes, at most {MAX_LEDGER_BYTES} are read"
            )));
        }
        let text = std::fs::read_to_string(&path).map_err(failed)?;
        // What follows the last line end was torn off.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let mut lines = whole.lines();
        if lines.next() != Some(title.as_str()) {
            return Err(wrong(format!(
                "{LEDGER_FILE} is of another model than the cluster's: empty the folder to fetch this one"
            )));
        }
        let mut parts = BTreeSet::new();
        for line in lines {
            let part = Part::parse(line);
            parts.insert(part.ok_or_else(|| {
                wrong(format!(
                    "{LEDGER_FILE} has the line {line:?}, which names no part"
                ))
            })?);
        }
        let file = OpenOptions::new().append(true).open(&path).map_err(failed)?;
        file.set_len(whole.len() as u64)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        Ok(Self { path, file, parts })
    }

    pub(super) fn has(&self, part: &Part) -> bool {
        self.parts.contains(part)
    }

    /// Notes a part that is on disk.
    pub(super) fn note(&mut self, part: Part) -> Result<(), MirrorError> {
        let written: io::Result<()> = writeln!(self.file, "{} {} {}", part.name, part.offset, part.bytes)
            .and_then(|()| self.file.sync_data());
        written.map_err(|source| MirrorError::Write {
            path: self.path.clone(),
            source,
        })?;
        self.parts.insert(part);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(offset: u64) -> Part {
        Part {
            name: "a.safetensors".to_owned(),
            offset,
            bytes: 7,
        }
    }

    #[test]
    fn what_was_noted_is_there_after_a_restart_and_a_torn_line_is_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut ledger = Ledger::open(dir.path(), [1; 32]).expect("begun");
        ledger.note(part(0)).expect("noted");
        ledger.note(part(8)).expect("noted");
        drop(ledger);
        let path = dir.path().join(LEDGER_FILE);
        let text = std::fs::read_to_string(&path).expect("text");
        std::fs::write(&path, &text[..text.len() - 1]).expect("torn");
        let mut ledger = Ledger::open(dir.path(), [1; 32]).expect("read");
        assert!(ledger.has(&part(0)) && !ledger.has(&part(8)));
        ledger.note(part(16)).expect("noted");
        drop(ledger);
        let ledger = Ledger::open(dir.path(), [1; 32]).expect("read");
        assert!(ledger.has(&part(0)) && ledger.has(&part(16)) && !ledger.has(&part(8)));
    }

    #[test]
    fn another_folder_and_another_model_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        Ledger::open(dir.path(), [1; 32]).expect("begun");
        let error = Ledger::open(dir.path(), [2; 32])
            .expect_err("refused")
            .to_string();
        assert!(error.contains("another model"), "{error}");
        let full = tempfile::tempdir().expect("a folder");
        std::fs::write(full.path().join("mine.txt"), "mine").expect("written");
        let error = Ledger::open(full.path(), [1; 32])
            .expect_err("refused")
            .to_string();
        assert!(error.contains("empty or not there"), "{error}");
        assert!(!full.path().join(LEDGER_FILE).exists());
    }
}
