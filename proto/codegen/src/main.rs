//! Writes `proto/src/generated.rs` from `proto/cluster/v1/*.proto`, or with `--check` says whether it is current.
//!
//! Run by developers only: the generated file is checked in, so that a build needs no protoc.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const FILES: [&str; 8] = [
    "admin",
    "checkpoint",
    "expert",
    "membership",
    "placement",
    "raft",
    "serving",
    "stage",
];

fn main() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    let target = root.join("src/generated.rs");
    let fresh = generate(&root)?;
    if std::env::args().any(|arg| arg == "--check") {
        let found = std::fs::read_to_string(&target).with_context(|| target.display().to_string())?;
        if found != fresh {
            bail!(
                "{} is not what the .proto files say: run `make proto`",
                target.display()
            );
        }
        return Ok(());
    }
    std::fs::write(&target, fresh).with_context(|| target.display().to_string())
}

fn generate(root: &Path) -> Result<String> {
    let files = FILES.map(|name| root.join(format!("cluster/v1/{name}.proto")));
    let descriptors = protox::compile(files, [root])?;
    let out = std::env::temp_dir().join(format!("tramontane-codegen-{}", std::process::id()));
    std::fs::create_dir_all(&out)?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .out_dir(&out)
        .compile_fds(descriptors)
        .context("generating code")?;
    let code = std::fs::read_to_string(out.join("tramontane.cluster.v1.rs"))?;
    std::fs::remove_dir_all(&out)?;
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_code_is_current() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .canonicalize()
            .expect("exists");
        let found = std::fs::read_to_string(root.join("src/generated.rs")).expect("readable");
        assert!(found == generate(&root).expect("generates"), "run `make proto`");
    }
}
