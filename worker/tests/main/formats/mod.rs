//! Every weight format, and the pattern of Mistral Small 4: the recorded tokens and log-probabilities on one device, on
//! two stages of two groups each, and on the twins.

mod held;
mod wrong_device;

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tramontane_kernels::gpu::DeviceConfig;
use tramontane_kernels::reference::CpuBackend;
use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_model::spec::ModelSpec;
use tramontane_model::tensors::WeightFormat;
use tramontane_worker::executor::{DeviceError, DeviceHandle, DeviceOptions};
use tramontane_worker::process;
use tramontane_worker::weights::ModelFiles;

use crate::cluster::{Cluster, replica, repository};
use crate::golden::{Record, check_against, check_scores, records_of, with_top5};

const FIXTURES: [&str; 5] = [
    "micro-bf16",
    "micro-fp8",
    "micro-fp8-tensor",
    "micro-nvfp4",
    "micro-small4",
];

fn folder(fixture: &str) -> PathBuf {
    repository().join("tests/fixtures").join(fixture)
}

/// The tokens and the scores of the prompts of every record.
async fn run(cluster: &mut Cluster, records: &[Record]) -> [Vec<Vec<SampledToken>>; 2] {
    let scoring = SamplingParams {
        prompt_logprobs: Some(5),
        ..with_top5()
    };
    // The records go on after an end of text, which random weights emit like any other token.
    cluster.stop_tokens.clear();
    let (mut outputs, mut scores) = (Vec::new(), Vec::new());
    for record in records {
        // Where the record ends before the first token, the prompt counts.
        let limit = u32::try_from(record.greedy.len()).expect("short").max(1);
        let (mut tokens, _) = cluster
            .generate(&record.prompt_ids, &[], scoring.clone(), limit)
            .await;
        tokens.truncate(record.greedy.len());
        outputs.push(tokens);
        scores.push(cluster.prompt_scores.clone());
    }
    cluster.until_idle().await;
    [outputs, scores]
}

async fn gives_what_is_recorded(fixture: &str) {
    let (folder, records) = (folder(fixture), records_of(fixture));
    let spec = ModelSpec::load(&folder).expect("a spec");
    let (layers, experts) = (spec.n_layers, spec.n_experts());
    let workers = [("w1", 1), ("w2", 1), ("w3", 1), ("w4", 1)];
    let mut cluster = Cluster::start_with(&folder, &workers, 64, process::spawn_gpu).await;
    cluster
        .assign(&replica(1, &[(0, layers, "w1/0", &[(experts, "w1/0")])]))
        .await;
    let alone = run(&mut cluster, &records).await;
    check_against(&records, &alone[0]);
    check_scores(&records, &alone[1]);
    let (half, middle) = (experts / 2, layers / 2);
    let spread = replica(
        2,
        &[
            (0, middle, "w1/0", &[(half, "w1/0"), (experts, "w2/0")]),
            (middle, layers, "w3/0", &[(half, "w3/0"), (experts, "w4/0")]),
        ],
    );
    cluster.assign(&spread).await;
    assert_eq!(
        run(&mut cluster, &records).await,
        alone,
        "2 stages with 2 groups each"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bf16_gives_what_is_recorded() {
    gives_what_is_recorded("micro-bf16").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fp8_with_blocks_in_three_shards_gives_what_is_recorded() {
    gives_what_is_recorded("micro-fp8").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fp8_with_one_scale_gives_what_is_recorded() {
    gives_what_is_recorded("micro-fp8-tensor").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nvfp4_gives_what_is_recorded() {
    gives_what_is_recorded("micro-nvfp4").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_of_experts_only_gives_what_is_recorded() {
    gives_what_is_recorded("micro-small4").await;
}

fn open_twins(_: &DeviceConfig, options: DeviceOptions) -> Result<DeviceHandle, DeviceError> {
    DeviceHandle::spawn(options, || Ok(CpuBackend::new(1 << 30, 1 << 30)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_twins_give_what_is_recorded() {
    for fixture in FIXTURES {
        let (folder, records) = (folder(fixture), records_of(fixture));
        let spec = ModelSpec::load(&folder).expect("a spec");
        let mut cluster = Cluster::start_with(&folder, &[("w1", 1)], 64, open_twins).await;
        let experts = [(spec.n_experts(), "w1/0")];
        cluster
            .assign(&replica(1, &[(0, spec.n_layers, "w1/0", &experts)]))
            .await;
        let [outputs, scores] = run(&mut cluster, &records).await;
        check_against(&records, &outputs);
        check_scores(&records, &scores);
    }
}

#[test]
fn the_fixtures_have_the_formats_that_they_are_named_for() {
    let of = |fixture| ModelFiles::open(&folder(fixture)).expect("a model").formats;
    let quantised = |format| [WeightFormat::Bf16, format].into();
    assert_eq!(of("micro-bf16"), [WeightFormat::Bf16].into());
    assert_eq!(of("micro-fp8"), quantised(WeightFormat::Fp8Block));
    assert_eq!(of("micro-fp8-tensor"), quantised(WeightFormat::Fp8Tensor));
    assert_eq!(of("micro-nvfp4"), quantised(WeightFormat::Nvfp4));
    assert_eq!(of("micro-small4"), quantised(WeightFormat::Fp8Block));
}

/// A fixture in one file whose odd layers say `qscale_weight` of every scale that is one block's: the same numbers.
fn with_one_scale_in_odd_layers(fixture: &str) -> TempDir {
    const FILE: &str = "consolidated.safetensors";
    let copy = tempfile::tempdir().expect("a folder");
    std::fs::copy(
        folder(fixture).join("params.json"),
        copy.path().join("params.json"),
    )
    .expect("copied");
    let bytes = std::fs::read(folder(fixture).join(FILE)).expect("a file");
    let (length, rest) = bytes.split_first_chunk().expect("a length");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: Map<String, Value> = serde_json::from_slice(header).expect("a header");
    let renamed = header.into_iter().map(|(name, mut tensor)| {
        let is_odd = ["layers.1.", "layers.3."]
            .iter()
            .any(|layer| name.starts_with(layer));
        match name.strip_suffix(".weight_scale") {
            Some(stem) if is_odd && tensor["shape"] == json!([1, 1]) => {
                tensor["shape"] = json!([1]);
                (format!("{stem}.qscale_weight"), tensor)
            }
            Some(_) | None => (name, tensor),
        }
    });
    let header = Value::Object(renamed.collect()).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(copy.path().join(FILE), bytes).expect("written");
    copy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tensors_of_one_checkpoint_may_be_stored_differently() {
    let (copy, records) = (
        with_one_scale_in_odd_layers("micro-small4"),
        records_of("micro-small4"),
    );
    let formats = ModelFiles::open(copy.path()).expect("a model").formats;
    let all = [
        WeightFormat::Bf16,
        WeightFormat::Fp8Block,
        WeightFormat::Fp8Tensor,
    ];
    assert_eq!(formats, all.into());
    let mut cluster = Cluster::start_with(copy.path(), &[("w1", 1)], 64, process::spawn_gpu).await;
    cluster
        .assign(&replica(1, &[(0, 3, "w1/0", &[(16, "w1/0")])]))
        .await;
    let [outputs, scores] = run(&mut cluster, &records).await;
    check_against(&records, &outputs);
    check_scores(&records, &scores);
}
