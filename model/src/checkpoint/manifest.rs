//! `manifest.json`: the SHA-256 of every file and of every tensor of a checkpoint.
//!
//! ```json
//! {"version": 1,
//!  "files": {"params.json": {"bytes": 2320, "sha256": "5f…"}, "consolidated.safetensors": {"bytes": 19709256, "sha256": "ab…"}},
//!  "tensors": {"norm.weight": "07…"}}
//! ```
//!
//! A file's sum is that of the whole file, as `sha256sum` gives it; a tensor's is that of its stored bytes, so that who
//! reads some tensors can check those. Where a checkpoint has a manifest, every tensor that is loaded is checked.
//! Sums tell damage, not malice: whoever can change the weights can change the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::json::Members;
use super::{Checkpoint, CheckpointError, Fault, Faults, TensorView};

/// Name of the file in a checkpoint's folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Longest manifest, in bytes; that of Mistral Large 3 has about 7 MB.
const MAX_MANIFEST_BYTES: u64 = 100_000_000;
/// Bytes that are summed at once: how soon whoever asked is told of progress.
const STEP_BYTES: usize = 8 << 20;

/// A SHA-256, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sum([u8; 32]);

impl Sum {
    /// The sum of some bytes; `progress` hears of the bytes that were summed.
    fn of(bytes: &[u8], progress: &dyn Fn(u64)) -> Self {
        let mut hash = Sha256::new();
        for step in bytes.chunks(STEP_BYTES) {
            hash.update(step);
            progress(step.len() as u64);
        }
        Self(hash.finalize().into())
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sum({self})")
    }
}

impl Serialize for Sum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let nibble = |digit: u8| {
            (digit as char)
                .to_digit(16)
                .and_then(|value| u8::try_from(value).ok())
        };
        let digits: Option<Vec<u8>> = text.bytes().map(nibble).collect();
        let bytes: Option<Vec<u8>> = digits.map(|digits| {
            let pairs = digits.chunks_exact(2);
            pairs.map(|pair| pair[0] << 4 | pair[1]).collect()
        });
        let sum = bytes
            .filter(|_| text.len() == 64)
            .and_then(|bytes| bytes.try_into().ok());
        sum.map(Self)
            .ok_or_else(|| D::Error::custom("a sum must be the 64 hexadecimal digits of a SHA-256"))
    }
}

/// A file's length and sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSum {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: Sum,
}

/// The sums of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Manifest {
    version: u32,
    files: BTreeMap<String, FileSum>,
    tensors: BTreeMap<String, Sum>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    version: u32,
    files: Members<FileSum>,
    tensors: Members<Sum>,
}

impl Manifest {
    /// Reads the folder's manifest, if it has one.
    pub fn read(dir: &Path) -> Result<Option<Self>, CheckpointError> {
        let path = dir.join(MANIFEST_FILE);
        let wrong = |problem: String| CheckpointError::Index {
            path: path.clone(),
            problem,
        };
        let read_error = |source| CheckpointError::Read {
            path: path.clone(),
            source,
        };
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(read_error(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_MANIFEST_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(read_error)?;
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(wrong(format!(
                "is longer than {MAX_MANIFEST_BYTES} bytes, expected the sums of a checkpoint"
            )));
        }
        let raw: RawManifest = serde_json::from_slice(&bytes)
            .map_err(|error| wrong(format!("is not a manifest with files and tensors: {error}")))?;
        if raw.version != 1 {
            return Err(wrong(format!("has the version {}, expected 1", raw.version)));
        }
        if let Some(name) = raw.files.twice.iter().chain(&raw.tensors.twice).next() {
            return Err(wrong(format!("names {name} twice, expected once")));
        }
        Ok(Some(Self {
            version: raw.version,
            files: raw.files.members,
            tensors: raw.tensors.members,
        }))
    }

    /// Sums a checkpoint: its weight files, the others that it has, and every tensor.
    pub fn of(checkpoint: &Checkpoint, progress: &dyn Fn(u64)) -> Result<Self, CheckpointError> {
        let mut files = BTreeMap::new();
        for (name, bytes) in checkpoint.weight_files() {
            files.insert(name.to_owned(), sum_of_file(bytes, progress));
        }
        let others = checkpoint.other_files();
        for name in others.into_iter().filter(|name| name != MANIFEST_FILE) {
            let path = checkpoint.dir().join(&name);
            if let Some(sum) = sum_if_there(&path, &|_| {})? {
                files.insert(name, sum);
            }
        }
        let tensors = keyed(checkpoint).into_iter();
        let tensors = tensors.map(|(key, view)| (key, Sum::of(view.bytes(), &|_| {})));
        Ok(Self {
            version: 1,
            files,
            tensors: tensors.collect(),
        })
    }

    /// Bytes that [`Manifest::verify`] reads and tells of.
    pub fn total_bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }

    /// How many files and tensors have a sum.
    pub fn counts(&self) -> (usize, usize) {
        (self.files.len(), self.tensors.len())
    }

    /// Reads every file of the checkpoint and gives what is not as it was, with the tensors of the files that changed.
    pub fn verify(&self, checkpoint: &Checkpoint, progress: &dyn Fn(u64)) -> Result<(), CheckpointError> {
        let mut faults = self.differences(checkpoint);
        let maps: BTreeMap<&str, &[u8]> = checkpoint.weight_files().collect();
        for (name, sum) in &self.files {
            let found = match maps.get(name.as_str()) {
                Some(bytes) => sum_of_file(bytes, progress),
                None => match sum_if_there(&checkpoint.dir().join(name), progress)? {
                    Some(sum) => sum,
                    None => {
                        faults.push(Fault::MissingFile {
                            file: name.clone(),
                            problem: format!("{MANIFEST_FILE} names it and it is not there"),
                        });
                        continue;
                    }
                },
            };
            if found != *sum {
                faults.push(Fault::FileSum {
                    file: name.clone(),
                    found: found.sha256.to_string(),
                    expected: sum.sha256.to_string(),
                });
                self.changed_tensors(checkpoint, name, &mut faults);
            }
        }
        into_result(checkpoint, faults)
    }

    /// What headers alone show: tensors without a sum, sums without a tensor, and weight files of another length.
    pub(super) fn check_headers(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        into_result(checkpoint, self.differences(checkpoint))
    }

    fn differences(&self, checkpoint: &Checkpoint) -> Faults {
        let mut faults = Faults::default();
        let stored: BTreeSet<String> = keyed(checkpoint).into_iter().map(|(key, _)| key).collect();
        for name in stored.iter().filter(|name| !self.tensors.contains_key(*name)) {
            faults.push(Fault::NoSum { name: name.clone() });
        }
        let gone = self.tensors.keys().filter(|name| !stored.contains(*name));
        for name in gone {
            faults.push(Fault::NoTensor { name: name.clone() });
        }
        for (name, bytes) in checkpoint.weight_files() {
            let found = bytes.len() as u64;
            match self.files.get(name) {
                None => faults.push(Fault::NoSum {
                    name: name.to_owned(),
                }),
                Some(sum) if sum.bytes != found => faults.push(Fault::FileLength {
                    file: name.to_owned(),
                    found,
                    expected: sum.bytes,
                }),
                Some(_) => {}
            }
        }
        faults
    }

    fn changed_tensors(&self, checkpoint: &Checkpoint, file: &str, faults: &mut Faults) {
        for view in checkpoint.views().filter(|view| view.file() == file) {
            if let Some(expected) = self.sum(&view)
                && Sum::of(view.bytes(), &|_| {}) != *expected
            {
                faults.push(Fault::TensorSum {
                    file: file.to_owned(),
                    name: view.name().to_owned(),
                });
            }
        }
    }

    fn sum(&self, view: &TensorView<'_>) -> Option<&Sum> {
        let whole = self.tensors.get(view.name());
        whole.or_else(|| self.tensors.get(&part_key(view)))
    }

    /// Checks the stored bytes of a tensor, all of them in this view.
    pub(super) fn check_tensor(&self, view: &TensorView<'_>) -> Result<(), Fault> {
        let name = || view.name().to_owned();
        match self.sum(view) {
            None => Err(Fault::NoSum { name: name() }),
            Some(expected) if Sum::of(view.bytes(), &|_| {}) == *expected => Ok(()),
            Some(_) => Err(Fault::TensorSum {
                file: view.file().to_owned(),
                name: name(),
            }),
        }
    }
}

/// Every tensor with what its sum is noted under: its name in the files, and where several are cut from one, each one's
/// place in the file beside it.
fn keyed(checkpoint: &Checkpoint) -> Vec<(String, TensorView<'_>)> {
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for view in checkpoint.views() {
        *count.entry(view.name()).or_default() += 1;
    }
    let key = |view: &TensorView<'_>| match count.get(view.name()) {
        Some(1) | None => view.name().to_owned(),
        Some(_) => part_key(view),
    };
    checkpoint.views().map(|view| (key(&view), view)).collect()
}

fn part_key(view: &TensorView<'_>) -> String {
    format!("{}@{}", view.name(), view.offset())
}

fn into_result(checkpoint: &Checkpoint, faults: Faults) -> Result<(), CheckpointError> {
    if faults.total() == 0 {
        return Ok(());
    }
    Err(CheckpointError::Faults {
        dir: checkpoint.dir().to_owned(),
        faults,
    })
}

fn sum_of_file(bytes: &[u8], progress: &dyn Fn(u64)) -> FileSum {
    FileSum {
        bytes: bytes.len() as u64,
        sha256: Sum::of(bytes, progress),
    }
}

/// The length and sum of a file beside the weights, if it is there.
fn sum_if_there(path: &Path, progress: &dyn Fn(u64)) -> Result<Option<FileSum>, CheckpointError> {
    let read_error = |source| CheckpointError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read_error(error)),
    };
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut step = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut step).map_err(read_error)?;
        if read == 0 {
            break;
        }
        hash.update(&step[..read]);
        bytes += read as u64;
        progress(read as u64);
    }
    let sha256 = Sum(hash.finalize().into());
    Ok(Some(FileSum { bytes, sha256 }))
}
