//! Which files a checkpoint has: one of all weights, or those that its index names.
//!
//! Names in an index are plain file names: a name that leads out of the folder is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::error::CheckpointError;
use super::json::Members;
use crate::layout::Layout;

/// Longest index, in bytes; that of Mistral Large 3 has about 4 MB.
const MAX_INDEX_BYTES: u64 = 100_000_000;
/// Most files.
const MAX_FILES: usize = 4096;
/// Longest file name, in bytes.
const MAX_FILE_NAME_BYTES: usize = 255;

/// The files of a checkpoint.
#[derive(Debug)]
pub(super) struct Listing {
    /// Their names, sorted.
    pub(super) files: Vec<String>,
    /// Which file each tensor is in, where an index says so.
    pub(super) index: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: Members<String>,
}

/// Finds the files; an index wins over a single file beside it.
pub(super) fn list(dir: &Path, layout: Layout) -> Result<Listing, CheckpointError> {
    let path = dir.join(layout.index_file());
    let index_error = |problem: String| CheckpointError::Index {
        path: path.clone(),
        problem,
    };
    let Some(bytes) = read_index(&path)? else {
        if dir.join(layout.single_file()).try_exists().unwrap_or(false) {
            return Ok(Listing {
                files: vec![layout.single_file().to_owned()],
                index: BTreeMap::new(),
            });
        }
        return Err(CheckpointError::NoWeights {
            dir: dir.to_owned(),
            index: layout.index_file(),
            single: layout.single_file(),
        });
    };
    if bytes.len() as u64 > MAX_INDEX_BYTES {
        return Err(index_error(format!(
            "is longer than {MAX_INDEX_BYTES} bytes, expected an index of tensors"
        )));
    }
    let raw: RawIndex = serde_json::from_slice(&bytes)
        .map_err(|error| index_error(format!("is not an index with a weight_map: {error}")))?;
    if let Some(name) = raw.weight_map.twice.first() {
        return Err(index_error(format!("names tensor {name} twice, expected once")));
    }
    let files: BTreeSet<&String> = raw.weight_map.members.values().collect();
    if files.is_empty() || files.len() > MAX_FILES {
        return Err(index_error(format!(
            "names {} files, expected 1 to {MAX_FILES}",
            files.len()
        )));
    }
    if let Some(bad) = files.iter().find(|name| !is_plain_name(name)) {
        let shown: String = bad.chars().take(80).collect();
        return Err(index_error(format!(
            "names the file {shown:?}, expected a file name that ends in .safetensors"
        )));
    }
    Ok(Listing {
        files: files.into_iter().cloned().collect(),
        index: raw.weight_map.members,
    })
}

/// The index's bytes, one more than allowed if it is too long; nothing if there is none.
fn read_index(path: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    let read_error = |source| CheckpointError::Read {
        path: path.to_owned(),
        source,
    };
    match std::fs::File::open(path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(MAX_INDEX_BYTES + 1)
                .read_to_end(&mut bytes)
                .map_err(read_error)?;
            Ok(Some(bytes))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(read_error(error)),
    }
}

fn is_plain_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= MAX_FILE_NAME_BYTES
        && !name.starts_with('.')
        && name.ends_with(".safetensors")
        && name.chars().all(plain)
}
