//! Checkpoints that must be refused, each with the file or tensor named and what would be right.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use tempfile::TempDir;
use tramontane_model::checkpoint::{Checkpoint, CheckpointError, Faults, MAX_FAULTS};

use crate::support::{Tensor, changed, named, read_all, repository, write_file};

const INDEX: &str = "consolidated.safetensors.index.json";

fn fp8() -> std::path::PathBuf {
    repository("tests/fixtures/micro-fp8")
}

fn faults(error: CheckpointError) -> Faults {
    let text = error.to_string();
    let CheckpointError::Faults { faults, .. } = error else {
        panic!("expected faults, got {text}")
    };
    faults
}

/// What validation says of the three-shard fixture with its tensors changed.
fn refused(change: impl FnOnce(&mut Vec<Tensor>)) -> Faults {
    let copy = changed(&fp8(), change);
    let checkpoint = Checkpoint::open(copy.path()).expect("the files are sound");
    let spec = checkpoint.spec().expect("a spec");
    faults(checkpoint.validate(&spec).expect_err("the model is not complete"))
}

/// A copy of the three-shard fixture, file by file.
fn shards() -> TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    for file in fs::read_dir(fp8()).expect("a folder") {
        let file = file.expect("an entry");
        fs::copy(file.path(), copy.path().join(file.file_name())).expect("copied");
    }
    copy
}

fn edit(dir: &Path, file: &str, from: &str, to: &str) {
    let path = dir.join(file);
    let text = fs::read_to_string(&path).expect("text");
    assert!(text.contains(from), "nothing to change");
    fs::write(path, text.replacen(from, to, 1)).expect("written");
}

fn open_error(dir: &Path) -> String {
    Checkpoint::open(dir).expect_err("refused").to_string()
}

#[test]
fn tensors_that_do_not_fit_the_spec_are_refused_by_name() {
    type Change = fn(&mut Vec<Tensor>);
    let cases: [(Change, &str); 8] = [
        (
            |t| t.retain(|tensor| tensor.name != "norm.weight"),
            "tensor norm.weight is missing, expected with shape [128]",
        ),
        (
            |t| named(t, "layers.0.attention.wo.weight").shape = vec![64, 256],
            "consolidated.safetensors: tensor layers.0.attention.wo.weight has shape [64, 256], the model needs [128, 128]",
        ),
        (
            |t| named(t, "layers.1.attention_norm.weight").dtype = Dtype::F16,
            "tensor layers.1.attention_norm.weight has dtype F16, expected BF16",
        ),
        (
            |t| {
                let gate = named(t, "layers.1.gate.weight");
                gate.dtype = Dtype::F8_E4M3;
                gate.bytes.truncate(8 * 128);
            },
            "tensor layers.1.gate.weight has dtype F8_E4M3, expected BF16",
        ),
        (
            |t| named(t, "layers.1.attention.wq_a.weight").dtype = Dtype::I16,
            "tensor layers.1.attention.wq_a.weight has dtype I16, expected BF16 or F8_E4M3",
        ),
        (
            |t| t.retain(|tensor| tensor.name != "layers.2.experts.6.w3.weight_scale"),
            "tensor layers.2.experts.6.w3.weight_scale is missing, expected with shape [1, 1]",
        ),
        (
            |t| {
                let scale = named(t, "layers.0.feed_forward.w2.weight_scale");
                scale.shape.reverse();
            },
            "tensor layers.0.feed_forward.w2.weight_scale has shape [3, 1], the model needs [1, 3]",
        ),
        (
            |t| named(t, "layers.0.attention.wq_b.weight_scale").dtype = Dtype::F16,
            "tensor layers.0.attention.wq_b.weight_scale has dtype F16, expected BF16 or F32",
        ),
    ];
    for (change, expected) in cases {
        let faults = refused(change);
        assert_eq!(faults.total(), 1, "{faults}");
        assert!(faults.to_string().contains(expected), "{faults}\n{expected}");
    }
}

#[test]
fn experts_of_a_layer_have_one_format() {
    let faults = refused(|tensors| {
        let expert = named(tensors, "layers.3.experts.4.w2.weight");
        expert.dtype = Dtype::BF16;
        expert.bytes = vec![0; 2 * expert.bytes.len()];
    });
    let expected =
        "layers.3.experts.4.w2.weight has dtype BF16, expected F8_E4M3 as in the layer's first expert";
    assert!(
        faults.total() == 1 && faults.to_string().contains(expected),
        "{faults}"
    );
}

#[test]
fn all_faults_come_at_once_and_are_bounded() {
    let two = refused(|tensors| {
        named(tensors, "output.weight").shape = vec![128, 2048];
        tensors.retain(|tensor| tensor.name != "tok_embeddings.weight");
    });
    assert_eq!(two.total(), 2, "{two}");
    let all = refused(Vec::clear);
    assert_eq!((all.total(), all.kept().len()), (126, MAX_FAULTS));
    assert!(all.to_string().ends_with("; and 94 more faults"), "{all}");
}

#[test]
fn unknown_tensors_are_counted_and_not_refused() {
    let copy = changed(&fp8(), |tensors| {
        let mut extra = named(tensors, "norm.weight").clone();
        extra.name = "layers.0.attention.extra.weight".to_owned();
        tensors.push(extra);
    });
    let checkpoint = Checkpoint::open(copy.path()).expect("opened");
    let spec = checkpoint.spec().expect("a spec");
    let inventory = checkpoint.validate(&spec).expect("complete");
    assert_eq!((inventory.unknown_tensors, inventory.vision_tensors), (1, 24));
    assert_eq!(inventory.unknown_names, ["layers.0.attention.extra.weight"]);
}

#[test]
fn a_nan_code_is_found_with_its_place_in_the_file() {
    let name = "layers.2.experts.1.w1.weight";
    let copy = changed(&fp8(), |tensors| {
        named(tensors, name).bytes[1234] = 0xff;
        named(tensors, "layers.2.experts.1.w1.weight_scale")
            .bytes
            .copy_from_slice(&[0x80, 0x7f]);
    });
    let checkpoint = Checkpoint::open(copy.path()).expect("opened");
    let view = checkpoint.tensor(name).expect("the tensor");
    let error = view.check_finite().expect_err("a nan");
    let file = fs::read(copy.path().join(&error.file)).expect("the file");
    assert_eq!(file[error.offset as usize], 0xff);
    assert_eq!((error.name.as_str(), error.offset), (name, view.offset() + 1234));
    let row = view
        .rows(9..10)
        .expect("a row")
        .check_finite()
        .expect_err("in row 9 of 128 columns");
    assert_eq!(row, error);
    assert!(view.rows(0..9).expect("rows").check_finite().is_ok());
    assert!(view.rows(10..64).expect("rows").check_finite().is_ok());
    let spec = checkpoint.spec().expect("a spec");
    let id = tramontane_model::tensors::expert_tensors(&spec, 2, 1)[0].id;
    let scales = checkpoint
        .weight(&spec, id)
        .expect("the weight")
        .scales_f32()
        .expect_err("an infinite scale");
    assert!(
        scales
            .to_string()
            .contains("w1.weight_scale has a BF16 value that is not finite"),
        "{scales}"
    );
}

#[test]
fn folders_without_a_model_are_refused() {
    let empty = tempfile::tempdir().expect("a folder");
    assert!(open_error(empty.path()).contains("params.json: cannot be read"));
    fs::copy(fp8().join("params.json"), empty.path().join("params.json")).expect("copied");
    let none = open_error(empty.path());
    assert!(
        none.contains("has neither consolidated.safetensors.index.json nor consolidated.safetensors"),
        "{none}"
    );
    fs::create_dir(empty.path().join("consolidated.safetensors")).expect("a folder");
    assert!(
        open_error(empty.path())
            .contains("consolidated.safetensors: cannot be read: it is not a regular file")
    );
    fs::remove_dir(empty.path().join("consolidated.safetensors")).expect("removed");
    fs::write(empty.path().join("consolidated.safetensors"), []).expect("written");
    assert!(open_error(empty.path()).contains("consolidated.safetensors: has 0 bytes"));
}

#[test]
fn truncated_shards_are_refused() {
    let shard = "consolidated-00002-of-00003.safetensors";
    let whole = fs::read(fp8().join(shard)).expect("a shard");
    let header = u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
    for length in [
        0,
        7,
        8,
        100,
        8 + header - 1,
        8 + header,
        whole.len() / 2,
        whole.len() - 1,
    ] {
        let copy = shards();
        fs::write(copy.path().join(shard), &whole[..length]).expect("written");
        let text = open_error(copy.path());
        assert!(text.contains(shard), "{length}: {text}");
    }
}

#[test]
fn what_an_index_gets_wrong_is_refused() {
    let third = "consolidated-00003-of-00003.safetensors";
    let output = "\"output.weight\": \"consolidated-00003-of-00003.safetensors\"";
    let cases = [
        (
            "consolidated-00002-of",
            "../consolidated-00002-of",
            "names the file \"../consolidated-00002-of",
        ),
        (
            "consolidated-00002-of",
            "/etc/consolidated-00002-of",
            "expected a file name that ends in .safetensors",
        ),
        (
            "\"weight_map\"",
            "\"weights\"",
            "is not an index with a weight_map: missing field `weight_map`",
        ),
        (
            output,
            &format!("{output}, {output}"),
            "names tensor output.weight twice",
        ),
        (
            output,
            "\"output.weight\": 3",
            "tensor output.weight: invalid type: integer `3`",
        ),
        (
            output,
            "\"output.weight\": \"consolidated-00009-of-00009.safetensors\"",
            "consolidated-00009-of-00009.safetensors: is named by the index and cannot be read",
        ),
        (
            output,
            "\"output.weight\": \"consolidated-00001-of-00003.safetensors\"",
            "tensor output.weight is not in consolidated-00001-of-00003.safetensors, where the index says it is",
        ),
        (
            output,
            &format!("{output}, \"lost.weight\": \"{third}\""),
            "tensor lost.weight is not in consolidated-00003",
        ),
    ];
    for (from, to, expected) in cases {
        let copy = shards();
        edit(copy.path(), INDEX, from, to);
        let text = open_error(copy.path());
        assert!(text.contains(expected), "{text}\n{expected}");
    }
    let copy = shards();
    fs::write(copy.path().join(INDEX), "{\"weight_map\": {}}").expect("written");
    assert!(open_error(copy.path()).contains("names 0 files, expected 1 to 4096"));
}

#[test]
fn a_shard_that_is_gone_and_a_tensor_in_two_files_are_both_named() {
    let copy = shards();
    fs::remove_file(copy.path().join("consolidated-00001-of-00003.safetensors")).expect("removed");
    let mut output = read_all(&fp8());
    output.retain(|tensor| tensor.name == "output.weight");
    let second = "consolidated-00002-of-00003.safetensors";
    write_file(&copy.path().join(second), &output);
    let text = open_error(copy.path());
    assert!(
        text.contains("consolidated-00001-of-00003.safetensors: is named by the index and cannot be read"),
        "{text}"
    );
    let expected =
        format!("tensor output.weight is both in {second} and in consolidated-00003-of-00003.safetensors");
    assert!(text.contains(&expected), "{text}");
}
