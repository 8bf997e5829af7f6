//! Making a manifest and comparing files with it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tramontane_model::checkpoint::{Checkpoint, INDEX_FILE, MANIFEST_FILE, Manifest};
use tramontane_model::spec::PARAMS_FILE;
use tramontane_model::tekken::TEKKEN_FILE;

use crate::amounts::bytes;

/// Files beside the weights that a manifest names where they are there.
const OTHER_FILES: [&str; 4] = [PARAMS_FILE, TEKKEN_FILE, INDEX_FILE, "SYSTEM_PROMPT.txt"];

pub(super) fn manifest(dir: &Path, force: bool) -> Result<()> {
    let path = dir.join(MANIFEST_FILE);
    if path.exists() && !force {
        bail!("{} is there already; --force writes another", path.display());
    }
    let checkpoint = Checkpoint::open_files(dir)?;
    let bar = bar(checkpoint.weight_bytes());
    let manifest = Manifest::of(&checkpoint, &OTHER_FILES, &|bytes| bar.inc(bytes))?;
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

/// Bytes, their rate and the time that is left; on a terminal only.
fn bar(total: u64) -> ProgressBar {
    let template = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style)
}
