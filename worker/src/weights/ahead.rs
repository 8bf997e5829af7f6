//! Reads what will be loaded next: on a few threads, a bounded distance ahead of the device.
//!
//! Pages are brought in where they are mapped and touched once, and nothing is copied: who loads finds them there, or
//! waits for them itself. Nothing depends on it but time.

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
/// What they read.
const BOUNDS: Bounds = Bounds {
    step: 8 << 20,
    ahead: 256 << 20,
    least: 32 << 20,
};

/// Bounds of reading, in bytes.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// What a thread reads at once.
    step: usize,
    /// How far ahead of the device they are.
    ahead: u64,
    /// Less than this is read by whoever loads.
    least: u64,
}

/// What is read, and how far who loads has come.
#[derive(Debug)]
pub(super) struct Ahead<'a> {
    model: &'a ModelFiles,
    bounds: Bounds,
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
        Self::bounded(model, slices, BOUNDS)
    }

    fn bounded(model: &'a ModelFiles, slices: &[WeightSlice], bounds: Bounds) -> Self {
        let mut steps = Vec::new();
        let mut before = 0;
        let ids = slices.iter().flat_map(|&slice| tensors_of(&model.spec, slice));
        let weights = ids.filter_map(|id| model.checkpoint.weight(&model.spec, id).ok());
        for view in weights.flat_map(|weight| weight.stored()) {
            let length = view.bytes().len();
            for start in (0..length).step_by(bounds.step) {
                let range = start..length.min(start + bounds.step);
                let bytes = range.len() as u64;
                steps.push(Step { view, range, before });
                before += bytes;
            }
        }
        if model.mirror.is_some() || before < bounds.least {
            steps.clear();
        }
        Self {
            model,
            bounds,
            steps,
            next: AtomicUsize::new(0),
            taken: Mutex::new(0),
            moved: Condvar::new(),
            over: AtomicBool::new(false),
        }
    }

    /// Starts the threads; they end when [`Ahead::until_dropped`] does.
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
            while step.before > taken.saturating_add(self.bounds.ahead) && !self.over.load(Ordering::Relaxed)
            {
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

    /// Ends the threads when it is dropped, however a load ends: they are waited for.
    pub(super) fn until_dropped(&self) -> StopReading<'_, 'a> {
        StopReading(self)
    }

    fn stop(&self) {
        let taken = self.taken();
        self.over.store(true, Ordering::Relaxed);
        drop(taken);
        self.moved.notify_all();
    }

    fn taken(&self) -> MutexGuard<'_, u64> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads read for as long as this lives.
pub(super) struct StopReading<'s, 'a>(&'s Ahead<'a>);

impl Drop for StopReading<'_, '_> {
    fn drop(&mut self) {
        self.0.stop();
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

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::Path;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    const SMALL: Bounds = Bounds {
        step: 4096,
        ahead: 0,
        least: 0,
    };

    fn mini() -> ModelFiles {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/mini-large-3");
        ModelFiles::open(&dir).expect("the model")
    }

    fn all(model: &ModelFiles) -> Vec<WeightSlice> {
        let layers = (0..model.spec.n_layers).map(WeightSlice::Layer);
        std::iter::once(WeightSlice::Embedding).chain(layers).collect()
    }

    /// Runs in a thread of its own, as its fault is to wait for ever.
    fn ends(test: impl FnOnce() + Send + 'static) {
        let (sender, ended) = channel();
        std::thread::spawn(move || {
            test();
            let _ = sender.send(());
        });
        ended.recv_timeout(Duration::from_secs(60)).expect("it ends");
    }

    #[test]
    fn threads_that_wait_end_with_a_load_that_panics() {
        ends(|| {
            let model = mini();
            let ahead = Ahead::bounded(&model, &all(&model), SMALL);
            let load = || {
                std::thread::scope(|scope| {
                    let _reading = ahead.until_dropped();
                    ahead.start(scope);
                    panic!("a load that fails")
                })
            };
            let ended: Result<(), _> = catch_unwind(AssertUnwindSafe(load));
            assert!(ended.is_err());
        });
    }

    #[test]
    fn all_is_read_as_whoever_loads_goes_on() {
        ends(|| {
            let model = mini();
            let ahead = Ahead::bounded(&model, &all(&model), SMALL);
            let total: u64 = ahead.steps.iter().map(|step| step.range.len() as u64).sum();
            assert!(total > 1 << 20);
            std::thread::scope(|scope| {
                ahead.start(scope);
                ahead.took(total);
            });
            assert!(ahead.next.load(Ordering::Relaxed) >= ahead.steps.len());
        });
    }
}
