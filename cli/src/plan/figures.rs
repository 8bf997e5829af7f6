//! `--figures NAME=FILE`: what devices of a name were measured to do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use tramontane_kernels::figures::{KernelFigures, VERSION};
use tramontane_kernels::synthetic::Format;

/// Most bytes of a file.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A file, and whose figures it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FiguresOf {
    name: String,
    file: PathBuf,
}

impl FromStr for FiguresOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok(Self {
                name: name.to_owned(),
                file: file.into(),
            }),
            Some(_) | None => {
                Err("write NAME=FILE, with the name that the inventory gives the devices".to_owned())
            }
        }
    }
}

/// Reads them all; their weights must be stored as the model's.
pub(super) fn read(given: &[FiguresOf], format: Format) -> Result<BTreeMap<String, KernelFigures>> {
    let mut all = BTreeMap::new();
    for FiguresOf { name, file } in given {
        let named = || format!("--figures {name}={}", file.display());
        let bytes = std::fs::metadata(file).with_context(named)?.len();
        if bytes > MAX_FILE_BYTES {
            bail!(
                "{}: it has {bytes} bytes, at most {MAX_FILE_BYTES} are read",
                named()
            );
        }
        let text = std::fs::read(file).with_context(named)?;
        let figures: KernelFigures = serde_json::from_slice(&text).with_context(named)?;
        if figures.version != VERSION {
            bail!(
                "{}: its version is {}, it must be {VERSION}",
                named(),
                figures.version
            );
        }
        if figures.model.format != format.name() {
            bail!(
                "{}: it is of {} weights, the model's are {}: measure with --format {}",
                named(),
                figures.model.format,
                format.name(),
                format.name()
            );
        }
        let is_sane = |value: f64| value.is_finite() && value > 0.0;
        if let Some(line) = figures.lines.iter().find(|line| !is_sane(line.seconds)) {
            bail!(
                "{}: {} takes {} seconds, it must be more than 0",
                named(),
                line.op,
                line.seconds
            );
        }
        if all.insert(name.clone(), figures).is_some() {
            bail!("{}: there are other figures of this name", named());
        }
    }
    Ok(all)
}
