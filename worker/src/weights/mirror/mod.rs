//! A checkpoint's folder on a worker that was given none: filled from coordinators and workers that have the files, with
//! what the worker's placement asks for and nothing more.
//!
//! The files have their full lengths from the start, and holes where nothing was fetched; heads and what the
//! fingerprint is made of come first, so that the folder opens like any checkpoint. A ledger beside them says which
//! parts are there: each is noted only once it is on disk, so a worker that was stopped goes on where it was.

mod ledger;
mod source;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tokio::runtime::Handle;
use tramontane_model::checkpoint::{FileHead, Fingerprint, MANIFEST_FILE};
use tramontane_proto::CheckpointListing;
use tramontane_proto::net::{Identity, NetError};

use ledger::{Ledger, Part};
use source::Sources;

pub use ledger::LEDGER_FILE;

/// Why a folder cannot be filled.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// An address cannot be used.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Nobody gave what was asked for.
    #[error("{what} cannot be had: {problems}")]
    Sources {
        /// What was asked for.
        what: String,
        /// What each of those asked said last.
        problems: String,
    },
    /// The folder holds something else.
    #[error("{dir}: {problem}")]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A file cannot be written.
    #[error("{path}: cannot be written: {source}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Whoever asked does not want it any more.
    #[error("loading was cancelled")]
    Cancelled,
}

/// A folder that is filled as it is needed.
#[derive(Debug)]
pub struct Mirror {
    dir: PathBuf,
    listing: CheckpointListing,
    sources: Sources,
    runtime: Handle,
    ledger: Mutex<Ledger>,
}

impl Mirror {
    /// Finds out what the model's files are, and makes a folder that opens as its checkpoint. Resumes what an earlier
    /// start began.
    pub async fn open(dir: &Path, addresses: &[String], identity: &Identity) -> Result<Self, MirrorError> {
        let sources = Sources::new(addresses, identity)?;
        let listing = sources.describe().await?;
        let ledger = Ledger::open(dir, listing.fingerprint)?;
        let mirror = Self {
            dir: dir.to_owned(),
            listing,
            sources,
            runtime: Handle::current(),
            ledger: Mutex::new(ledger),
        };
        for file in &mirror.listing.files {
            mirror.make(file)?;
            mirror.fetch(&file.name, 0, file.head_bytes, &|_| true).await?;
        }
        for part in &mirror.listing.sampled {
            // The listing was checked: a part is of one of its files.
            if let Some(file) = mirror.listing.files.get(part.file as usize) {
                mirror
                    .fetch(&file.name, part.offset, part.bytes.into(), &|_| true)
                    .await?;
            }
        }
        Ok(mirror)
    }

    /// What the folder's checkpoint must have as fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(self.listing.fingerprint)
    }

    /// Fetches a part of a file unless it is there; call it where blocking is allowed. `progress` hears of bytes that came
    /// and says whether to go on.
    pub fn need(
        &self,
        name: &str,
        offset: u64,
        bytes: u64,
        progress: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<(), MirrorError> {
        self.runtime.block_on(self.fetch(name, offset, bytes, progress))
    }

    async fn fetch(
        &self,
        name: &str,
        offset: u64,
        bytes: u64,
        progress: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<(), MirrorError> {
        let part = Part {
            name: name.to_owned(),
            offset,
            bytes,
        };
        if bytes == 0 || self.ledger().has(&part) {
            return Ok(());
        }
        let path = self.dir.join(name);
        let failed = |source| MirrorError::Write {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new().write(true).open(&path).map_err(failed)?;
        let mut write = |at: u64, bytes: &[u8]| {
            file.write_all_at(bytes, at).map_err(failed)?;
            match progress(bytes.len() as u64) {
                true => Ok(()),
                false => Err(MirrorError::Cancelled),
            }
        };
        self.sources
            .read(&self.listing.fingerprint, &part, &mut write)
            .await?;
        file.sync_data().map_err(failed)?;
        metrics::counter!("tramontane_fetched_bytes_total").increment(bytes);
        self.ledger().note(part)
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        // Whoever panicked left a ledger that names only what is there.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a file of its full length, if it is not there.
    fn make(&self, file: &FileHead) -> Result<(), MirrorError> {
        let path = self.dir.join(&file.name);
        let failed = |source| MirrorError::Write {
            path: path.clone(),
            source,
        };
        let made = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        made.set_len(file.bytes).map_err(failed)
    }
}

/// Whether a folder is a checkpoint that somebody put there, and not one that is filled here.
pub fn is_whole(dir: &Path) -> bool {
    let there = |name: &str| dir.join(name).exists();
    let any = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    any && !there(LEDGER_FILE) && (there("params.json") || there("config.json") || there(MANIFEST_FILE))
}
