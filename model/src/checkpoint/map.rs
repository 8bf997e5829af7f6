//! Read-only memory maps of weight files.
//!
//! The only unsafe code of this crate. Nothing is written through a map, and no length is taken from the file's
//! content here.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

use memmap2::{Advice, Mmap, UncheckedAdvice};

/// What systems map at least.
const PAGE_BYTES: usize = 4096;

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

    /// Brings the pages of some bytes in, from storage if need be, and waits for them. Only a matter of time: a system that
    /// cannot is slower.
    pub(super) fn bring_in(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Err(error) = self
            .0
            .advise_range(Advice::PopulateRead, range.start, range.len())
        {
            tracing::debug!(%error, "the system does not read a weight file ahead");
        }
        // The first touch of a page may cost as much as to read it: in a virtual machine, say.
        let touched = self.0[range]
            .iter()
            .step_by(PAGE_BYTES)
            .fold(0, |all, byte| all ^ byte);
        std::hint::black_box(touched);
    }

    /// Says that some bytes are not needed soon, so that their pages do not count as this process's memory.
    pub(super) fn let_go(&self, range: Range<usize>) {
        if let Err(error) = let_go(&self.0, range) {
            tracing::debug!(%error, "the system keeps pages of a weight file");
        }
    }
}

#[allow(
    unsafe_code,
    reason = "the same advice is unsafe for memory that others write"
)]
fn let_go(map: &Mmap, range: Range<usize>) -> io::Result<()> {
    // SAFETY: the map is shared and read-only, so what is dropped is read from the file again when it is looked at.
    unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) }
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
