//! `tramontane checkpoint`: sums of a checkpoint's files, made and verified.

use std::path::Path;
use std::process::{Command, Output};

use tramontane_tests::checkpoint::Copy;
use tramontane_tests::fixtures::fixture;
use tramontane_tests::process::program;

const WEIGHTS: &str = "consolidated.safetensors";

fn checkpoint(command: &str, dir: &Path, more: &[&str]) -> Output {
    Command::new(program())
        .args(["checkpoint", command])
        .arg(dir)
        .args(more)
        .output()
        .expect("the program runs")
}

fn said(output: &Output) -> String {
    let all = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(all).expect("UTF-8")
}

#[test]
fn damage_is_found_and_named() {
    let copy = Copy::of(&fixture("micro-bf16"));
    let without = checkpoint("verify", copy.path(), &[]);
    assert!(!without.status.success());
    assert!(
        said(&without).contains("has no manifest.json"),
        "{}",
        said(&without)
    );

    let made = checkpoint("manifest", copy.path(), &[]);
    assert!(made.status.success(), "{}", said(&made));
    assert!(said(&made).contains("sums of 3 files"), "{}", said(&made));
    let again = checkpoint("manifest", copy.path(), &[]);
    assert!(
        !again.status.success() && said(&again).contains("--force"),
        "{}",
        said(&again)
    );
    let verified = checkpoint("verify", copy.path(), &[]);
    assert!(verified.status.success(), "{}", said(&verified));

    copy.bytes(WEIGHTS, |bytes| {
        if let Some(last) = bytes.last_mut() {
            *last ^= 0x10;
        }
    });
    let damaged = checkpoint("verify", copy.path(), &[]);
    assert!(!damaged.status.success());
    for part in [
        "consolidated.safetensors: its SHA-256 is",
        "consolidated.safetensors: the bytes of tensor",
    ] {
        assert!(said(&damaged).contains(part), "{}", said(&damaged));
    }
    let forced = checkpoint("manifest", copy.path(), &["--force"]);
    assert!(forced.status.success(), "{}", said(&forced));
    assert!(checkpoint("verify", copy.path(), &[]).status.success());
}
