//! Copies of weights that a device keeps for others, on the reference backend.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tramontane_kernels::reference::CpuBackend;
use tramontane_model::ids::{DeviceIndex, Fence, Generation, ReplicaId, WorkerId};
use tramontane_model::members::{DeviceState, StandbyReport};
use tramontane_model::placement::{ExpertRange, KvFormat, LayerRange, Replica};
use tramontane_model::standby::Share;
use tramontane_worker::executor::{Assignment, DeviceHandle, DeviceOptions, LocalLinks};
use tramontane_worker::weights::{Copies, DeviceSlices, ModelFiles};

use crate::cluster::{device, replica, repository};

const DEADLINE: Duration = Duration::from_secs(60);

fn model() -> Arc<ModelFiles> {
    let dir = repository().join("cli/assets/mini-large-3");
    Arc::new(ModelFiles::open(Path::new(&dir)).expect("the miniature"))
}

async fn spawn(model: &Arc<ModelFiles>, memory_bytes: u64) -> DeviceHandle {
    let options = DeviceOptions {
        index: DeviceIndex(0),
        model: Arc::clone(model),
        timeout: DEADLINE,
        cache_dir: None,
    };
    let open = move || Ok(CpuBackend::new(memory_bytes, 1 << 30));
    let spawned = tokio::task::spawn_blocking(move || DeviceHandle::spawn(options, open));
    spawned.await.expect("no panic").expect("a device")
}

/// What the owners of two halves hold.
fn halves() -> [Share; 2] {
    let half = |start, end| {
        let layers = LayerRange::new(start, end).expect("layers");
        Share::new(layers, true, ExpertRange::new(0, 16)).expect("not empty")
    };
    [half(0, 3), half(3, 6)]
}

fn placed(generation: u64) -> Replica {
    replica(
        generation,
        &[(0, 3, "w1/0", &[(16, "w1/0")]), (3, 6, "w2/0", &[(16, "w2/0")])],
    )
}

fn assignment(model: &ModelFiles, replica: &Replica, name: &str) -> Assignment {
    let worker = WorkerId::new("w1").expect("a name");
    Assignment {
        fence: replica.fence(),
        slices: DeviceSlices::of(replica, &device(name), &model.spec).expect("it takes part"),
        links: Arc::new(LocalLinks::new(worker, Vec::new(), None, DEADLINE)),
    }
}

async fn until(device: &DeviceHandle, what: &str, is: impl Fn(StandbyReport) -> bool) -> StandbyReport {
    let started = Instant::now();
    loop {
        let report = device.report();
        if is(report.standby) {
            return report.standby;
        }
        assert!(
            started.elapsed() < DEADLINE,
            "waited in vain for {what}: {report:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn fence(generation: u64) -> Fence {
    Fence {
        replica: ReplicaId(1),
        generation: Generation(generation),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_kept_beside_what_is_computed_with_and_are_there_when_they_are_needed() {
    let model = model();
    let all = model.bytes.total(model.spec.n_experts());
    let device = spawn(&model, 8 * all).await;
    device
        .keep_copies(Copies::of(&halves(), &model.spec, KvFormat::F32))
        .expect("taken");
    let whole = |standby: StandbyReport| standby.total_bytes > 0 && standby.is_whole();
    let kept = until(&device, "copies of everything", whole).await;
    assert_eq!(kept.total_bytes, all);
    assert_eq!(
        device.report().state,
        DeviceState::Idle,
        "copies belong to no placement"
    );

    // The first half becomes what it computes with; the other is still a copy.
    let before = assignment(&model, &placed(1), "w1/0");
    let own = before.slices.weight_bytes(&model.bytes);
    device.assign(before).expect("taken");
    let deadline = Instant::now() + DEADLINE;
    device.ready(fence(1), deadline).await.expect("ready");
    let other = StandbyReport {
        loaded_bytes: all - own,
        total_bytes: all - own,
    };
    assert_eq!(device.report().standby, other);
    let held = device.report().held_bytes;
    assert!(held >= all, "{held} of {all}");

    // Freed, it keeps both as copies, and nothing else.
    device.release(fence(1)).expect("taken");
    until(&device, "both as copies", |standby| standby == kept).await;
    // Told to keep nothing, it holds nothing.
    device.keep_copies(Copies::default()).expect("taken");
    until(&device, "no copies", |standby| {
        standby == StandbyReport::default()
    })
    .await;
    let empty = async {
        while device.report().held_bytes > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, empty)
        .await
        .expect("everything is freed");
    device.stop(DEADLINE).await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_that_do_not_fit_keep_nobody_from_anything() {
    let model = model();
    let half = assignment(&model, &placed(1), "w2/0");
    let planned = half.slices.planned_bytes(&model.spec, &model.bytes);
    let copied = Copies::of(&halves(), &model.spec, KvFormat::F32);
    let device = spawn(&model, planned).await;
    device.keep_copies(copied.clone()).expect("taken");
    let some = |standby: StandbyReport| standby.loaded_bytes > 0 && !standby.is_whole();
    until(&device, "some copies", some).await;
    device.assign(half).expect("taken");
    let deadline = Instant::now() + DEADLINE;
    device
        .ready(fence(1), deadline)
        .await
        .expect("ready whatever it kept");
    assert_eq!(
        device.report().standby,
        StandbyReport::default(),
        "there is no room"
    );
    assert!(device.report().held_bytes <= planned, "{:?}", device.report());
    // Asked again it tries, and goes on serving.
    device.keep_copies(copied).expect("taken");
    until(&device, "what cannot be", |standby| standby.total_bytes > 0).await;
    assert_eq!(device.report().state, DeviceState::Ready { fence: fence(1) });
    device.stop(DEADLINE).await.expect("it ends");
}
