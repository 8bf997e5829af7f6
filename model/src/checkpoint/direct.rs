//! Reads past the page cache: for bytes that are used once, the system need not find pages of its own and fill them.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::view::TensorView;

/// What places, lengths and memory of such reads are multiples of; storage asks for this or less.
const ALIGN: usize = 4096;

/// A weight file that is open for such reads, where the system and the file's file system know them.
#[derive(Debug)]
pub(super) struct DirectFile(Option<File>);

impl DirectFile {
    pub(super) fn open(path: &Path) -> Self {
        let file = open(path);
        if let Err(error) = &file {
            tracing::debug!(%error, file = %path.display(), "read through the page cache");
        }
        Self(file.ok())
    }

    /// Reads some bytes. Says whether they are all there.
    pub(super) fn read(&self, range: Range<usize>, buffer: &mut DirectBuffer) -> bool {
        let Some(file) = &self.0 else { return false };
        let start = range.start / ALIGN * ALIGN;
        let length = range.end.next_multiple_of(ALIGN) - start;
        let (base, memory) = buffer.aligned(length);
        let mut done = 0;
        while done < range.end - start {
            match file.read_at(&mut memory[done..], (start + done) as u64) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!(%error, "a read past the page cache failed");
                    break;
                }
            }
        }
        let is_whole = done >= range.end - start;
        let first = base + range.start - start;
        buffer.bytes = first..first + if is_whole { range.len() } else { 0 };
        is_whole
    }
}

#[cfg(target_os = "linux")]
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
}

#[cfg(not(target_os = "linux"))]
fn open(_: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Memory for such reads, used for one after the other.
#[derive(Debug, Default)]
pub struct DirectBuffer {
    memory: Vec<u8>,
    /// What was read last.
    bytes: Range<usize>,
}

impl DirectBuffer {
    /// A view of what was read last, which is what the given one shows; none if its length is another.
    pub fn view<'b>(&'b self, mapped: TensorView<'b>) -> Option<TensorView<'b>> {
        let bytes = &self.memory[self.bytes.clone()];
        (bytes.len() == mapped.bytes.len()).then_some(TensorView { bytes, ..mapped })
    }

    /// So many bytes of it that start where they must, and where that is.
    fn aligned(&mut self, length: usize) -> (usize, &mut [u8]) {
        self.bytes = 0..0;
        if self.memory.len() < length + ALIGN {
            self.memory = vec![0; length + ALIGN];
        }
        let base = self.memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        (base, &mut self.memory[base..base + length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the folder of this crate's build, which is on storage.
    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let exe = std::env::current_exe().expect("this test");
        let file = tempfile::NamedTempFile::new_in(exe.parent().expect("a folder")).expect("a file");
        std::fs::write(file.path(), bytes).expect("room");
        file
    }

    #[test]
    fn what_is_read_past_the_cache_is_what_the_file_holds() {
        let bytes: Vec<u8> = (0..5 * ALIGN + 1234).map(|at| (at * 31 % 251) as u8).collect();
        let file = file(&bytes);
        let direct = DirectFile::open(file.path());
        if direct.0.is_none() {
            assert!(
                open(file.path()).is_err(),
                "this file system does not know such reads"
            );
            return;
        }
        let mut buffer = DirectBuffer::default();
        let end = bytes.len();
        for range in [
            0..end,
            0..1,
            1..2,
            ALIGN - 1..ALIGN + 1,
            ALIGN..2 * ALIGN,
            end - 1..end,
            100..end,
            ALIGN..ALIGN,
        ] {
            assert!(direct.read(range.clone(), &mut buffer), "{range:?}");
            assert_eq!(
                buffer.memory[buffer.bytes.clone()],
                bytes[range.clone()],
                "{range:?}"
            );
        }
        assert!(!direct.read(end - 1..end + 1, &mut buffer), "beyond the end");
        assert!(buffer.bytes.is_empty());
    }
}
