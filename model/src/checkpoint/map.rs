//! Weight files: mapped read-only, and open for reads past the page cache.
//!
//! The only unsafe code of this crate. Nothing is written through a map, and no length is taken from the file's
//! content here.

use std::fs::{File, Metadata};
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::direct::{DirectBuffer, DirectFile};

/// What systems map at least.
const PAGE_BYTES: usize = 4096;

/// A whole file, mapped read-only.
#[derive(Debug)]
pub(super) struct FileMap {
    map: Mmap,
    direct: DirectFile,
    /// Whether the system tells this process which pages of the file are in its cache.
    is_told: bool,
}

impl FileMap {
    /// Maps a regular file; anything else (a folder, a pipe that would never open) is refused.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is not a regular file",
            ));
        }
        let file = File::open(path)?;
        Ok(Self {
            map: map(&file)?,
            direct: DirectFile::open(path),
            is_told: is_own(&metadata),
        })
    }

    /// Tells the system whether reads far apart (true) or long runs of bytes (false) follow, so that it reads no more
    /// from storage than is used. A system that does not take the hint is only slower.
    pub(super) fn expect_scattered_reads(&self, scattered: bool) {
        let advice = if scattered { Advice::Random } else { Advice::Normal };
        if let Err(error) = self.map.advise(advice) {
            tracing::debug!(%error, "the system takes no hint on how a weight file is read");
        }
    }

    /// Brings the pages of some bytes in, from storage if need be, and waits for them. Only a matter of time: a system that
    /// cannot is slower.
    pub(super) fn bring_in(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Err(error) = self
            .map
            .advise_range(Advice::PopulateRead, range.start, range.len())
        {
            tracing::debug!(%error, "the system does not read a weight file ahead");
        }
        // The first touch of a page may cost as much as to read it: in a virtual machine, say.
        let touched = self.map[range]
            .iter()
            .step_by(PAGE_BYTES)
            .fold(0, |all, byte| all ^ byte);
        std::hint::black_box(touched);
    }

    /// Reads some bytes past the system's cache. Says whether they are there: not where the system does not know such reads,
    /// nor where it has the bytes in its cache already, which is quicker.
    pub(super) fn read_past_cache(&self, range: Range<usize>, buffer: &mut DirectBuffer) -> bool {
        let is_cached = self.is_told && is_resident(&self.map, range.clone());
        !is_cached && self.direct.read(range, buffer)
    }

    /// Says that some bytes are not needed soon, so that their pages do not count as this process's memory.
    pub(super) fn let_go(&self, range: Range<usize>) {
        if let Err(error) = let_go(&self.map, range) {
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

/// Whether the system tells this process what it has of a file in its cache: of others' files it says that it has all.
#[allow(
    unsafe_code,
    reason = "the standard library does not tell whose this process is"
)]
fn is_own(metadata: &Metadata) -> bool {
    // SAFETY: it only gives a number.
    let own = unsafe { libc::geteuid() };
    own == 0 || own == metadata.uid()
}

/// Whether all pages of some bytes are in the system's cache.
#[allow(unsafe_code, reason = "the question takes an address")]
fn is_resident(map: &Mmap, range: Range<usize>) -> bool {
    let start = range.start / PAGE_BYTES * PAGE_BYTES;
    let bytes = &map[start..range.end];
    let mut pages = vec![0; bytes.len().div_ceil(PAGE_BYTES)];
    // SAFETY: the bytes are mapped, the first is the first of a page (else the call says so and writes nothing), and there
    // is a place for each page.
    let told = unsafe { libc::mincore(bytes.as_ptr().cast_mut().cast(), bytes.len(), pages.as_mut_ptr()) };
    told == 0 && pages.iter().all(|page| page & 1 == 1)
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
        &self.map
    }
}
