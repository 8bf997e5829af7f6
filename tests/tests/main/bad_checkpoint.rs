//! Checkpoints that cannot be used: whoever reads them says which file and tensor, and what would be right.

use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tramontane_tests::checkpoint::{Copy, Tensors};
use tramontane_tests::cluster::{Cluster, READY_WITHIN};
use tramontane_tests::config::{Plan, addresses, write_coordinator, write_token, write_worker};
use tramontane_tests::fixtures::{fixture, mini};
use tramontane_tests::process::{program, run};
use tramontane_tests::wait::need;

const WEIGHTS: &str = "consolidated.safetensors";
/// Two tensors of one shape.
const NORM: &str = "norm.weight";
const OTHER_NORM: &str = "layers.0.attention_norm.weight";

/// What is wrong, how it is made so, and what must be said of it.
struct Fault {
    what: &'static str,
    make: fn(&Copy),
    says: &'static [&'static str],
}

/// A fault within the header of the weights.
fn header(copy: &Copy, change: impl FnOnce(&mut Tensors)) {
    copy.tensors(WEIGHTS, change);
}

const FAULTS: &[Fault] = &[
    Fault {
        what: "no params.json",
        make: |copy| std::fs::remove_file(copy.path().join("params.json")).expect("removes"),
        says: &["params.json", "cannot be read"],
    },
    Fault {
        what: "an impossible params.json",
        make: |copy| {
            copy.edit("params.json", |params| {
                params["n_heads"] = json!(0);
                params["moe"]["num_experts_per_tok"] = json!(99);
            });
        },
        says: &["params.json", "n_heads", "num_experts_per_tok"],
    },
    Fault {
        what: "no weights",
        make: |copy| std::fs::remove_file(copy.path().join(WEIGHTS)).expect("removes"),
        says: &["has neither consolidated.safetensors.index.json nor consolidated.safetensors"],
    },
    Fault {
        what: "a missing tensor",
        make: |copy| {
            header(copy, |tensors| {
                let all = tensors.header.as_object_mut().expect("an object");
                let norm = all.shift_remove(NORM).expect("a tensor");
                all.insert("norm.wait".to_owned(), norm);
            });
        },
        says: &["tensor norm.weight is missing, expected with shape [128]"],
    },
    Fault {
        what: "a wrong shape",
        make: |copy| header(copy, |tensors| tensors.header[NORM]["shape"] = json!([64, 2])),
        says: &[
            WEIGHTS,
            "tensor norm.weight has shape [64, 2], the model needs [128]",
        ],
    },
    Fault {
        what: "a wrong dtype",
        make: |copy| header(copy, |tensors| tensors.header[NORM]["dtype"] = json!("F16")),
        says: &[WEIGHTS, "tensor norm.weight has dtype F16, expected BF16"],
    },
    Fault {
        what: "a truncated file",
        make: |copy| copy.bytes(WEIGHTS, |bytes| bytes.truncate(bytes.len() - 1000)),
        says: &[WEIGHTS, "expected a range within the"],
    },
    Fault {
        what: "a file that ends in its header",
        make: |copy| copy.bytes(WEIGHTS, |bytes| bytes.truncate(100)),
        says: &[WEIGHTS, "is truncated: its header ends at byte"],
    },
    Fault {
        what: "offsets past the end",
        make: |copy| {
            header(copy, |tensors| {
                let end = tensors.data.len();
                tensors.header[NORM]["data_offsets"] = json!([end, end + 256]);
            });
        },
        says: &[
            WEIGHTS,
            "tensor norm.weight has the offsets",
            "bytes of data that the file has",
        ],
    },
    Fault {
        what: "overlapping offsets",
        make: |copy| {
            header(copy, |tensors| {
                let (begin, end) = tensors.offsets(OTHER_NORM);
                tensors.header[NORM]["data_offsets"] = json!([begin, end]);
            });
        },
        says: &[WEIGHTS, "begins at byte", NORM, OTHER_NORM],
    },
    Fault {
        what: "a header that claims 1 GB",
        make: |copy| {
            copy.bytes(WEIGHTS, |bytes| {
                bytes[..8].copy_from_slice(&(1_u64 << 30).to_le_bytes())
            })
        },
        says: &[WEIGHTS, "claims a header of 1073741824 bytes, expected at most"],
    },
];

/// The same in Hugging Face's layout.
const HUGGING_FACE_FAULTS: &[Fault] = &[
    Fault {
        what: "an impossible config.json",
        make: |copy| {
            copy.edit("config.json", |config| {
                config["num_key_value_heads"] = json!(3);
                config["rope_parameters"]["mscale_all_dim"] = json!(0.5);
            });
        },
        says: &[
            "config.json",
            "num_key_value_heads is 3, expected a divisor of the number of heads, which is 4",
            "rope_parameters.mscale_all_dim is 0.5",
        ],
    },
    Fault {
        what: "another architecture",
        make: |copy| copy.edit("config.json", |config| config["model_type"] = json!("llama")),
        says: &["config.json", "model_type is \"llama\", expected ministral3"],
    },
    Fault {
        what: "no weights in Hugging Face's layout",
        make: |copy| std::fs::remove_file(copy.path().join("model.safetensors")).expect("removes"),
        says: &["has neither model.safetensors.index.json nor model.safetensors"],
    },
    Fault {
        what: "a missing head that is not tied",
        make: |copy| {
            copy.tensors("model.safetensors", |tensors| {
                let all = tensors.header.as_object_mut().expect("an object");
                let head = all.shift_remove("lm_head.weight").expect("a tensor");
                all.insert("lm_tail.weight".to_owned(), head);
            });
        },
        says: &["tensor lm_head.weight is missing, expected with shape [2048, 128]"],
    },
    Fault {
        what: "keys of another shape",
        make: |copy| {
            copy.tensors("model.safetensors", |tensors| {
                let keys = &mut tensors.header["model.layers.2.self_attn.k_proj.weight"];
                keys["shape"] = json!([128, 64]);
            });
        },
        says: &[
            "model.safetensors",
            "tensor model.layers.2.self_attn.k_proj.weight has shape [128, 64], the model needs [64, 128]",
        ],
    },
];

/// Starts a coordinator or a worker of a checkpoint; it must end with an error that says every part.
async fn refused(role: &str, copy: &Copy, what: &str, says: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory");
    write_token(dir.path());
    let mut plan = Plan::new(1);
    plan.model = copy.path().to_owned();
    let all = addresses(&plan);
    let config = if role == "worker" {
        write_worker(dir.path(), &plan, &all, 1, ([127, 0, 0, 1], 0).into())
    } else {
        write_coordinator(dir.path(), &plan, &all, 1)
    };
    let mut command = Command::new(program());
    command.args([role, "--config"]).arg(config);
    let ran = run(command, Duration::from_secs(60)).await;
    assert_eq!(ran.code, Some(1), "{what}: {ran:?}");
    let folder = copy.path().to_string_lossy();
    for part in [&[&*folder], says].concat() {
        assert!(
            ran.stderr.contains(part),
            "{what}: {role} does not say {part:?}: {}",
            ran.stderr
        );
    }
}

#[tokio::test]
async fn faults_of_the_files_are_told_at_the_start() {
    for (name, faults) in [
        ("micro-bf16", FAULTS),
        ("micro-ministral-hf", HUGGING_FACE_FAULTS),
    ] {
        for fault in faults {
            let copy = Copy::of(&fixture(name));
            (fault.make)(&copy);
            refused("worker", &copy, fault.what, fault.says).await;
            refused("coordinator", &copy, fault.what, fault.says).await;
        }
    }
}

/// Companions of quantised weights, in the header of the one file that the fixture has.
#[tokio::test]
async fn faults_of_scales_are_told_at_the_start() {
    const STEM: &str = "layers.2.experts.3.w2";
    let renamed = |tensors: &mut Tensors, from: &str| {
        let all = tensors.header.as_object_mut().expect("an object");
        let tensor = all.shift_remove(from).expect("a tensor");
        all.insert("layers.9.lost".to_owned(), tensor);
    };
    for (fixture_name, scale, weight, shape) in [
        (
            "micro-fp8-tensor",
            "qscale_weight",
            "weight has dtype F8_E4M3",
            "[1]",
        ),
        (
            "micro-nvfp4",
            "weight_scale",
            "weight_packed has dtype U8",
            "[128, 4]",
        ),
        (
            "micro-nvfp4",
            "weight_global_scale",
            "weight_packed has dtype U8",
            "[1]",
        ),
    ] {
        let copy = Copy::of(&fixture(fixture_name));
        let name = format!("{STEM}.{scale}");
        header(&copy, |tensors| renamed(tensors, &name));
        let says = format!(
            "{WEIGHTS}: tensor {STEM}.{weight} and needs tensor {name} with shape {shape}, which is in no file"
        );
        refused("worker", &copy, fixture_name, &[&says]).await;
        refused("coordinator", &copy, fixture_name, &[&says]).await;
    }
}

#[tokio::test]
async fn a_tokenizer_of_another_model_is_refused() {
    let copy = Copy::of(&fixture("micro-bf16"));
    let theirs = mini().join("tekken.json");
    std::fs::copy(theirs, copy.path().join("tekken.json")).expect("copies");
    let says = [
        "tekken.json",
        "config.default_vocab_size is 8192, the model has vocab_size",
    ];
    refused("coordinator", &copy, "another tokenizer", &says).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_weight_that_is_no_number_is_told_in_the_status() {
    const TENSOR: &str = "layers.2.experts.3.w2.weight";
    let copy = Copy::of(&fixture("micro-fp8"));
    let index = std::fs::read_to_string(copy.path().join("consolidated.safetensors.index.json"));
    let index: serde_json::Value = serde_json::from_str(&index.expect("an index")).expect("JSON");
    let file = index["weight_map"][TENSOR]
        .as_str()
        .expect("a tensor of the index")
        .to_owned();
    copy.tensors(&file, |tensors| {
        let (begin, _) = tensors.offsets(TENSOR);
        // The two codes of E4M3 that are no numbers are 0x7f and 0xff.
        tensors.data[begin + 5] = 0x7f;
    });
    let mut plan = Plan::new(1).set("placement.settle_ms = 500");
    plan.model = copy.path().to_owned();
    let mut cluster = Cluster::launch(plan).await;
    let said = cluster
        .until_status("a device that failed", READY_WITHIN, |status| {
            let node = status.node("worker-1").ok_or("it has not joined")?;
            let device = node.devices.first().ok_or("it has no device")?;
            let state = &device.state;
            need(state.starts_with("failed") || state.contains(TENSOR), || {
                format!("{status:?}")
            })?;
            Ok(state.clone())
        })
        .await;
    for part in [&*file, TENSOR, "F8_E4M3", "not finite", "expected numbers only"] {
        assert!(said.contains(part), "{part:?} is not said: {said}");
    }
    let answer = cluster.client(1).get("/readyz").await.expect("an answer");
    assert_eq!(answer.status, 503);
    // Neither process ends over it.
    cluster.check_alive();
}
