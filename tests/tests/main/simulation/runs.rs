//! Running seeds: side by side, and once more with a trace where one fails.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::coverage::Coverage;
use super::history;
use super::invariants::Violation;
use super::world::World;

/// A seed that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) seed: u64,
    pub(super) violation: Violation,
    lines: Vec<String>,
}

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// The seeds given, or as many from the first as `SIM_SEEDS` says, or the one in `SIM_SEED`.
pub(super) fn seeds(all: Range<u64>) -> Range<u64> {
    let count = number_from_environment("SIM_SEEDS");
    let all = count.map_or(all.clone(), |count| all.start..all.start + count);
    number_from_environment("SIM_SEED").map_or(all, |seed| seed..seed + 1)
}

/// Whether somebody asked for other seeds.
pub(super) fn seeds_from_environment() -> bool {
    number_from_environment("SIM_SEED").is_some() || number_from_environment("SIM_SEEDS").is_some()
}

fn run_traced(seed: u64, traced: bool) -> (Result<Coverage, Violation>, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut world = World::new(seed, traced);
        let ran = std::panic::AssertUnwindSafe(world.run());
        let result = futures_util::FutureExt::catch_unwind(ran).await;
        let result = result.unwrap_or_else(|panic| Err(panicked(&*panic)));
        world.coverage.promotions = history::with(|history| history.promoted);
        (result.map(|()| world.coverage), world.trace.lines())
    })
}

fn panicked(panic: &(dyn Any + Send)) -> Violation {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    Violation {
        rule: "panic",
        what: text.unwrap_or_default(),
    }
}

/// Runs one seed.
pub(super) fn run(seed: u64) -> Result<Coverage, Failure> {
    let first = catch_unwind(AssertUnwindSafe(|| run_traced(seed, false)));
    let violation = match first {
        Ok((Ok(coverage), _)) => return Ok(coverage),
        Ok((Err(violation), _)) => violation,
        Err(panic) => panicked(&*panic),
    };
    let again = catch_unwind(AssertUnwindSafe(|| run_traced(seed, true)));
    let (mut lines, mut second) = (Vec::new(), None);
    if let Ok((result, traced)) = again {
        (lines, second) = (traced, result.err());
    }
    if second.as_ref() != Some(&violation) {
        lines.push(format!("it did not happen again: {second:?}"));
    }
    Err(Failure {
        seed,
        violation,
        lines,
    })
}

impl Failure {
    fn show(&self) -> String {
        let Violation { rule, what } = &self.violation;
        let lines = self.lines.join("\n");
        format!("{lines}\n{rule}: {what}\nreplay with SIM_SEED={}", self.seed)
    }
}

/// Runs all of them on all cores; panics with the first failure.
pub(super) fn run_seeds(seeds: Range<u64>) -> Coverage {
    let started = Instant::now();
    let count = seeds.end - seeds.start;
    let next = AtomicU64::new(seeds.start);
    let over = AtomicBool::new(false);
    let total = Mutex::new(Coverage::default());
    let failure = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    match run(seed) {
                        Ok(coverage) => total.lock().expect("no panic").add(&coverage),
                        Err(failed) => {
                            over.store(true, Ordering::Relaxed);
                            failure.lock().expect("no panic").get_or_insert(failed);
                        }
                    }
                }
            });
        }
    });
    if let Some(failure) = failure.into_inner().expect("no panic") {
        panic!("{}", failure.show());
    }
    println!("{count} seeds in {:?}", started.elapsed());
    total.into_inner().expect("no panic")
}
