//! `tramontane plan`: the published models on described machines, as recorded and as arithmetic has it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tramontane_tests::process::program;

const GIB: u64 = 1 << 30;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn plan(params: &str, inventory: &Path, more: &[&str]) -> Output {
    Command::new(program())
        .arg("plan")
        .arg("--model")
        .arg(root().join("tests/fixtures/params").join(params))
        .arg("--inventory")
        .arg(inventory)
        .args(more)
        .output()
        .expect("the program runs")
}

fn example(name: &str) -> PathBuf {
    root().join("deploy/inventory").join(name)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Where each published model goes on the example machines. `RECORD_PLANS=1` writes the records anew.
#[test]
fn plans_are_as_recorded() {
    let folder = root().join("tests/fixtures/plans");
    let mut changed = Vec::new();
    for params in ["large-3", "large-3-nvfp4", "small-4-119b", "ministral-3-8b"] {
        for inventory in ["8xh200", "16xh100", "mixed"] {
            let name = format!("{params}-on-{inventory}.txt");
            let output = plan(
                &format!("{params}.json"),
                &example(&format!("{inventory}.toml")),
                &[],
            );
            assert!(output.status.success(), "{name}: {}", text(&output.stderr));
            let (found, file) = (text(&output.stdout), folder.join(&name));
            if std::env::var_os("RECORD_PLANS").is_some() {
                std::fs::write(&file, &found).expect("the record is written");
            }
            let recorded = std::fs::read_to_string(&file).unwrap_or_default();
            if found != recorded {
                changed.push(format!("{name}\nrecorded:\n{recorded}\nfound:\n{found}"));
            }
        }
    }
    assert!(changed.is_empty(), "{}", changed.join("\n"));
}

/// The same as JSON: no device holds more than it may use, the parts are the model, and what is said of losses follows
/// from what the other hosts have.
#[test]
fn plans_add_up() {
    // FP8 weights of the language model in bytes, from the published shapes: blocks of 128 x 128 have a scale of four
    // bytes here.
    for (inventory, usable, survives) in [
        ("8xh200", vec![("h200", 8, 140 * GIB / 100 * 90)], false),
        ("16xh100", vec![("h100-1", 8, 79 * GIB / 100 * 90)], false),
        (
            "mixed",
            vec![
                ("h100-1", 4, 79 * GIB / 100 * 90),
                ("mi300x-2", 2, 191 * GIB / 100 * 90),
                ("ada-1", 4, 44 * GIB),
            ],
            true,
        ),
    ] {
        let output = plan(
            "large-3.json",
            &example(&format!("{inventory}.toml")),
            &["--json"],
        );
        assert!(output.status.success(), "{}", text(&output.stderr));
        let plan: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let weights = plan["model"]["weight_bytes"].as_u64().expect("bytes");
        assert!((675_000_000_000..685_000_000_000).contains(&weights), "{weights}");
        for replica in plan["replicas"].as_array().expect("replicas") {
            let devices = replica["devices"].as_array().expect("devices");
            let bytes = |device: &Value, field: &str| device[field].as_u64().expect("bytes");
            let held: u64 = devices.iter().map(|device| bytes(device, "weight_bytes")).sum();
            assert!(held >= weights, "{inventory}: {held} of {weights}");
            for (host, count, usable) in &usable {
                let named = |device: &&Value| {
                    let name = device["device"].as_str().expect("a name");
                    name.split_once('/').is_some_and(|(of, _)| of == *host)
                };
                let of_host: Vec<&Value> = devices.iter().filter(named).collect();
                assert!(of_host.len() <= *count);
                for device in of_host {
                    let fields = [
                        "weight_bytes",
                        "cache_bytes",
                        "scratch_bytes",
                        "copy_bytes",
                        "free_bytes",
                    ];
                    let all: u64 = fields.iter().map(|field| bytes(device, field)).sum();
                    assert_eq!(all, *usable, "{inventory}: {device}");
                }
            }
        }
        let losses = plan["losses"].as_array().expect("losses");
        assert!(!losses.is_empty());
        for loss in losses {
            let lost = loss["lost"].as_array().expect("a list");
            let anew = loss["placed_anew"].as_array().expect("a list");
            let untouched = loss["untouched"].as_u64().expect("a number");
            let goes_on = untouched > 0 || !anew.is_empty();
            assert_eq!(goes_on, survives, "{inventory}: {loss}");
            assert!(goes_on || !lost.is_empty(), "{inventory}: {loss}");
        }
    }
}

#[test]
fn what_does_not_fit_is_told_in_numbers() {
    let dir = tempfile::tempdir().expect("a folder");
    let small = dir.path().join("small.toml");
    let host = "[[hosts]]\nname = \"a\"\ndevices = [{ name = \"L4\", count = 4, memory = \"24GiB\" }]\n";
    std::fs::write(&small, host).expect("written");
    let output = plan("large-3.json", &small, &[]);
    assert!(!output.status.success());
    let said = text(&output.stderr);
    let have = 4 * (24 * GIB / 100 * 90);
    for part in ["it does not fit", &have.to_string(), "are missing"] {
        assert!(said.contains(part), "{said}");
    }
    let output = plan("large-3.json", &small, &["--cache-min", "9", "--cache-max", "8"]);
    assert!(text(&output.stderr).contains("--cache-min is 9"));
    let output = plan("nothing.json", &small, &[]);
    assert!(text(&output.stderr).contains("nothing.json"));
    let output = plan("large-3.json", &dir.path().join("none.toml"), &[]);
    assert!(text(&output.stderr).contains("none.toml"));
}

/// With figures of the devices a plan says how many tokens a second it comes to, and what bounds them; with figures of other
/// weights it says what would be right.
#[test]
fn tokens_per_second_are_predicted_from_figures() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("figures.json");
    let measured = Command::new(program())
        .args([
            "bench",
            "kernels",
            "--rows",
            "1",
            "--prefill",
            "none",
            "--context",
            "64",
        ])
        .args(["--repeats", "1", "--format", "fp8", "--shape"])
        .arg(root().join("cli/assets/mini-large-3/params.json"))
        .arg("--json")
        .arg(&file)
        .output()
        .expect("the program runs");
    assert!(measured.status.success(), "{}", text(&measured.stderr));
    let inventory = example("8xh200.toml");
    let figures = format!("H200={}", file.display());
    let output = plan("large-3.json", &inventory, &["--json", "--figures", &figures]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let predictions = found["replicas"][0]["predictions"]
        .as_array()
        .expect("predictions");
    let number = |prediction: &Value, field: &str| prediction[field].as_f64().expect("a number");
    let rates: Vec<f64> = (predictions.iter())
        .map(|prediction| number(prediction, "tokens_per_second"))
        .collect();
    assert_eq!(predictions.len(), 2, "{found}");
    // A lone sequence waits for the whole way; the parts are all of it.
    assert!((rates[0] * number(&predictions[0], "step_seconds") - 1.0).abs() < 1e-9);
    assert!(rates[1] > rates[0], "{rates:?}");
    for prediction in predictions {
        let parts = prediction["parts"].as_object().expect("parts").values();
        let sum: f64 = parts.map(|seconds| seconds.as_f64().expect("a number")).sum();
        assert!((sum / number(prediction, "step_seconds") - 1.0).abs() < 1e-9);
    }

    let printed = text(&plan("large-3.json", &inventory, &["--figures", &figures]).stdout);
    for part in [
        "predicted with 1 sequence",
        "predicted with 64 sequences",
        "links: 2.0 GB/s",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let other = plan("large-3-nvfp4.json", &inventory, &["--figures", &figures]);
    assert!(
        text(&other.stderr).contains("measure with --format nvfp4"),
        "{}",
        text(&other.stderr)
    );
    let unknown = format!("L4={}", file.display());
    let none = text(&plan("large-3.json", &inventory, &["--figures", &unknown]).stdout);
    assert!(
        none.contains("nothing is predicted: there are no figures of \"H200\""),
        "{none}"
    );
}
