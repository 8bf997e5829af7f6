//! The data directory: `raft.redb`, and a marker that says that there once was one.
//!
//! Without the marker a lost or emptied log would look like a first start, and the coordinator could vote a
//! second time in a term it had voted in already.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use redb::backends::FileBackend;

use super::timed::TimedFile;
use super::{LogStore, StoreError};
use crate::raft::identity::Identity;

/// The log's file in the data directory.
pub const LOG_FILE: &str = "raft.redb";
/// Says that the log was used.
const MARKER_FILE: &str = "raft.used";
/// The log while it is made: a loss of power leaves half a file under this name only.
const NEW_LOG_FILE: &str = "raft.redb.new";

/// Opens the log in `directory`, making both if this is the first start.
pub(super) fn open(directory: &Path, identity: &Identity) -> Result<LogStore, StoreError> {
    let failed = |path: &Path, action| {
        let path = path.to_owned();
        move |source: io::Error| StoreError::Directory { path, action, source }
    };
    fs::create_dir_all(directory).map_err(failed(directory, "make a directory"))?;
    let marker = directory.join(MARKER_FILE);
    let used = marker.try_exists().map_err(failed(&marker, "look for a file"))?;
    let log = directory.join(LOG_FILE);
    let is_there = log.try_exists().map_err(failed(&log, "look for a file"))?;
    if !used && !is_there {
        let new = directory.join(NEW_LOG_FILE);
        drop(open_file(&new, true, identity, false)?);
        fs::rename(&new, &log).map_err(failed(&log, "give a file its name"))?;
    }
    let store = open_file(&log, false, identity, used)?;
    if !used {
        let text = format!("{}\n{}\n", identity.tag(), identity.id());
        write_durably(&marker, text.as_bytes()).map_err(failed(&marker, "write a file"))?;
        // The names of both files are durable only with their directory.
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(failed(directory, "sync the directory"))?;
    }
    Ok(store)
}

/// Opens the log in a file, whatever there was in it before if it is made `anew`.
fn open_file(path: &Path, anew: bool, identity: &Identity, must_exist: bool) -> Result<LogStore, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(anew)
        .open(path)
        .map_err(|source| StoreError::Directory {
            path: path.to_owned(),
            action: "open a file",
            source,
        })?;
    let place = path.display().to_string();
    let backend = FileBackend::new(file).map_err(|e| StoreError::opening(&place, e))?;
    LogStore::open_backend(TimedFile(backend), &place, identity, must_exist)
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
