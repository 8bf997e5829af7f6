//! The fixtures, against the safetensors crate and numbers taken from their headers by hand.

use tramontane_model::checkpoint::Checkpoint;
use tramontane_model::dtype::{Dtype, bf16_to_f32};
use tramontane_model::tensors::{FfnMatrix, LayerBytes, LayerTensor, Shape, TensorId, WeightFormat};

use crate::support::{changed, named, read_all, repository, write_file};

const MINI: &str = "cli/assets/mini-large-3";
const MICRO_FP8: &str = "tests/fixtures/micro-fp8";
const MICRO_BF16: &str = "tests/fixtures/micro-bf16";
const MICRO_FP8_TENSOR: &str = "tests/fixtures/micro-fp8-tensor";
const MICRO_NVFP4: &str = "tests/fixtures/micro-nvfp4";
const MICRO_SMALL4: &str = "tests/fixtures/micro-small4";
const ALL: [&str; 6] = [
    MINI,
    MICRO_FP8,
    MICRO_BF16,
    MICRO_FP8_TENSOR,
    MICRO_NVFP4,
    MICRO_SMALL4,
];

fn open(path: &str) -> Checkpoint {
    Checkpoint::open(&repository(path)).expect("a good checkpoint")
}

#[test]
fn every_tensor_is_what_the_safetensors_crate_reads() {
    for path in ALL {
        let checkpoint = open(path);
        let expected = read_all(&repository(path));
        assert_eq!(checkpoint.names().count(), expected.len());
        for tensor in expected {
            let found = checkpoint.tensor(&tensor.name).expect("the tensor");
            let shape: Vec<u64> = tensor.shape.iter().map(|&dim| dim as u64).collect();
            assert_eq!(found.shape(), shape, "{}", tensor.name);
            assert_eq!(
                found.dtype().name(),
                format!("{}", tensor.dtype),
                "{}",
                tensor.name
            );
            assert!(found.bytes() == tensor.bytes, "{} has other bytes", tensor.name);
            let file = std::fs::read(repository(path).join(found.file())).expect("its file");
            let at = found.offset() as usize;
            assert!(
                file[at..at + tensor.bytes.len()] == tensor.bytes,
                "{} is elsewhere",
                tensor.name
            );
        }
    }
}

#[test]
fn inventories_have_the_bytes_counted_by_hand() {
    let micro = |owner, expert| LayerBytes { owner, expert };
    let cases = [
        (
            MINI,
            320,
            18_909_128,
            [4_194_304, 4_194_816],
            micro(845_376, 0),
            micro(361_952, 98_352),
        ),
        (
            MICRO_BF16,
            126,
            3_040_256,
            [524_288, 524_544],
            micro(348_864, 0),
            micro(154_304, 49_152),
        ),
        (
            MICRO_FP8,
            126,
            2_106_588,
            [524_288, 524_544],
            micro(189_216, 0),
            micro(92_960, 24_624),
        ),
        (
            MICRO_FP8_TENSOR,
            126,
            2_106_752,
            [524_288, 524_544],
            micro(189_216, 0),
            micro(92_960, 24_624),
        ),
        (
            MICRO_NVFP4,
            126,
            1_910_096,
            [524_288, 524_544],
            micro(172_272, 0),
            micro(119_024, 13_872),
        ),
        (
            MICRO_SMALL4,
            186,
            2_513_552,
            [524_288, 524_544],
            micro(95_008, 24_624),
            micro(95_008, 24_624),
        ),
    ];
    for (path, tensors, file_bytes, ends, dense, moe) in cases {
        let checkpoint = open(path);
        let spec = checkpoint.spec().expect("a spec");
        let inventory = checkpoint.validate(&spec).expect("complete");
        assert_eq!(
            (inventory.language_tensors, inventory.language_file_bytes),
            (tensors, file_bytes),
            "{path}"
        );
        assert_eq!([inventory.bytes.embedding, inventory.bytes.head], ends, "{path}");
        assert_eq!(inventory.bytes.layers.len(), spec.n_layers as usize);
        assert_eq!(inventory.bytes.layers[0], dense, "{path}");
        assert!(
            inventory.bytes.layers[1..].iter().all(|&layer| layer == moe),
            "{path}"
        );
        assert_eq!(
            (inventory.vision_tensors, inventory.unknown_tensors),
            (24, 0),
            "{path}"
        );
    }
}

#[test]
fn usual_formats_are_those_of_the_fixtures() {
    for path in ALL {
        let checkpoint = open(path);
        let spec = checkpoint.spec().expect("a spec");
        let inventory = checkpoint.validate(&spec).expect("complete");
        assert_eq!(
            inventory.bytes,
            tramontane_model::tensors::ModelBytes::usual(&spec),
            "{path}"
        );
    }
}

/// Independent of the library: exponent by powers of two, the block by division of each index.
#[test]
fn fp8_weights_decode_to_code_times_block_scale() {
    let checkpoint = open(MINI);
    let spec = checkpoint.spec().expect("a spec");
    let layer_0 = |tensor| TensorId::Layer { layer: 0, tensor };
    for id in [
        layer_0(LayerTensor::Wo),
        layer_0(LayerTensor::WkvB),
        layer_0(LayerTensor::Dense(FfnMatrix::W2)),
        TensorId::Expert {
            layer: 3,
            expert: 7,
            matrix: FfnMatrix::W1,
        },
    ] {
        let weight = checkpoint.weight(&spec, id).expect("the weight");
        assert_eq!(weight.format(), WeightFormat::Fp8Block, "{id}");
        let Shape::Matrix { rows, cols } = weight.shape() else {
            panic!("{id} is a matrix")
        };
        let (codes, scales) = (weight.values().bytes(), weight.scales().expect("scales").bytes());
        let decoded = weight.to_f32();
        let scale_cols = cols.div_ceil(128);
        for row in 0..rows {
            for col in 0..cols {
                let at = (row * cols + col) as usize;
                let (exponent, mantissa) = (i32::from(codes[at] >> 3 & 15), f64::from(codes[at] & 7));
                let magnitude = match exponent {
                    0 => mantissa * 2_f64.powi(-9),
                    _ => (8.0 + mantissa) * 2_f64.powi(exponent - 10),
                };
                let sign = if codes[at] > 127 { -1.0 } else { 1.0 };
                let block = 2 * (row / 128 * scale_cols + col / 128) as usize;
                let scale = bf16_to_f32(u16::from_le_bytes([scales[block], scales[block + 1]]));
                assert_eq!(
                    decoded[at],
                    (sign * magnitude * f64::from(scale)) as f32,
                    "{id} [{row}, {col}]"
                );
            }
        }
    }
}

/// Independent of the library: powers of two, and the group by division of each index.
#[test]
fn nvfp4_weights_decode_to_code_times_scale_by_the_divisor() {
    let checkpoint = open(MICRO_NVFP4);
    let spec = checkpoint.spec().expect("a spec");
    for id in [
        TensorId::Layer {
            layer: 0,
            tensor: LayerTensor::Dense(FfnMatrix::W2),
        },
        TensorId::Expert {
            layer: 3,
            expert: 7,
            matrix: FfnMatrix::W1,
        },
    ] {
        let weight = checkpoint.weight(&spec, id).expect("the weight");
        assert_eq!(weight.format(), WeightFormat::Nvfp4, "{id}");
        let Shape::Matrix { rows, cols } = weight.shape() else {
            panic!("{id} is a matrix")
        };
        let (codes, scales) = (weight.values().bytes(), weight.scales().expect("scales").bytes());
        let multiplier = f64::from(weight.multipliers().expect("a multiplier")[0]);
        let decoded = weight.to_f32();
        let two_to = |power: i32| 2_f64.powi(power);
        for at in 0..(rows * cols) as usize {
            let code = if at % 2 == 0 {
                codes[at / 2] & 15
            } else {
                codes[at / 2] >> 4
            };
            let magnitude = match (code / 2 % 4, f64::from(code % 2)) {
                (0, half) => half / 2.0,
                (exponent, half) => (1.0 + half / 2.0) * two_to(i32::from(exponent) - 1),
            };
            let code = if code > 7 { -magnitude } else { magnitude };
            let scale = scales[at / 16];
            let scale = match (i32::from(scale >> 3 & 15), f64::from(scale & 7)) {
                (0, mantissa) => mantissa * two_to(-9),
                (exponent, mantissa) => (8.0 + mantissa) * two_to(exponent - 10),
            };
            let expected = (code * scale * multiplier) as f32;
            assert!(
                (decoded[at] - expected).abs() <= expected.abs() * 2e-7,
                "{id} {at}: {} {expected}",
                decoded[at]
            );
        }
    }
}

#[test]
fn fp8_with_one_scale_is_code_times_scale() {
    let checkpoint = open(MICRO_FP8_TENSOR);
    let spec = checkpoint.spec().expect("a spec");
    let id = TensorId::Layer {
        layer: 2,
        tensor: LayerTensor::WkvB,
    };
    let weight = checkpoint.weight(&spec, id).expect("the weight");
    assert_eq!(weight.format(), WeightFormat::Fp8Tensor);
    let scales = weight.multipliers().expect("a scale");
    assert_eq!(scales.len(), 1);
    let expected = weight.values().to_f32().into_iter().map(|code| code * scales[0]);
    assert!(expected.eq(weight.to_f32()));
}

#[test]
fn each_tensor_says_how_it_is_stored_whatever_params_json_says() {
    let donor = read_all(&repository(MICRO_FP8));
    let (wo, w2) = ("layers.1.attention.wo.weight", "layers.2.experts");
    let copy = changed(&repository(MICRO_NVFP4), |tensors| {
        // One matrix of attention in FP8 with blocks, another with one scale; down of a layer's experts in FP8.
        tensors.retain(|tensor| {
            tensor.name != wo && !(tensor.name.starts_with(w2) && tensor.name.contains(".w2."))
        });
        let taken = |tensor: &&crate::support::Tensor| {
            tensor.name.starts_with(wo) || (tensor.name.starts_with(w2) && tensor.name.contains(".w2."))
        };
        tensors.extend(donor.iter().filter(taken).cloned());
        let wq_b = named(tensors, "layers.1.attention.wq_b.weight");
        wq_b.dtype = safetensors::Dtype::F8_E4M3;
        wq_b.bytes.truncate(192 * 64);
        wq_b.bytes.fill(0x38);
        tensors.push(crate::support::Tensor {
            name: "layers.1.attention.wq_b.qscale_weight".to_owned(),
            dtype: safetensors::Dtype::BF16,
            shape: vec![1],
            bytes: vec![0x80, 0x3f],
        });
    });
    let checkpoint = Checkpoint::open(copy.path()).expect("a good checkpoint");
    let spec = checkpoint.spec().expect("a spec");
    let inventory = checkpoint.validate(&spec).expect("complete");
    assert_eq!(inventory.formats, WeightFormat::ALL.into());
    assert_eq!(inventory.unknown_tensors, 0);
    let attention = |tensor| TensorId::Layer { layer: 1, tensor };
    let expert = |matrix| TensorId::Expert {
        layer: 2,
        expert: 3,
        matrix,
    };
    for (id, format) in [
        (attention(LayerTensor::Wo), WeightFormat::Fp8Block),
        (attention(LayerTensor::WqB), WeightFormat::Fp8Tensor),
        (attention(LayerTensor::WkvB), WeightFormat::Bf16),
        (expert(FfnMatrix::W1), WeightFormat::Nvfp4),
        (expert(FfnMatrix::W2), WeightFormat::Fp8Block),
    ] {
        assert_eq!(
            checkpoint.weight(&spec, id).expect("the weight").format(),
            format,
            "{id}"
        );
    }
    // Two matrices of codes of half a byte with a scale per 16 and a multiplier, and one of bytes with a scale.
    assert_eq!(
        inventory.bytes.layers[2].expert,
        2 * (4096 + 512 + 16) + 8192 + 16
    );
    assert_eq!(inventory.bytes.layers[1].expert, 3 * (4096 + 512 + 16));
}

#[test]
fn rows_are_the_bytes_in_between() {
    let checkpoint = open(MICRO_BF16);
    let view = checkpoint.tensor("layers.1.gate.weight").expect("the router");
    let part = view
        .rows(2..7)
        .expect("rows of eight")
        .rows(1..3)
        .expect("rows of five");
    assert_eq!(part.bytes(), &view.bytes()[3 * 256..5 * 256]);
    assert_eq!(part.offset(), view.offset() + 3 * 256);
    assert!(view.rows(8..8).expect("no rows").bytes().is_empty());
    #[expect(
        clippy::reversed_empty_ranges,
        reason = "a range that a caller could get wrong"
    )]
    let bad = [0..9, 9..9, 5..4, 0..u32::MAX];
    for rows in bad {
        let error = view.rows(rows.clone()).expect_err("no such rows");
        assert!(error.to_string().ends_with("it has rows 0..8"), "{error}");
    }
}

#[test]
fn all_stored_weights_are_finite() {
    for path in ALL {
        let checkpoint = open(path);
        for name in checkpoint.names() {
            checkpoint
                .tensor(name)
                .expect("the tensor")
                .check_finite()
                .expect("finite");
        }
    }
}

#[test]
fn f32_scales_are_taken_and_widen_nothing_else() {
    let copy = changed(&repository(MICRO_FP8), |tensors| {
        for tensor in tensors
            .iter_mut()
            .filter(|tensor| tensor.name.ends_with("_scale"))
        {
            let wide = tensor
                .bytes
                .chunks(2)
                .flat_map(|b| bf16_to_f32(u16::from_le_bytes([b[0], b[1]])).to_le_bytes());
            tensor.bytes = wide.collect();
            tensor.dtype = safetensors::Dtype::F32;
        }
    });
    let (narrow, wide) = (
        open(MICRO_FP8),
        Checkpoint::open(copy.path()).expect("a good checkpoint"),
    );
    let spec = narrow.spec().expect("a spec");
    let inventories = [&narrow, &wide].map(|checkpoint| checkpoint.validate(&spec).expect("complete"));
    assert_eq!(inventories[0].bytes, inventories[1].bytes);
    let id = TensorId::Expert {
        layer: 2,
        expert: 5,
        matrix: FfnMatrix::W2,
    };
    let [narrow, wide] = [&narrow, &wide].map(|checkpoint| checkpoint.weight(&spec, id).expect("the weight"));
    assert_eq!(wide.scales().expect("scales").dtype(), Dtype::F32);
    assert_eq!(narrow.multipliers(), wide.multipliers());
    assert_eq!(narrow.to_f32(), wide.to_f32());
}

#[test]
fn a_fingerprint_tells_models_apart_and_not_their_files() {
    let original = repository(MICRO_FP8);
    let fingerprint = open(MICRO_FP8).fingerprint();
    let of = |dir: &std::path::Path| Checkpoint::open(dir).expect("a good checkpoint").fingerprint();
    assert_eq!(
        of(changed(&original, |_| {}).path()),
        fingerprint,
        "one file instead of three"
    );
    assert_ne!(of(&repository(MICRO_BF16)), fingerprint);
    let weights = changed(&original, |tensors| {
        named(tensors, "layers.2.attention.wo.weight").bytes[5] ^= 1
    });
    assert_ne!(of(weights.path()), fingerprint, "another tuning");
    let shape = changed(&original, |tensors| {
        named(tensors, "layers.1.experts.3.w1.weight").shape = vec![128, 64]
    });
    assert_ne!(of(shape.path()), fingerprint, "another shape");
    let params = changed(&original, |_| {});
    let text = std::fs::read_to_string(params.path().join("params.json")).expect("params");
    std::fs::write(
        params.path().join("params.json"),
        text.replace("\"beta\": 0.1", "\"beta\": 0.2"),
    )
    .expect("written");
    assert_ne!(of(params.path()), fingerprint, "other parameters");
    assert_eq!(fingerprint.to_string().len(), 64);
}

#[test]
fn an_index_wins_over_a_single_file_beside_it() {
    let copy = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(repository(MICRO_FP8)).expect("a folder") {
        let file = file.expect("an entry");
        std::fs::copy(file.path(), copy.path().join(file.file_name())).expect("copied");
    }
    write_file(&copy.path().join("consolidated.safetensors"), &[]);
    assert_eq!(
        Checkpoint::open(copy.path()).expect("opened").fingerprint(),
        open(MICRO_FP8).fingerprint()
    );
}
