//! Reads what will be loaded next: on a few threads, a bounded distance ahead of the device.
//!
//! Pages are brought in where they are mapped, and nothing is copied: who loads finds them there, or waits for them
//! itself. Nothing depends on it but time.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use tramontane_model::checkpoint::TensorView;
use tramontane_model::spec::ModelSpec;
use tramontane_model::tensors::{TensorId, expert_tensors, owner_tensors};

use super::{ModelFiles, WeightSlice};

/// Threads that read.
const THREADS: usize = 4;
/// Bytes that a thread reads at once.
const STEP_BYTES: usize = 8 << 20;
/// How far ahead of the device they are, in bytes.
const AHEAD_BYTES: u64 = 256 << 20;
/// Less than this is read by whoever loads.
const LEAST_BYTES: u64 = 32 << 20;

/// What is read, and how far who loads has come.
#[derive(Debug)]
pub(super) struct Ahead<'a> {
    model: &'a ModelFiles,
    steps: Vec<Step<'a>>,
    next: AtomicUsize,
    taken: Mutex<u64>,
    moved: Condvar,
    over: AtomicBool,
}

#[derive(Debug)]
struct Step<'a> {
    view: TensorView<'a>,
    range: Range<usize>,
    /// Bytes before it.
    before: u64,
}

impl<'a> Ahead<'a> {
    /// What is read for these slices. Nothing where the files are fetched, or where there is little.
    pub(super) fn new(model: &'a ModelFiles, slices: &[WeightSlice]) -> Self {
        let mut steps = Vec::new();
        let mut before = 0;
        let ids = slices.iter().flat_map(|&slice| tensors_of(&model.spec, slice));
        let weights = ids.filter_map(|id| model.checkpoint.weight(&model.spec, id).ok());
        for view in weights.flat_map(|weight| weight.stored()) {
            let length = view.bytes().len();
            for start in (0..length).step_by(STEP_BYTES) {
                let range = start..length.min(start + STEP_BYTES);
                let bytes = range.len() as u64;
                steps.push(Step { view, range, before });
                before += bytes;
            }
        }
        if model.mirror.is_some() || before < LEAST_BYTES {
            steps.clear();
        }
        Self {
            model,
            steps,
            next: AtomicUsize::new(0),
            taken: Mutex::new(0),
            moved: Condvar::new(),
            over: AtomicBool::new(false),
        }
    }

    /// Starts the threads; they end with [`Ahead::stop`].
    pub(super) fn start<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        for number in 0..THREADS.min(self.steps.len()) {
            let thread = std::thread::Builder::new().name(format!("read-ahead-{number}"));
            if let Err(error) = thread.spawn_scoped(scope, || self.read()) {
                tracing::debug!(%error, "no thread reads ahead");
            }
        }
    }

    fn read(&self) {
        while let Some(step) = self.steps.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let mut taken = self.taken();
            while step.before > taken.saturating_add(AHEAD_BYTES) && !self.over.load(Ordering::Relaxed) {
                taken = self.moved.wait(taken).unwrap_or_else(PoisonError::into_inner);
            }
            drop(taken);
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            self.model.checkpoint.bring_in(&step.view, step.range.clone());
        }
    }

    /// Who loads has come so many bytes further.
    pub(super) fn took(&self, bytes: u64) {
        *self.taken() += bytes;
        self.moved.notify_all();
    }

    /// Nothing more is wanted.
    pub(super) fn stop(&self) {
        let taken = self.taken();
        self.over.store(true, Ordering::Relaxed);
        drop(taken);
        self.moved.notify_all();
    }

    fn taken(&self) -> MutexGuard<'_, u64> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tensors of a slice, about in the order in which they are loaded.
fn tensors_of(spec: &ModelSpec, slice: WeightSlice) -> Vec<TensorId> {
    match slice {
        WeightSlice::Embedding => vec![TensorId::Embedding],
        WeightSlice::Layer(layer) => {
            let tensors = owner_tensors(spec, layer).into_iter();
            tensors.map(|tensor| tensor.id).collect()
        }
        WeightSlice::Experts { layer, experts } => {
            let tensors = experts
                .iter()
                .flat_map(|expert| expert_tensors(spec, layer, expert));
            tensors.map(|tensor| tensor.id).collect()
        }
        WeightSlice::Head => match spec.tied_embeddings {
            true => vec![TensorId::FinalNorm],
            false => vec![TensorId::FinalNorm, TensorId::Head],
        },
    }
}
