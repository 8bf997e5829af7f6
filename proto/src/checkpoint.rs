//! Files of a checkpoint as they are told to a worker that has none, and parts of them.

use tramontane_model::checkpoint::{FileHead, FilePart};

use crate::fields::{at_most, exact, invalid, text};
use crate::{WireError, v1 as pb};

/// Most files.
const MAX_FILES: usize = 8192;
/// Longest file name, in bytes.
const MAX_NAME_BYTES: usize = 255;
/// Most parts that a fingerprint is made of.
const MAX_SAMPLED: usize = 1 << 20;
/// Longest of them, in bytes.
const MAX_SAMPLE_BYTES: u32 = 1 << 20;
/// Longest file: 16 TiB.
const MAX_FILE_BYTES: u64 = 1 << 44;
/// Longest front of a file of weights, or whole other file, in bytes.
const MAX_HEAD_BYTES: u64 = 256 << 20;

/// What files a checkpoint has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointListing {
    /// What tells the model from others.
    pub fingerprint: [u8; 32],
    /// Every file.
    pub files: Vec<FileHead>,
    /// What the fingerprint is made of beside heads: which file, and where in it.
    pub sampled: Vec<FilePart>,
}

/// Bytes of a file that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeAsked {
    /// Of which model.
    pub fingerprint: [u8; 32],
    /// Of which file.
    pub name: String,
    /// First byte.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// A file name that leads nowhere else.
fn name(value: String) -> Result<String, WireError> {
    let value = text("name", value, MAX_NAME_BYTES)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if value.is_empty() || value.starts_with('.') || !value.chars().all(plain) {
        return Err(invalid("name", "it must be a plain file name"));
    }
    Ok(value)
}

impl TryFrom<pb::CheckpointFiles> for CheckpointListing {
    type Error = WireError;
    fn try_from(wire: pb::CheckpointFiles) -> Result<Self, WireError> {
        at_most("files", "files", wire.files.len(), MAX_FILES)?;
        at_most("sampled", "parts", wire.sampled.len(), MAX_SAMPLED)?;
        let file = |file: pb::CheckpointFile| {
            let pb::CheckpointFile {
                name: found,
                bytes,
                head_bytes,
            } = file;
            if bytes > MAX_FILE_BYTES || head_bytes > bytes.min(MAX_HEAD_BYTES) {
                let problem = format!(
                    "{head_bytes} of {bytes}: at most {MAX_FILE_BYTES}, of which at most {MAX_HEAD_BYTES} at the front"
                );
                return Err(invalid("files.head_bytes", problem));
            }
            Ok(FileHead {
                name: name(found)?,
                bytes,
                head_bytes,
            })
        };
        let files = wire.files.into_iter().map(file).collect::<Result<Vec<_>, _>>()?;
        let part = |part: pb::FilePart| {
            let pb::FilePart { file, offset, bytes } = part;
            let of = usize::try_from(file).ok().and_then(|file| files.get(file));
            let within = |of: &FileHead| {
                offset
                    .checked_add(bytes.into())
                    .is_some_and(|end| end <= of.bytes)
            };
            if bytes > MAX_SAMPLE_BYTES || !of.is_some_and(within) {
                return Err(invalid("sampled", "it must lie within one of the files"));
            }
            Ok(FilePart { file, offset, bytes })
        };
        Ok(Self {
            fingerprint: exact("fingerprint", &wire.fingerprint)?,
            sampled: wire.sampled.into_iter().map(part).collect::<Result<_, _>>()?,
            files,
        })
    }
}

impl From<CheckpointListing> for pb::CheckpointFiles {
    fn from(listing: CheckpointListing) -> Self {
        let file = |file: FileHead| pb::CheckpointFile {
            name: file.name,
            bytes: file.bytes,
            head_bytes: file.head_bytes,
        };
        let part = |part: FilePart| pb::FilePart {
            file: part.file,
            offset: part.offset,
            bytes: part.bytes,
        };
        Self {
            fingerprint: listing.fingerprint.to_vec().into(),
            files: listing.files.into_iter().map(file).collect(),
            sampled: listing.sampled.into_iter().map(part).collect(),
        }
    }
}

impl TryFrom<pb::FileRange> for RangeAsked {
    type Error = WireError;
    fn try_from(wire: pb::FileRange) -> Result<Self, WireError> {
        if wire.offset.checked_add(wire.bytes).is_none() {
            return Err(invalid("offset", "offset and bytes together overflow"));
        }
        Ok(Self {
            fingerprint: exact("fingerprint", &wire.fingerprint)?,
            name: name(wire.name)?,
            offset: wire.offset,
            bytes: wire.bytes,
        })
    }
}

impl From<RangeAsked> for pb::FileRange {
    fn from(range: RangeAsked) -> Self {
        Self {
            fingerprint: range.fingerprint.to_vec().into(),
            name: range.name,
            offset: range.offset,
            bytes: range.bytes,
        }
    }
}
