//! Read-only memory maps of weight files.
//!
//! The only unsafe code of this crate. Nothing is written through a map, and no length is taken from the file's
//! content here.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::{Advice, Mmap};

/// A whole file, mapped read-only.
#[derive(Debug)]
pub(super) struct FileMap(Mmap);

impl FileMap {
    /// Maps a regular file; anything else (a folder, a pipe that would never open) is refused.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is not a regular file",
            ));
        }
        let file = File::open(path)?;
        map(&file).map(Self)
    }

    /// Tells the system whether reads far apart (true) or long runs of bytes (false) follow, so that it reads no more
    /// from storage than is used. A system that does not take the hint is only slower.
    pub(super) fn expect_scattered_reads(&self, scattered: bool) {
        let advice = if scattered { Advice::Random } else { Advice::Normal };
        if let Err(error) = self.0.advise(advice) {
            tracing::debug!(%error, "the system takes no hint on how a weight file is read");
        }
    }
}

#[allow(
    unsafe_code,
    reason = "mapping a file is unsafe since others could change it meanwhile"
)]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: weight files are not changed while they are served, which the operator's guide asks for. All access is
    // to plain bytes within the length that the map was made with, so a changed file can give wrong weights or, if it
    // is cut short, end the process with SIGBUS, and nothing worse.
    unsafe { Mmap::map(file) }
}

impl Deref for FileMap {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
