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
    refused_of("micro-fp8", change)
}

/// What validation says of a fixture with its tensors changed.
fn refused_of(fixture: &str, change: impl FnOnce(&mut Vec<Tensor>)) -> Faults {
    let copy = changed(&repository("tests/fixtures").join(fixture), change);
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
            "consolidated.safetensors: tensor layers.2.experts.6.w3.weight has dtype F8_E4M3 and needs tensor layers.2.experts.6.w3.weight_scale with shape [1, 1], which is in no file",
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

const W1: &str = "layers.0.feed_forward.w1";
const EXPERT: &str = "layers.2.experts.6.w2";

fn of<'a>(tensors: &'a mut [Tensor], stem: &str, suffix: &str) -> &'a mut Tensor {
    named(tensors, &format!("{stem}.{suffix}"))
}

fn without(tensors: &mut Vec<Tensor>, stem: &str, suffix: &str) {
    let name = format!("{stem}.{suffix}");
    tensors.retain(|tensor| tensor.name != name);
}

/// Another shape and dtype, with bytes to fit.
fn recast(tensor: &mut Tensor, dtype: Dtype, width: usize, shape: &[usize]) {
    tensor.dtype = dtype;
    tensor.shape = shape.to_vec();
    tensor.bytes = vec![0x38; width * shape.iter().product::<usize>()];
}

/// Each formats' own ways to be wrong: one fault, which names the file, the tensor and what would be right.
#[test]
fn scales_and_codes_that_do_not_fit_are_refused_by_name() {
    type Change = fn(&mut Vec<Tensor>);
    let fp8_tensor: [(Change, &str); 5] = [
        (
            |t| without(t, W1, "qscale_weight"),
            "tensor layers.0.feed_forward.w1.weight has dtype F8_E4M3 and needs tensor layers.0.feed_forward.w1.qscale_weight with shape [1], which is in no file",
        ),
        (
            |t| recast(of(t, EXPERT, "qscale_weight"), Dtype::F32, 4, &[2]),
            "tensor layers.2.experts.6.w2.qscale_weight has shape [2], the model needs [1]",
        ),
        (
            |t| recast(of(t, EXPERT, "qscale_weight"), Dtype::F16, 2, &[]),
            "tensor layers.2.experts.6.w2.qscale_weight has dtype F16, expected BF16 or F32",
        ),
        (
            |t| recast(of(t, W1, "weight"), Dtype::F8_E5M2, 1, &[320, 128]),
            "tensor layers.0.feed_forward.w1.weight has dtype F8_E5M2, expected BF16 or F8_E4M3",
        ),
        (
            |t| {
                let mut blocks = of(t, W1, "qscale_weight").clone();
                blocks.name = format!("{W1}.weight_scale");
                t.push(blocks);
            },
            "tensor layers.0.feed_forward.w1.weight_scale is there beside layers.0.feed_forward.w1.qscale_weight of consolidated.safetensors, expected one of them",
        ),
    ];
    let nvfp4: [(Change, &str); 12] = [
        (
            |t| without(t, W1, "weight_packed"),
            "tensor layers.0.feed_forward.w1.weight_packed is missing, expected with shape [320, 64]",
        ),
        (
            |t| recast(of(t, W1, "weight_packed"), Dtype::U8, 1, &[320, 63]),
            "tensor layers.0.feed_forward.w1.weight_packed has shape [320, 63], the model needs [320, 64]",
        ),
        (
            |t| recast(of(t, EXPERT, "weight_packed"), Dtype::U8, 1, &[128, 64]),
            "tensor layers.2.experts.6.w2.weight_packed has shape [128, 64], the model needs [128, 32]",
        ),
        (
            |t| recast(of(t, W1, "weight_packed"), Dtype::I8, 1, &[320, 64]),
            "tensor layers.0.feed_forward.w1.weight_packed has dtype I8, expected U8",
        ),
        (
            |t| without(t, EXPERT, "weight_scale"),
            "tensor layers.2.experts.6.w2.weight_packed has dtype U8 and needs tensor layers.2.experts.6.w2.weight_scale with shape [128, 4], which is in no file",
        ),
        (
            |t| recast(of(t, EXPERT, "weight_scale"), Dtype::F8_E4M3, 1, &[128, 8]),
            "tensor layers.2.experts.6.w2.weight_scale has shape [128, 8], the model needs [128, 4]",
        ),
        (
            |t| recast(of(t, EXPERT, "weight_scale"), Dtype::BF16, 2, &[128, 4]),
            "tensor layers.2.experts.6.w2.weight_scale has dtype BF16, expected F8_E4M3",
        ),
        (
            |t| without(t, EXPERT, "weight_global_scale"),
            "tensor layers.2.experts.6.w2.weight_packed has dtype U8 and needs tensor layers.2.experts.6.w2.weight_global_scale with shape [1], which is in no file",
        ),
        (
            |t| recast(of(t, EXPERT, "weight_global_scale"), Dtype::F32, 4, &[128]),
            "tensor layers.2.experts.6.w2.weight_global_scale has shape [128], the model needs [1]",
        ),
        (
            |t| recast(of(t, EXPERT, "weight_global_scale"), Dtype::BF16, 2, &[1]),
            "tensor layers.2.experts.6.w2.weight_global_scale has dtype BF16, expected F32",
        ),
        (
            |t| {
                let mut plain = of(t, W1, "weight_packed").clone();
                plain.name = format!("{W1}.weight");
                t.push(plain);
            },
            "tensor layers.0.feed_forward.w1.weight is there beside layers.0.feed_forward.w1.weight_packed of consolidated.safetensors, expected one of them",
        ),
        (
            |t| {
                // The gate alone in NVFP4.
                let gate = named(t, "layers.1.gate.weight").clone();
                t.retain(|tensor| tensor.name != gate.name);
                t.push(Tensor {
                    name: "layers.1.gate.weight_packed".to_owned(),
                    ..gate
                });
            },
            "tensor layers.1.gate.weight is missing, expected with shape [8, 128]",
        ),
    ];
    let cases = fp8_tensor.into_iter().map(|case| ("micro-fp8-tensor", case));
    for (fixture, (change, expected)) in cases.chain(nvfp4.into_iter().map(|case| ("micro-nvfp4", case))) {
        let faults = refused_of(fixture, change);
        assert_eq!(faults.total(), 1, "{faults}");
        let text = faults.to_string();
        assert!(text.contains(expected), "{text}\n{expected}");
        assert!(
            text.contains("consolidated.safetensors: tensor ") || text.contains(" is missing, "),
            "{text}"
        );
    }
}

/// What the header of a file says, for files of each format.
#[test]
fn truncated_files_and_bad_offsets_of_every_format_are_refused_by_name() {
    for fixture in ["micro-bf16", "micro-fp8-tensor", "micro-nvfp4", "micro-small4"] {
        let folder = repository("tests/fixtures").join(fixture);
        let file = "consolidated.safetensors";
        let whole = fs::read(folder.join(file)).expect("a file");
        let header = u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
        let text = std::str::from_utf8(&whole[8..8 + header]).expect("text");
        let tensors: serde_json::Value = serde_json::from_str(text).expect("a header");
        let last = tensors.as_object().expect("an object").iter();
        let last = last.filter(|(name, _)| *name != "__metadata__");
        let (last, _) = last
            .max_by_key(|(_, tensor)| tensor["data_offsets"][1].as_u64())
            .expect("a tensor");
        let begin = tensors[last]["data_offsets"][0].as_u64().expect("an offset");
        let copy = tempfile::tempdir().expect("a folder");
        fs::copy(folder.join("params.json"), copy.path().join("params.json")).expect("copied");
        let open = |bytes: &[u8]| {
            fs::write(copy.path().join(file), bytes).expect("written");
            open_error(copy.path())
        };
        let cut = open(&whole[..whole.len() - 1]);
        let expected = format!("{file}: tensor {last} has the offsets {begin}..");
        assert!(
            cut.contains(&expected) && cut.contains("expected a range within the"),
            "{cut}"
        );
        let with = |from: u64, to: u64| {
            let mut tensors = tensors.clone();
            tensors[last]["data_offsets"] = serde_json::json!([from, to]);
            let header = tensors.to_string();
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.extend(&whole[8 + text.len()..]);
            open(&bytes)
        };
        let end = tensors[last]["data_offsets"][1].as_u64().expect("an offset");
        let overlapping = with(begin - 1, end - 1);
        assert!(
            overlapping.contains(&format!("{file}: tensor {last} begins at byte {}", begin - 1)),
            "{overlapping}"
        );
        let short = with(begin, end - 1);
        assert!(short.contains(&format!("{file}: tensor {last} spans")), "{short}");
    }
}

#[test]
fn a_scale_that_is_missing_from_its_shard_is_told_with_the_weights_file() {
    let scale = "layers.1.experts.0.w1.weight_scale";
    let copy = shards();
    for file in fs::read_dir(copy.path()).expect("a folder") {
        let path = file.expect("an entry").path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            let bytes = fs::read(&path).expect("a file");
            let parsed = safetensors::SafeTensors::deserialize(&bytes).expect("a shard");
            let kept = parsed
                .iter()
                .filter(|(name, _)| *name != scale)
                .map(|(name, view)| Tensor {
                    name: name.to_owned(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    bytes: view.data().to_vec(),
                });
            write_file(&path, &kept.collect::<Vec<_>>());
        }
    }
    let text = open_error(copy.path());
    assert!(
        text.contains(&format!("tensor {scale} is not in consolidated-0000")),
        "{text}"
    );
    let index = fs::read_to_string(copy.path().join(INDEX)).expect("an index");
    let mut index: serde_json::Value = serde_json::from_str(&index).expect("an index");
    let files = index["weight_map"].as_object_mut().expect("a map");
    files.remove(scale);
    let file = files["layers.1.experts.0.w1.weight"]
        .as_str()
        .expect("a file")
        .to_owned();
    fs::write(copy.path().join(INDEX), index.to_string()).expect("written");
    let checkpoint = Checkpoint::open(copy.path()).expect("the files are sound");
    let spec = checkpoint.spec().expect("a spec");
    let text = faults(checkpoint.validate(&spec).expect_err("refused")).to_string();
    let expected = format!(
        "{file}: tensor layers.1.experts.0.w1.weight has dtype F8_E4M3 and needs tensor {scale} with shape [1, 1], which is in no file"
    );
    assert_eq!(text, expected);
}

#[test]
fn matrices_that_are_read_together_have_one_format() {
    let faults = refused(|tensors| {
        let expert = named(tensors, "layers.3.experts.4.w2.weight");
        expert.dtype = Dtype::BF16;
        expert.bytes = vec![0; 2 * expert.bytes.len()];
    });
    let expected = "consolidated.safetensors: tensor layers.3.experts.4.w2.weight is stored in BF16, expected FP8 with a scale per block as layers.3.experts.0.w2.weight";
    assert!(
        faults.total() == 1 && faults.to_string().contains(expected),
        "{faults}"
    );
    let faults = refused_of("micro-fp8-tensor", |tensors| {
        let up = named(tensors, "layers.0.feed_forward.w3.weight");
        up.dtype = Dtype::BF16;
        up.bytes = vec![0; 2 * up.bytes.len()];
    });
    let expected = "tensor layers.0.feed_forward.w3.weight is stored in BF16, expected FP8 with one scale as layers.0.feed_forward.w1.weight";
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
        .multipliers()
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
