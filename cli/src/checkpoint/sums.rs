//! Making a manifest and comparing files with it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use tramontane_model::checkpoint::{Checkpoint, MANIFEST_FILE, Manifest};

use super::bar;
use crate::amounts::bytes;

pub(super) fn manifest(dir: &Path, force: bool) -> Result<()> {
    let path = dir.join(MANIFEST_FILE);
    if path.exists() && !force {
        bail!("{} is there already; --force writes another", path.display());
    }
    let checkpoint = Checkpoint::open_files(dir)?;
    let bar = bar(checkpoint.weight_bytes());
    let manifest = Manifest::of(&checkpoint, &|bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    // Whoever reads it finds a whole one or none.
    let unfinished = dir.join(format!("{MANIFEST_FILE}.new"));
    let mut text = serde_json::to_vec_pretty(&manifest)?;
    text.push(b'\n');
    std::fs::write(&unfinished, text)
        .and_then(|()| std::fs::rename(&unfinished, &path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let (files, tensors) = manifest.counts();
    println!(
        "{}: sums of {files} files and {tensors} tensors, {}",
        path.display(),
        bytes(manifest.total_bytes())
    );
    Ok(())
}

pub(super) fn verify(dir: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(dir)?;
    let Some(manifest) = checkpoint.manifest() else {
        bail!(
            "{} has no {MANIFEST_FILE}: `tramontane checkpoint manifest` makes one",
            dir.display()
        );
    };
    let bar = bar(manifest.total_bytes());
    let verified = manifest.verify(&checkpoint, &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    verified?;
    let (files, tensors) = manifest.counts();
    println!(
        "{}: {files} files and {tensors} tensors are as {MANIFEST_FILE} says, {}",
        dir.display(),
        bytes(manifest.total_bytes())
    );
    Ok(())
}
