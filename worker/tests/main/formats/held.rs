//! The bytes that devices hold, and the values that they do not take.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tramontane_kernels::gpu;
use tramontane_kernels::gpu::DeviceConfig;
use tramontane_kernels::ops::Backend;
use tramontane_kernels::reference::CpuBackend;
use tramontane_model::checkpoint::Checkpoint;
use tramontane_model::placement::KvFormat;
use tramontane_worker::executor::{Executor, ExecutorOptions};
use tramontane_worker::weights::{DeviceSlices, LoadProgress, LoadWatch, ModelFiles, WeightStore};

use super::{FIXTURES, folder};
use crate::cluster::replica;

pub(super) fn never_cancelled(progress: &LoadProgress) -> LoadWatch<'_> {
    LoadWatch {
        progress,
        cancelled: &|| false,
    }
}

/// How the weights of a fixture lie on one device.
pub(super) fn whole_model(model: &ModelFiles) -> DeviceSlices {
    let spec = &model.spec;
    let experts = [(spec.n_experts(), "w1/0")];
    let replica = replica(1, &[(0, spec.n_layers, "w1/0", &experts)]);
    DeviceSlices::of(&replica, &replica.stages[0].owner, spec).expect("slices")
}

#[test]
fn devices_hold_the_planned_bytes_of_weights_and_hardly_more_than_the_files() {
    for fixture in FIXTURES {
        let model = ModelFiles::open(&folder(fixture)).expect("a model");
        let stored = Checkpoint::open(&folder(fixture))
            .and_then(|checkpoint| checkpoint.validate(&model.spec))
            .expect("a checkpoint");
        let slices = whole_model(&model);
        let planned = slices.weight_bytes(&model.bytes);
        // All at once, and in many parts.
        for limit in [1 << 30, 64 << 10] {
            let mut backend = CpuBackend::new(1 << 30, limit);
            let mut store = WeightStore::default();
            let progress = LoadProgress::default();
            store
                .load(&mut backend, &model, &slices, &never_cancelled(&progress))
                .expect("loads");
            let held = backend.held_bytes();
            assert_eq!(held, planned, "{fixture} with bindings of {limit} bytes");
            assert_eq!(progress.loaded_bytes(), planned, "{fixture}");
            let file_bytes = stored.language_file_bytes;
            assert!(
                held * 100 <= file_bytes * 103,
                "{fixture}: {held} of {file_bytes}"
            );
        }
    }
}

#[test]
fn devices_hold_the_planned_bytes_with_cache_and_buffers() {
    let cases = FIXTURES.into_iter().zip(KvFormat::ALL.into_iter().cycle());
    for (fixture, format) in cases {
        let model = Arc::new(ModelFiles::open(&folder(fixture)).expect("a model"));
        // Half of the experts elsewhere, so that every buffer is needed.
        let (layers, experts) = (model.spec.n_layers, model.spec.n_experts());
        let groups = [(experts / 2, "w1/0"), (experts, "w2/0")];
        let mut replica = replica(1, &[(0, layers, "w1/0", &groups)]);
        replica.kv.format = format;
        let slices = DeviceSlices::of(&replica, &replica.stages[0].owner, &model.spec).expect("slices");
        let planned = slices.planned_bytes(&model.spec, &model.bytes);
        // A device with exactly so much memory, to show that loading needs no more.
        let device = DeviceConfig {
            memory_bytes: Some(planned),
            ..DeviceConfig::default()
        };
        let backend = gpu::open(&device).expect("a Vulkan adapter");
        let options = ExecutorOptions {
            timeout: Duration::from_secs(60),
        };
        let mut executor = Executor::new(backend, model, options);
        let progress = LoadProgress::default();
        executor
            .load(replica.fence(), &slices, &never_cancelled(&progress))
            .expect("loads");
        let held = executor.held_bytes();
        assert!(
            held <= planned && held * 100 >= planned * 97,
            "{fixture} with a cache of {format}: {held} of {planned}"
        );
    }
}

/// A copy of a fixture with some bytes of a tensor replaced; the file that it is in.
fn with_bytes(fixture: &str, tensor: &str, at: usize, bytes: &[u8]) -> (TempDir, String) {
    let copy = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(folder(fixture)).expect("a folder") {
        let entry = entry.expect("a file");
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("copied");
    }
    let checkpoint = Checkpoint::open(copy.path()).expect("a checkpoint");
    let view = checkpoint.tensor(tensor).expect("the tensor");
    let (file, start) = (view.file().to_owned(), view.offset() as usize + at);
    drop(checkpoint);
    let mut all = std::fs::read(copy.path().join(&file)).expect("the file");
    all[start..start + bytes.len()].copy_from_slice(bytes);
    std::fs::write(copy.path().join(&file), all).expect("written");
    (copy, file)
}

#[test]
fn values_that_no_weight_or_scale_can_have_are_refused_before_anything_is_served() {
    const NOT_FINITE: &str = "that is not finite";
    const NOT_POSITIVE: &str = "that is not above zero";
    const NO_SCALE: &str = "that is negative or no number";
    let f32_of = |value: f32| value.to_le_bytes().to_vec();
    let (nan, infinite) = (f32_of(f32::NAN), f32_of(f32::INFINITY));
    let (zero, negative) = (f32_of(0.0), f32_of(-1.0));
    let (expert, dense) = ("layers.2.experts.5.w2", "layers.0.feed_forward.w1");
    type Case = (
        &'static str,
        &'static str,
        &'static str,
        usize,
        Vec<u8>,
        &'static str,
    );
    let cases: [Case; 17] = [
        ("micro-bf16", expert, "weight", 6, vec![0x80, 0x7f], NOT_FINITE),
        ("micro-bf16", "norm", "weight", 2, vec![0xc0, 0xff], NOT_FINITE),
        ("micro-fp8", expert, "weight", 77, vec![0xff], NOT_FINITE),
        (
            "micro-fp8",
            expert,
            "weight_scale",
            0,
            vec![0xc0, 0x7f],
            NOT_FINITE,
        ),
        (
            "micro-fp8",
            dense,
            "weight_scale",
            4,
            vec![0x80, 0xff],
            NOT_FINITE,
        ),
        ("micro-fp8", expert, "weight_scale", 0, vec![0, 0], NOT_POSITIVE),
        (
            "micro-fp8",
            dense,
            "weight_scale",
            2,
            vec![0x80, 0xbf],
            NOT_POSITIVE,
        ),
        (
            "micro-fp8-tensor",
            "layers.1.attention.wkv_b",
            "weight",
            9,
            vec![0x7f],
            NOT_FINITE,
        ),
        (
            "micro-fp8-tensor",
            expert,
            "qscale_weight",
            0,
            nan.clone(),
            NOT_FINITE,
        ),
        (
            "micro-fp8-tensor",
            expert,
            "qscale_weight",
            0,
            zero.clone(),
            NOT_POSITIVE,
        ),
        (
            "micro-fp8-tensor",
            dense,
            "qscale_weight",
            0,
            negative.clone(),
            NOT_POSITIVE,
        ),
        ("micro-nvfp4", expert, "weight_scale", 3, vec![0x7f], NO_SCALE),
        ("micro-nvfp4", dense, "weight_scale", 2559, vec![0xb8], NO_SCALE),
        (
            "micro-nvfp4",
            expert,
            "weight_global_scale",
            0,
            infinite,
            NOT_FINITE,
        ),
        (
            "micro-nvfp4",
            expert,
            "weight_global_scale",
            0,
            zero,
            NOT_POSITIVE,
        ),
        (
            "micro-nvfp4",
            dense,
            "weight_global_scale",
            0,
            negative,
            NOT_POSITIVE,
        ),
        (
            "micro-nvfp4",
            dense,
            "weight_global_scale",
            0,
            f32_of(1e-45),
            "that cannot be divided by",
        ),
    ];
    for (fixture, stem, suffix, at, bytes, problem) in cases {
        let tensor = format!("{stem}.{suffix}");
        let (copy, file) = with_bytes(fixture, &tensor, at, &bytes);
        let model = ModelFiles::open(copy.path()).expect("the headers are sound");
        let (mut backend, mut store) = (CpuBackend::new(1 << 30, 1 << 30), WeightStore::default());
        let progress = LoadProgress::default();
        let error = store
            .load(
                &mut backend,
                &model,
                &whole_model(&model),
                &never_cancelled(&progress),
            )
            .expect_err("refused")
            .to_string();
        assert!(
            error.starts_with(&format!("{file}: tensor {tensor} has a ")),
            "{error}"
        );
        assert!(error.contains(problem), "{fixture} {tensor}: {error}");
        assert!(error.contains(" of the file, expected "), "{error}");
    }
}
