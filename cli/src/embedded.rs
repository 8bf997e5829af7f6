//! The checkpoint that is always there: the miniature, embedded in the binary, unpacked where it is needed.
//!
//! Files in the cache are compared with the embedded bytes before every use, and written beside their place and then
//! moved, so that nobody ever reads half a file and a process that has one mapped keeps what it mapped.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The model's name in the API.
pub(crate) const NAME: &str = "mini-large-3";

/// Names and bytes; the weights last, so that a folder that has them has everything.
const FILES: [(&str, &[u8]); 3] = [
    (
        "params.json",
        include_bytes!("../assets/mini-large-3/params.json"),
    ),
    (
        "tekken.json",
        include_bytes!("../assets/mini-large-3/tekken.json"),
    ),
    (
        "consolidated.safetensors",
        include_bytes!("../assets/mini-large-3/consolidated.safetensors"),
    ),
];

/// The folder of the unpacked checkpoint: in the user's cache, or in `fallback` where there is none.
pub(crate) fn unpack(fallback: &Path) -> Result<PathBuf> {
    // A folder for each content: processes of two versions do not write over one another's files.
    let folder = format!("{NAME}-{}", fingerprint());
    if let Some(cache) = cache() {
        let dir = cache.join(&folder);
        match write_into(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) => tracing::debug!("the cache cannot be used: {error:#}"),
        }
    }
    let dir = fallback.join(&folder);
    write_into(&dir)?;
    Ok(dir)
}

fn cache() -> Option<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(base.join("tramontane"))
}

fn fingerprint() -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in FILES {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    let mut text = String::new();
    for byte in hash.finalize().iter().take(6) {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn write_into(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (name, bytes) in FILES {
        let path = dir.join(name);
        if is_there(&path, bytes) {
            continue;
        }
        let written = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(bytes)?;
            file.persist(&path)?;
            Ok(())
        };
        written().with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn is_there(path: &Path, bytes: &[u8]) -> bool {
    let same_size =
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == bytes.len() as u64);
    same_size && std::fs::read(path).is_ok_and(|found| found == bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_is_written_anew_and_what_is_whole_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        write_into(dir.path()).expect("writes");
        let params = dir.path().join("params.json");
        let tekken = dir.path().join("tekken.json");
        let kept = std::fs::metadata(&tekken)
            .and_then(|found| found.modified())
            .expect("is there");
        let mut broken = FILES[0].1.to_vec();
        broken[0] ^= 1;
        std::fs::write(&params, broken).expect("writes");
        write_into(dir.path()).expect("writes");
        assert!(is_there(&params, FILES[0].1));
        let found = std::fs::metadata(&tekken).and_then(|found| found.modified());
        assert_eq!(found.expect("is there"), kept);
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("a directory").count(),
            FILES.len()
        );
    }
}
