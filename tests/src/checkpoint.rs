//! Copies of a checkpoint with something wrong in them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

/// A copy of a checkpoint's folder.
pub struct Copy {
    dir: TempDir,
}

/// A safetensors file in parts.
pub struct Tensors {
    path: PathBuf,
    /// Names to dtype, shape and offsets.
    pub header: Value,
    /// What the offsets count in.
    pub data: Vec<u8>,
}

impl Copy {
    /// A copy of every file of a folder.
    pub fn of(folder: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let from = entry.expect("a file").path();
            let name = from.file_name().expect("a file");
            std::fs::copy(&from, dir.path().join(name)).expect("copies");
        }
        Self { dir }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Changes a JSON file.
    pub fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let path = self.path().join(file);
        let text = std::fs::read_to_string(&path).expect("a file");
        let mut value = serde_json::from_str(&text).expect("JSON");
        change(&mut value);
        std::fs::write(path, value.to_string()).expect("writes");
    }

    /// Changes the bytes of a file.
    pub fn bytes(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path().join(file);
        let mut bytes = std::fs::read(&path).expect("a file");
        change(&mut bytes);
        std::fs::write(path, bytes).expect("writes");
    }

    /// Changes a safetensors file.
    pub fn tensors(&self, file: &str, change: impl FnOnce(&mut Tensors)) {
        let mut tensors = Tensors::read(self.path().join(file));
        change(&mut tensors);
        tensors.write();
    }
}

impl Tensors {
    fn read(path: PathBuf) -> Self {
        let bytes = std::fs::read(&path).expect("a file");
        let (length, rest) = bytes.split_first_chunk().expect("a length");
        let length = usize::try_from(u64::from_le_bytes(*length)).expect("a length");
        let (header, data) = rest.split_at(length);
        Self {
            path,
            header: serde_json::from_slice(header).expect("a header"),
            data: data.to_vec(),
        }
    }

    fn write(&self) {
        let header = self.header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(&self.data);
        std::fs::write(&self.path, bytes).expect("writes");
    }

    /// First byte of a tensor in the data, and one past its last.
    pub fn offsets(&self, name: &str) -> (usize, usize) {
        let offset = |index: usize| {
            let offset = self.header[name]["data_offsets"][index].as_u64();
            usize::try_from(offset.expect("a tensor")).expect("an offset")
        };
        (offset(0), offset(1))
    }
}
