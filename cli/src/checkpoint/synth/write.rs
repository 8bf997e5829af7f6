//! Writes tensors as safetensors files, a few gigabytes each, with an index where there is more than one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tramontane_kernels::synthetic::Random;
use tramontane_model::layout::Layout;

use super::codes::Tensor;
use crate::checkpoint::bar;

/// Most bytes of tensors in a file, unless one has more.
const MAX_FILE_BYTES: u64 = 5_000_000_000;
/// Bytes that are made at once.
const STEP_BYTES: u64 = 4 << 20;

/// What was written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) files: usize,
    pub(super) bytes: u64,
}

pub(super) fn weights(dir: &Path, tensors: &[Tensor], seed: u64) -> Result<Written> {
    let bytes = tensors.iter().map(Tensor::bytes).sum();
    let files = split(tensors);
    let bar = bar(bytes);
    let mut index: BTreeMap<&str, String> = BTreeMap::new();
    for (number, tensors) in (1..).zip(&files) {
        let name = match files.len() {
            1 => Layout::Consolidated.single_file().to_owned(),
            count => format!("consolidated-{number:05}-of-{count:05}.safetensors"),
        };
        let path = dir.join(&name);
        file(&path, tensors, seed, &|bytes| bar.inc(bytes))
            .with_context(|| format!("{} cannot be written", path.display()))?;
        index.extend(tensors.iter().map(|tensor| (tensor.name.as_str(), name.clone())));
    }
    bar.finish_and_clear();
    if files.len() > 1 {
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": index });
        let path = dir.join(Layout::Consolidated.index_file());
        std::fs::write(&path, index.to_string())
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(Written {
        files: files.len(),
        bytes,
    })
}

/// Tensors by file, in order.
fn split(tensors: &[Tensor]) -> Vec<&[Tensor]> {
    let mut files = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, tensor) in tensors.iter().enumerate() {
        if bytes > 0 && bytes + tensor.bytes() > MAX_FILE_BYTES {
            files.push(&tensors[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += tensor.bytes();
    }
    files.push(&tensors[start..]);
    files
}

fn file(path: &Path, tensors: &[Tensor], seed: u64, progress: &dyn Fn(u64)) -> std::io::Result<()> {
    let mut header = Map::new();
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes();
        let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end] });
        header.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    // Tensors begin at a multiple of eight bytes.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut step = vec![0; usize::try_from(STEP_BYTES).unwrap_or(0)];
    for tensor in tensors {
        let mut random = Random::of(seed, &tensor.name);
        let mut left = tensor.bytes();
        while left > 0 {
            let length = left.min(STEP_BYTES);
            let part = &mut step[..usize::try_from(length).unwrap_or(0)];
            tensor.values.fill(&mut random, part);
            file.write_all(part)?;
            progress(length);
            left -= length;
        }
    }
    file.flush()
}
