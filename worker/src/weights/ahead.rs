//! Reads what will be loaded next: on a few threads, a bounded distance ahead of the device.
//!
//! Bytes are read past the system's cache, to memory that is used again and again, and given to whoever loads: pages that
//! the system would have to find first are not needed for bytes that are used once. What the system has in its cache, what
//! it cannot read so, and what is little is brought in where it is mapped. Nothing depends on it but time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use tramontane_model::checkpoint::{DirectBuffer, TensorView, Weight};
use tramontane_model::spec::ModelSpec;
use tramontane_model::tensors::{TensorId, WeightFormat, expert_tensors, owner_tensors};

use super::{ModelFiles, WeightSlice};

/// Bounds of reading.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    threads: usize,
    /// How far ahead of the device they are, in bytes: what they hold is no more than this and a chunk for each of them.
    ahead: u64,
    /// With fewer bytes in all than this, nothing is read ahead.
    least: u64,
    /// Fewer bytes than this are not read past the cache.
    least_direct: usize,
}

const BOUNDS: Bounds = Bounds {
    threads: 8,
    ahead: 64 << 20,
    least: 32 << 20,
    least_direct: 256 << 10,
};

/// Most bytes of a chunk, unless a row has more.
const CHUNK_BYTES: u64 = 4 << 20;

/// Ranges of a view's rows that are read, checked and written at once, in order: how soon a cancelled load ends.
pub(super) fn chunks(view: &TensorView<'_>) -> impl Iterator<Item = Range<u32>> + use<> {
    let rows = u32::try_from(view.row_count()).unwrap_or(u32::MAX);
    let row_bytes = (view.bytes().len() as u64).checked_div(u64::from(rows));
    chunks_of(0..rows, row_bytes.unwrap_or(0))
}

/// As [`chunks`], of some rows.
pub(super) fn chunks_of(rows: Range<u32>, row_bytes: u64) -> impl Iterator<Item = Range<u32>> {
    // Whole words, whatever a row has.
    let step = CHUNK_BYTES / row_bytes.max(1) / 4 * 4;
    let step = u32::try_from(step).unwrap_or(u32::MAX / 4 * 4).max(4);
    let end = rows.end;
    let starts = rows.step_by(step as usize);
    starts.map(move |start| start..start.saturating_add(step).min(end))
}

/// What is read, and how far readers and who loads have come.
#[derive(Debug)]
pub(super) struct Ahead<'a> {
    model: &'a ModelFiles,
    bounds: Bounds,
    steps: Vec<Step<'a>>,
    /// Which step reads the bytes at a place of a file.
    places: BTreeMap<(&'a str, u64), usize>,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug)]
struct Step<'a> {
    view: TensorView<'a>,
    /// Bytes of all steps before it.
    before: u64,
    /// Whether it may be read past the cache: what is loaded row by row is looked at where it is mapped.
    direct: bool,
}

#[derive(Debug, Default)]
struct State {
    /// The next step that nobody has begun.
    next: usize,
    /// Bytes that were loaded.
    taken: u64,
    /// Steps that were read; nothing for those that are to be looked at where they are mapped.
    read: BTreeMap<usize, Option<DirectBuffer>>,
    free: Vec<DirectBuffer>,
    /// Bytes that were read past the cache.
    direct_bytes: u64,
    /// Steps that whoever loads passed by before anybody had begun them.
    missed: usize,
    over: bool,
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
        // What sums are made of is read before it is loaded, and stays in the cache for that.
        let may = model.checkpoint.manifest().is_none();
        for (view, in_order) in weights.flat_map(|weight| views(&weight)) {
            for view in chunks(&view).filter_map(|rows| view.rows(rows).ok()) {
                let bytes = view.bytes().len();
                let direct = may && in_order && bytes >= bounds.least_direct;
                steps.push(Step { view, before, direct });
                before += bytes as u64;
            }
        }
        if model.mirror.is_some() || before < bounds.least {
            steps.clear();
        }
        let places = steps.iter().enumerate();
        let places = places.map(|(index, step)| ((step.view.file(), step.view.offset()), index));
        Self {
            model,
            bounds,
            places: places.collect(),
            steps,
            state: Mutex::default(),
            moved: Condvar::new(),
        }
    }

    /// Starts the threads; they end when [`Ahead::until_dropped`] does.
    pub(super) fn start<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        for number in 0..self.bounds.threads.min(self.steps.len()) {
            let thread = std::thread::Builder::new().name(format!("read-ahead-{number}"));
            if let Err(error) = thread.spawn_scoped(scope, || self.read()) {
                tracing::debug!(%error, "no thread reads ahead");
            }
        }
    }

    fn read(&self) {
        // Nobody waits for what a thread began that is gone.
        let _gone = StopReading(self, true);
        while let Some((index, step, mut buffer)) = self.begin() {
            let is_read = step.direct && self.model.checkpoint.read_past_cache(&step.view, &mut buffer);
            if !is_read {
                self.model.checkpoint.bring_in(&step.view);
            }
            let mut state = self.state();
            if is_read {
                state.direct_bytes += step.view.bytes().len() as u64;
                state.read.insert(index, Some(buffer));
            } else {
                state.free.push(buffer);
                state.read.insert(index, None);
            }
            drop(state);
            self.moved.notify_all();
        }
    }

    /// The next step, once who loads is near enough, and memory for it; nothing when it is over.
    fn begin(&self) -> Option<(usize, &Step<'a>, DirectBuffer)> {
        let mut state = self.state();
        loop {
            let step = self.steps.get(state.next).filter(|_| !state.over)?;
            if step.before <= state.taken.saturating_add(self.bounds.ahead) {
                let index = state.next;
                state.next += 1;
                let buffer = state.free.pop().unwrap_or_default();
                return Some((index, step, buffer));
            }
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What was read past the cache of a chunk that is loaded now; waits for whoever reads it. Nothing if it is to be looked
    /// at where it is mapped.
    pub(super) fn take(&self, chunk: &TensorView<'_>) -> Option<DirectBuffer> {
        let index = *self.places.get(&(chunk.file(), chunk.offset()))?;
        let mut state = self.state();
        loop {
            if let Some(read) = state.read.remove(&index) {
                return read;
            }
            if index >= state.next {
                // Nobody has begun it, and nobody need.
                state.missed += index - state.next;
                state.next = index + 1;
                return None;
            }
            if state.over {
                return None;
            }
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives memory back that [`Ahead::take`] gave.
    pub(super) fn give_back(&self, buffer: DirectBuffer) {
        self.state().free.push(buffer);
    }

    /// Who loads has come so many bytes further.
    pub(super) fn took(&self, bytes: u64) {
        self.state().taken += bytes;
        self.moved.notify_all();
    }

    /// Bytes that were read past the cache so far.
    pub(super) fn direct_bytes(&self) -> u64 {
        self.state().direct_bytes
    }

    /// Ends the threads when it is dropped, however a load ends: they are waited for.
    pub(super) fn until_dropped(&self) -> StopReading<'_, 'a> {
        StopReading(self, false)
    }

    fn stop(&self) {
        self.state().over = true;
        self.moved.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads read for as long as this lives, or, if so told, until it is dropped by a panic.
pub(super) struct StopReading<'s, 'a>(&'s Ahead<'a>, bool);

impl Drop for StopReading<'_, '_> {
    fn drop(&mut self) {
        if !self.1 || std::thread::panicking() {
            self.0.stop();
        }
    }
}

/// What is loaded of a weight chunk by chunk, in the order in which it is; with it, whether the rows are in order.
fn views<'a>(weight: &Weight<'a>) -> impl Iterator<Item = (TensorView<'a>, bool)> + use<'a> {
    let in_order = weight.half_split().is_none();
    let scales = weight.scales().filter(|_| weight.format() == WeightFormat::Nvfp4);
    let views = [Some(weight.values()), scales].into_iter().flatten();
    views.map(move |view| (view, in_order))
}

/// The tensors of a slice, in the order in which they are loaded.
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

    use tramontane_kernels::reference::CpuBackend;
    use tramontane_model::placement::ExpertRange;

    use super::super::load::Loader;
    use super::super::{LoadProgress, LoadWatch};
    use super::*;

    const SMALL: Bounds = Bounds {
        threads: 4,
        ahead: 0,
        least: 0,
        least_direct: 0,
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

    /// Takes all there is of some slices, in order, compares it with another model's, and gives how much of it was read past
    /// the cache.
    fn take_all(model: &ModelFiles, slices: &[WeightSlice], same: &ModelFiles, bounds: Bounds) -> u64 {
        let ahead = Ahead::bounded(model, slices, bounds);
        let expected = Ahead::bounded(same, slices, bounds).steps;
        assert!(ahead.steps.len() == expected.len() && !expected.is_empty());
        std::thread::scope(|scope| {
            let _reading = ahead.until_dropped();
            ahead.start(scope);
            // Threads that may read all of it do.
            while bounds.ahead > 0 && ahead.state().next < expected.len() {
                std::thread::yield_now();
            }
            for (step, expected) in ahead.steps.iter().zip(&expected) {
                let bytes = expected.view.bytes();
                if let Some(read) = ahead.take(&step.view) {
                    let view = read.view(step.view).expect("as long");
                    assert_eq!(view.bytes(), bytes, "{}", view.name());
                    ahead.give_back(read);
                }
                ahead.took(bytes.len() as u64);
            }
        });
        ahead.direct_bytes()
    }

    #[test]
    fn what_is_read_is_what_is_mapped() {
        ends(|| {
            let _ = take_all(&mini(), &all(&mini()), &mini(), SMALL);
        });
    }

    /// Writes a file past the cache, if that can be done here.
    fn write_past_cache(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        const PAGE: usize = 4096;
        let mut memory = vec![0; bytes.len().next_multiple_of(PAGE) + PAGE];
        let base = memory.as_ptr().align_offset(PAGE);
        memory[base..base + bytes.len()].copy_from_slice(bytes);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).custom_flags(libc::O_DIRECT);
        let mut file = options.open(path)?;
        file.write_all(&memory[base..base + bytes.len().next_multiple_of(PAGE)])?;
        file.set_len(bytes.len() as u64)
    }

    #[test]
    fn what_the_system_has_not_cached_is_read_past_its_cache() {
        ends(|| {
            let exe = std::env::current_exe().expect("this test");
            let dir = tempfile::tempdir_in(exe.parent().expect("a folder")).expect("a folder");
            let mini = mini();
            for entry in std::fs::read_dir(mini.checkpoint.dir()).expect("the model") {
                let from = entry.expect("a file").path();
                let to = dir.path().join(from.file_name().expect("a name"));
                let bytes = std::fs::read(&from).expect("a file");
                if write_past_cache(&to, &bytes).is_err() {
                    // A file system without such writes has no such reads.
                    return;
                }
            }
            let model = ModelFiles::open(dir.path()).expect("the same model");
            // Far from the headers, around which the system reads more than it is asked for.
            let start = |&slice: &WeightSlice| {
                let steps = Ahead::bounded(&mini, &[slice], SMALL).steps.into_iter();
                steps.map(|step| step.view.offset()).min()
            };
            let last = all(&mini).into_iter().max_by_key(start).expect("slices");
            let bounds = Bounds {
                ahead: 64 << 20,
                ..SMALL
            };
            assert!(take_all(&model, &[last], &mini, bounds) > 0);
        });
    }

    #[test]
    fn steps_are_in_the_order_in_which_tensors_are_loaded() {
        let model = mini();
        let experts = WeightSlice::Experts {
            layer: 1,
            experts: ExpertRange::new(3, 9).expect("experts"),
        };
        let slices = [all(&model), vec![experts, WeightSlice::Head]].concat();
        let ahead = Ahead::bounded(&model, &slices, SMALL);
        let device = &mut CpuBackend::new(1 << 30, 1 << 20);
        let progress = LoadProgress::default();
        let watch = LoadWatch {
            progress: &progress,
            cancelled: &|| false,
        };
        // No thread reads, so that each step is begun by the loader, and none is missed if the order is the same.
        let mut loader = Loader::new(device, &model, &watch, Some(&ahead));
        for &slice in &slices {
            match slice {
                WeightSlice::Embedding => drop(loader.embedding().expect("loads")),
                WeightSlice::Layer(layer) => drop(loader.layer(layer).expect("loads")),
                WeightSlice::Head => drop(loader.head().expect("loads")),
                WeightSlice::Experts { layer, experts } => {
                    let mut bank = loader.begin_bank(layer, experts).expect("room");
                    while !loader.add_expert(&mut bank).expect("loads") {}
                }
            }
        }
        let state = ahead.state();
        assert_eq!((state.next, state.missed), (ahead.steps.len(), 0));
    }
}
