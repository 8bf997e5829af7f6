//! Parts of a checkpoint's files, for whoever gives them out to those that have none.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::fingerprint::SAMPLE_BYTES;
use super::{Checkpoint, MANIFEST_FILE, fingerprint};
use crate::tekken;

/// Longest of them, in bytes.
const MAX_OTHER_BYTES: u64 = 256 << 20;

/// A file and its front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHead {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// How many bytes at the front say what follows: length and header of a file of weights, all of any other.
    pub head_bytes: u64,
}

/// Bytes of a file, which is given by its place in a list of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePart {
    /// Which file.
    pub file: u32,
    /// First byte.
    pub offset: u64,
    /// How many.
    pub bytes: u32,
}

impl Checkpoint {
    /// Names of the files beside the weights that belong to the checkpoint where they are there.
    pub(super) fn other_files(&self) -> Vec<String> {
        let vocabulary = tekken::file_in(self.dir());
        let vocabulary = vocabulary.file_name().and_then(|name| name.to_str());
        let layout = self.layout();
        [layout.params_file(), layout.index_file(), MANIFEST_FILE]
            .into_iter()
            .chain(vocabulary)
            .map(str::to_owned)
            .collect()
    }

    /// Every file, and what its fingerprint is made of beside heads: with those alone a folder opens as this checkpoint.
    pub fn heads(&self) -> io::Result<(Vec<FileHead>, Vec<FilePart>)> {
        let weights = self.weight_files().map(|(name, bytes)| FileHead {
            name: name.to_owned(),
            bytes: bytes.len() as u64,
            head_bytes: header_end(bytes),
        });
        let mut files: Vec<FileHead> = weights.collect();
        let sampled = self.views().filter(|view| fingerprint::is_sampled(view.name()));
        let part = |view: super::TensorView<'_>| {
            let file = files.iter().position(|file| file.name == view.file())?;
            Some(FilePart {
                file: u32::try_from(file).ok()?,
                offset: view.offset(),
                bytes: u32::try_from(view.bytes().len().min(SAMPLE_BYTES)).ok()?,
            })
        };
        let sampled = sampled.filter_map(part).collect();
        for name in self.other_files() {
            let bytes = match std::fs::metadata(self.dir().join(&name)) {
                Ok(found) => found.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            files.push(FileHead {
                name,
                bytes,
                head_bytes: bytes,
            });
        }
        Ok((files, sampled))
    }

    /// Bytes of one of its files.
    pub fn file_bytes(&self, name: &str, offset: u64, bytes: u64) -> io::Result<Cow<'_, [u8]>> {
        let outside = || {
            let problem = format!("{name} has no {bytes} bytes at {offset}");
            io::Error::new(io::ErrorKind::UnexpectedEof, problem)
        };
        if let Some((_, map)) = self.weight_files().find(|(file, _)| *file == name) {
            let start = usize::try_from(offset).ok();
            let end = offset
                .checked_add(bytes)
                .and_then(|end| usize::try_from(end).ok());
            let range = start.zip(end).and_then(|(start, end)| map.get(start..end));
            return range.map(Cow::Borrowed).ok_or_else(outside);
        }
        if !self.other_files().iter().any(|other| other == name) || bytes > MAX_OTHER_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("the checkpoint has no file {name}"),
            ));
        }
        let mut read = vec![0; usize::try_from(bytes).map_err(|_| outside())?];
        let file = File::open(self.dir().join(name))?;
        file.read_exact_at(&mut read, offset)?;
        Ok(Cow::Owned(read))
    }
}

/// Where the header of a safetensors file ends. The file was checked when it was opened.
fn header_end(file: &[u8]) -> u64 {
    let length = file.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    length.saturating_add(8).min(file.len() as u64)
}
