//! A checkpoint: the model's parameters and safetensors files, mapped and checked.
//!
//! In Mistral's consolidated layout or in Hugging Face's; where a folder has both, the consolidated one is opened. Here
//! all tensors have the names of the consolidated layout; errors name them as the files do.
//! Opening reads headers only, so it is quick for any size; weights are paged in as they are used. Nothing is
//! written. The files must not change while a checkpoint is open.
//!
//! **Invariant:** every tensor of an open checkpoint lies within its file, spans the bytes of its shape and dtype, and
//! shares none with another.

mod direct;
mod error;
mod fingerprint;
mod header;
mod index;
mod json;
mod manifest;
mod map;
mod parts;
mod place;
mod validate;
mod view;
mod weight;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use direct::DirectBuffer;
pub use error::{BadValue, CheckpointError, Fault, Faults, MAX_FAULTS, NoSuchRows};
pub use fingerprint::Fingerprint;
pub use header::MAX_HEADER_BYTES;
pub use manifest::{FileSum, MANIFEST_FILE, Manifest, Sum};
pub use parts::{FileHead, FilePart};
pub use validate::Inventory;
pub use view::TensorView;
pub use weight::Weight;

use crate::layout::{HuggingFaceNames, Layout};
use crate::spec::{ModelSpec, SpecError, read_bounded};
use header::Entry;
use index::Listing;
use map::FileMap;

/// Most tensors; Mistral Large 3 has about 46,000, scales included.
const MAX_TENSORS: usize = 1 << 22;

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    layout: Layout,
    /// There if the files have other names than those of the consolidated layout.
    names: Option<HuggingFaceNames>,
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
    /// where there is one, giving all faults at once, up to a bound. Whether it holds what its parameters describe is
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
        let layout = Layout::of(dir);
        let params = read_bounded(&dir.join(layout.params_file()))?;
        let listing = index::list(dir, layout)?;
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
        tracing::info!(dir = %dir.display(), ?layout, files = files.len(), "checkpoint opened");
        let (names, tensors) = match layout {
            Layout::Consolidated => (None, tensors),
            Layout::HuggingFace => {
                let names = HuggingFaceNames::find(|name| tensors.contains_key(name));
                (Some(names), place::consolidated(tensors, &names))
            }
        };
        Ok(Self {
            dir: dir.to_owned(),
            layout,
            names,
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

    /// How the folder is laid out.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The spec, from the parameters that were there when the checkpoint was opened.
    pub fn spec(&self) -> Result<ModelSpec, SpecError> {
        let path = self.dir.join(self.layout.params_file());
        ModelSpec::parse(&self.params, &path, self.layout)
    }

    /// What tells this model from others.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// What the files call the tensor of a name.
    fn name_in_files(&self, name: &str) -> String {
        match &self.names {
            Some(names) => names.name_of(name),
            None => name.to_owned(),
        }
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
    pub fn check_sum(&self, view: &TensorView<'_>) -> Result<(), CheckpointError> {
        let Some(manifest) = &self.manifest else {
            return Ok(());
        };
        manifest.check_tensor(view).map_err(|fault| {
            let mut faults = Faults::default();
            faults.push(fault);
            let dir = self.dir.clone();
            CheckpointError::Faults { dir, faults }
        })
    }

    /// Brings the bytes of a view in from storage to where they are mapped, and waits for them.
    pub fn bring_in(&self, view: &TensorView<'_>) {
        if let Some((file, range)) = self.place_of(view) {
            file.bring_in(range);
        }
    }

    /// Reads the bytes of a view to memory of their own, past the system's cache. Says whether they are there; if not they
    /// are to be looked at where they are mapped, because the system has them in its cache, or knows no such reads.
    pub fn read_past_cache(&self, view: &TensorView<'_>, buffer: &mut DirectBuffer) -> bool {
        let place = self.place_of(view);
        place.is_some_and(|(file, range)| file.read_past_cache(range, buffer))
    }

    /// Says that the bytes of a view are not needed soon.
    pub fn let_go(&self, view: &TensorView<'_>) {
        if let Some((file, range)) = self.place_of(view) {
            file.let_go(range);
        }
    }

    /// The file of a view, and which of its bytes the view shows.
    fn place_of(&self, view: &TensorView<'_>) -> Option<(&FileMap, Range<usize>)> {
        let file = self.files.iter().find(|file| file.name == view.file())?;
        let start = usize::try_from(view.offset()).unwrap_or(usize::MAX);
        let end = start.saturating_add(view.bytes().len()).min(file.map.len());
        Some((&file.map, start.min(end)..end))
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
