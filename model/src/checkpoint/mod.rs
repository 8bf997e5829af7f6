//! A checkpoint in Mistral's consolidated layout: params.json and safetensors files, mapped and checked.
//!
//! Opening reads headers only, so it is quick for any size; weights are paged in as they are used. Nothing is
//! written. The files must not change while a checkpoint is open.
//!
//! **Invariant:** every tensor of an open checkpoint lies within its file, spans the bytes of its shape and dtype, and
//! shares none with another.

mod error;
mod fingerprint;
mod header;
mod index;
mod json;
mod manifest;
mod map;
mod parts;
mod validate;
mod view;
mod weight;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use error::{BadValue, CheckpointError, Fault, Faults, MAX_FAULTS, NoSuchRows};
pub use fingerprint::Fingerprint;
pub use header::MAX_HEADER_BYTES;
pub use index::{INDEX_FILE, SINGLE_FILE};
pub use manifest::{FileSum, MANIFEST_FILE, Manifest, Sum};
pub use parts::{FileHead, FilePart, OTHER_FILES};
pub use validate::Inventory;
pub use view::TensorView;
pub use weight::Weight;

use crate::spec::{ModelSpec, PARAMS_FILE, SpecError, read_bounded};
use header::Entry;
use index::Listing;
use map::FileMap;

/// Most tensors; Mistral Large 3 has about 46,000, scales included.
const MAX_TENSORS: usize = 1 << 22;

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    params: Vec<u8>,
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, Located>,
    fingerprint: Fingerprint,
    manifest: Option<Manifest>,
}

#[derive(Debug)]
struct WeightFile {
    name: String,
    map: FileMap,
}

#[derive(Debug)]
struct Located {
    file: usize,
    entry: Entry,
}

impl Checkpoint {
    /// Opens the checkpoint in a folder: finds its files, maps them and checks their headers, against the manifest too
    /// where there is one, giving all faults at once, up to a bound. Whether it holds what params.json describes is
    /// [`Checkpoint::validate`].
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self::open_files(dir)?;
        checkpoint.manifest = Manifest::read(dir)?;
        if let Some(manifest) = &checkpoint.manifest {
            manifest.check_headers(&checkpoint)?;
        }
        Ok(checkpoint)
    }

    /// As [`Checkpoint::open`], without a look at the manifest.
    pub fn open_files(dir: &Path) -> Result<Self, CheckpointError> {
        let params = read_bounded(&dir.join(PARAMS_FILE))?;
        let listing = index::list(dir)?;
        let mut faults = Faults::default();
        let mut files = Vec::new();
        for name in &listing.files {
            match FileMap::open(&dir.join(name)) {
                Ok(map) => files.push(WeightFile {
                    name: name.clone(),
                    map,
                }),
                Err(error) if listing.index.is_empty() => {
                    return Err(CheckpointError::Read {
                        path: dir.join(name),
                        source: error,
                    });
                }
                Err(error) => faults.push(Fault::MissingFile {
                    file: name.clone(),
                    problem: error.to_string(),
                }),
            }
        }
        let tensors = gather(&files, &mut faults);
        if faults.total() == 0 {
            check_index(&listing, &files, &tensors, &mut faults);
        }
        if faults.total() > 0 {
            return Err(CheckpointError::Faults {
                dir: dir.to_owned(),
                faults,
            });
        }
        files
            .iter()
            .for_each(|file| file.map.expect_scattered_reads(true));
        let views = tensors.values().map(|located| view_of(&files, located));
        let fingerprint = fingerprint::fingerprint(&params, views);
        files
            .iter()
            .for_each(|file| file.map.expect_scattered_reads(false));
        Ok(Self {
            dir: dir.to_owned(),
            params,
            files,
            tensors,
            fingerprint,
            manifest: None,
        })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The spec, from the params.json that was there when the checkpoint was opened.
    pub fn spec(&self) -> Result<ModelSpec, SpecError> {
        ModelSpec::from_json(&self.params, &self.dir.join(PARAMS_FILE))
    }

    /// What tells this model from others.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The sums that its files and tensors are to have, if it has a manifest.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Sums the stored bytes of a tensor, where there is a manifest, and refuses them if they are not what they were.
    pub fn check_sum(&self, name: &str) -> Result<(), CheckpointError> {
        let (Some(manifest), Some(view)) = (&self.manifest, self.tensor(name)) else {
            return Ok(());
        };
        manifest.check_tensor(&view).map_err(|fault| {
            let mut faults = Faults::default();
            faults.push(fault);
            let dir = self.dir.clone();
            CheckpointError::Faults { dir, faults }
        })
    }

    /// Bytes of all weight files.
    pub fn weight_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.map.len() as u64).sum()
    }

    /// The weight files, by name, as they are stored.
    pub(crate) fn weight_files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|file| (file.name.as_str(), &*file.map))
    }

    /// Every tensor, in the order of the names.
    pub(crate) fn views(&self) -> impl Iterator<Item = TensorView<'_>> {
        let located = self.tensors.values();
        located.map(|located| view_of(&self.files, located))
    }

    /// A tensor by its name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors
            .get(name)
            .map(|located| view_of(&self.files, located))
    }
}

fn view_of<'a>(files: &'a [WeightFile], located: &'a Located) -> TensorView<'a> {
    let file = &files[located.file];
    TensorView::whole(&located.entry, &file.name, &file.map)
}

/// Reads every header; a tensor that two files have is a fault.
fn gather(files: &[WeightFile], faults: &mut Faults) -> BTreeMap<String, Located> {
    let mut tensors: BTreeMap<String, Located> = BTreeMap::new();
    for (file, WeightFile { name, map }) in files.iter().enumerate() {
        for entry in header::parse(name, map, faults) {
            if let Some(other) = tensors.get(&entry.name) {
                faults.push(Fault::InTwoFiles {
                    name: entry.name,
                    first: files[other.file].name.clone(),
                    second: name.clone(),
                });
                continue;
            }
            tensors.insert(entry.name.clone(), Located { file, entry });
        }
        if tensors.len() > MAX_TENSORS {
            faults.push(Fault::TooManyTensors {
                found: tensors.len(),
                max: MAX_TENSORS,
            });
            break;
        }
    }
    tensors
}

/// Checks that each tensor is where the index says. Tensors that no index names are taken from their headers.
fn check_index(
    listing: &Listing,
    files: &[WeightFile],
    tensors: &BTreeMap<String, Located>,
    faults: &mut Faults,
) {
    for (name, file) in &listing.index {
        let right = tensors
            .get(name)
            .is_some_and(|located| files[located.file].name == *file);
        if !right {
            faults.push(Fault::NotWhereIndexed {
                name: name.clone(),
                file: file.clone(),
            });
        }
    }
}
