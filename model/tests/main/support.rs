//! Fixtures, and checkpoints made from them with one thing changed. Written with the safetensors crate, which the
//! library itself does not use.

use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// A folder in the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A tensor in memory.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// All tensors of a checkpoint folder, by the safetensors crate.
pub(crate) fn read_all(dir: &Path) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    for file in std::fs::read_dir(dir).expect("a folder") {
        let path = file.expect("an entry").path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            let bytes = std::fs::read(&path).expect("a file");
            let parsed = SafeTensors::deserialize(&bytes).expect("a safetensors file");
            tensors.extend(parsed.iter().map(|(name, view)| Tensor {
                name: name.to_owned(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: view.data().to_vec(),
            }));
        }
    }
    tensors
}

/// Writes tensors as one weight file.
pub(crate) fn write_file(path: &Path, tensors: &[Tensor]) {
    let views = tensors.iter().map(|tensor| {
        let view =
            TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).expect("a sound tensor");
        (tensor.name.clone(), view)
    });
    std::fs::write(path, safetensors::serialize(views, None).expect("serialised")).expect("written");
}

/// A copy of a checkpoint in one file, with its tensors changed.
pub(crate) fn changed(dir: &Path, change: impl FnOnce(&mut Vec<Tensor>)) -> TempDir {
    let mut tensors = read_all(dir);
    change(&mut tensors);
    let copy = tempfile::tempdir().expect("a folder");
    std::fs::copy(dir.join("params.json"), copy.path().join("params.json")).expect("copied");
    write_file(&copy.path().join("consolidated.safetensors"), &tensors);
    copy
}

/// The tensor of this name.
pub(crate) fn named<'a>(tensors: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    tensors
        .iter_mut()
        .find(|tensor| tensor.name == name)
        .expect("a tensor of this name")
}
