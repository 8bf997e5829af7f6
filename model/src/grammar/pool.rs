//! A few threads for work on grammars: off the async runtime and off device threads.
//!
//! Their stacks are deep, because compilation recurses with the nesting of schemas. A panic ends a job, not its thread.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

/// Bytes of a thread's stack; only what is used is taken.
const STACK_BYTES: usize = 64 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads and a bounded queue of jobs. The threads end some time after the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Pool {
    jobs: SyncSender<Job>,
}

/// The queue is full: the job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue for grammars is full")]
pub struct PoolFull;

impl Pool {
    /// Starts so many threads; as many jobs as `places` may wait.
    pub fn start(name: &str, threads: usize, places: usize) -> io::Result<Self> {
        let (jobs, receiver) = sync_channel::<Job>(places);
        let receiver = Arc::new(Mutex::new(receiver));
        for index in 0..threads.max(1) {
            let receiver = Arc::clone(&receiver);
            Builder::new()
                .name(format!("{name}-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    while let Some(job) = next(&receiver) {
                        if catch_unwind(AssertUnwindSafe(job)).is_err() {
                            tracing::error!("work on a grammar panicked");
                        }
                    }
                })?;
        }
        Ok(Self { jobs })
    }

    /// Enters a job at the end of the queue.
    pub fn try_run(&self, job: impl FnOnce() + Send + 'static) -> Result<(), PoolFull> {
        self.jobs.try_send(Box::new(job)).map_err(|_| PoolFull)
    }
}

/// The next job; one thread waits for it at a time, the others wait for their turn.
fn next(receiver: &Mutex<Receiver<Job>>) -> Option<Job> {
    receiver
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .recv()
        .ok()
}
