//! Manifests: what was changed since one was made is named.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tramontane_model::checkpoint::{Checkpoint, MANIFEST_FILE, Manifest};

use crate::support::{changed, named, read_all, repository};

const FIRST: &str = "consolidated-00001-of-00003.safetensors";

fn fp8() -> PathBuf {
    repository("tests/fixtures/micro-fp8")
}

/// A copy of the three-shard fixture with a manifest.
fn summed() -> TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    for file in fs::read_dir(fp8()).expect("a folder") {
        let file = file.expect("an entry");
        fs::copy(file.path(), copy.path().join(file.file_name())).expect("copied");
    }
    sum(copy.path());
    copy
}

fn sum(dir: &Path) -> Manifest {
    let checkpoint = Checkpoint::open_files(dir).expect("sound files");
    let manifest = Manifest::of(&checkpoint, &|_| {}).expect("sums");
    let text = serde_json::to_vec(&manifest).expect("JSON");
    fs::write(dir.join(MANIFEST_FILE), text).expect("written");
    manifest
}

/// The sum as coreutils give it.
fn sha256sum(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(bytes)
        .expect("written");
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8(output.stdout).expect("text")[..64].to_owned()
}

fn verify(dir: &Path) -> Result<(), String> {
    let checkpoint = Checkpoint::open(dir).map_err(|error| error.to_string())?;
    let manifest = checkpoint.manifest().expect("a manifest");
    let seen = std::cell::Cell::new(0);
    let verified = manifest.verify(&checkpoint, &|bytes| seen.set(seen.get() + bytes));
    if verified.is_ok() {
        assert_eq!(seen.get(), manifest.total_bytes(), "every byte was read");
    }
    verified.map_err(|error| error.to_string())
}

#[test]
fn sums_are_those_of_files_and_stored_tensors() {
    let copy = summed();
    let text = fs::read(copy.path().join(MANIFEST_FILE)).expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    for file in [FIRST, "params.json"] {
        let bytes = fs::read(copy.path().join(file)).expect("a file");
        assert_eq!(manifest["files"][file]["sha256"], sha256sum(&bytes), "{file}");
        assert_eq!(manifest["files"][file]["bytes"], bytes.len());
    }
    assert_eq!(manifest["files"].as_object().expect("files").len(), 6);
    let tensors = read_all(copy.path());
    assert_eq!(
        manifest["tensors"].as_object().expect("tensors").len(),
        tensors.len()
    );
    for tensor in tensors.iter().step_by(17) {
        assert_eq!(
            manifest["tensors"][&tensor.name],
            sha256sum(&tensor.bytes),
            "{}",
            tensor.name
        );
    }
    verify(copy.path()).expect("nothing has changed");
}

#[test]
fn a_changed_bit_is_found_in_its_file_and_tensor() {
    let copy = summed();
    let path = copy.path().join(FIRST);
    let mut bytes = fs::read(&path).expect("a file");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&path, bytes).expect("written");
    let checkpoint = Checkpoint::open(copy.path()).expect("headers are as they were");
    let last = checkpoint
        .names()
        .filter_map(|name| checkpoint.tensor(name))
        .filter(|view| view.file() == FIRST)
        .max_by_key(|view| view.offset())
        .expect("a tensor");
    let said = verify(copy.path()).expect_err("found");
    for part in [
        format!("{FIRST}: its SHA-256 is"),
        format!("{FIRST}: the bytes of tensor {} are not those", last.name()),
    ] {
        assert!(said.contains(&part), "{said}");
    }
    let said = checkpoint.check_sum(&last).expect_err("found").to_string();
    assert!(said.contains(FIRST) && said.contains(last.name()), "{said}");
    let norm = checkpoint.tensor("norm.weight").expect("a tensor");
    checkpoint.check_sum(&norm).expect("as it was");
}

#[test]
fn what_came_or_went_is_named_when_the_checkpoint_is_opened() {
    let copy = changed(&fp8(), |_| {});
    sum(copy.path());
    let more = changed(&fp8(), |tensors| {
        named(tensors, "norm.weight").name = "norm.wait".to_owned()
    });
    fs::copy(
        more.path().join("consolidated.safetensors"),
        copy.path().join("consolidated.safetensors"),
    )
    .expect("copied");
    let said = verify(copy.path()).expect_err("refused");
    for part in [
        "norm.wait is not in manifest.json",
        "tensor norm.weight is in manifest.json",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn a_changed_file_beside_the_weights_is_found() {
    let copy = summed();
    let path = copy.path().join("params.json");
    let text = fs::read_to_string(&path).expect("text");
    fs::write(&path, format!("{text} ")).expect("written");
    let said = verify(copy.path()).expect_err("found");
    assert!(said.contains("params.json: its SHA-256 is"), "{said}");
}

#[test]
fn what_is_no_manifest_is_refused() {
    let copy = summed();
    let good = fs::read_to_string(copy.path().join(MANIFEST_FILE)).expect("text");
    let sum = "\"sha256\":\"";
    let at = good.find(sum).expect("a sum") + sum.len();
    for (text, part) in [
        ("{".to_owned(), "is not a manifest"),
        ("{\"version\":1,\"files\":{}}".to_owned(), "tensors"),
        (
            good.replacen("\"version\":1", "\"version\":2", 1),
            "has the version 2, expected 1",
        ),
        (
            format!("{}x{}", &good[..at], &good[at + 1..]),
            "64 hexadecimal digits",
        ),
        (
            format!("{}{}", &good[..at], &good[at + 1..]),
            "64 hexadecimal digits",
        ),
        (
            good.replacen("\"norm.weight\":", "\"norm.weight\":\"00\",\"norm.weight\":", 1),
            "norm.weight",
        ),
    ] {
        fs::write(copy.path().join(MANIFEST_FILE), &text).expect("written");
        let said = Checkpoint::open(copy.path()).expect_err("refused").to_string();
        assert!(said.contains(part) && said.contains(MANIFEST_FILE), "{said}");
    }
}
