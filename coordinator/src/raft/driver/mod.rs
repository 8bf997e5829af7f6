//! The thread that owns the node: ticks, inputs, fsyncs, and nothing else.
//!
//! A thread of its own because a fsync blocks. It ends when it is told to or when the node cannot go on; in that
//! case, a panic of raft-rs included, the process is told through [`OnFailure`], so that no coordinator lives on
//! with a dead raft.

mod running;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use self::running::Running;
use super::budget::ByteBudget;
use super::handle::{Applied, AppliedState, Input, MAX_INBOX, MAX_INBOX_BYTES, RaftHandle};
use super::metrics;
use super::node::{Node, NodeError, Outbound, RaftStatus};
use super::state_machine::StateMachine;
use super::storage::StoreError;

/// A tick, unless configured otherwise: with it a dead leader is replaced within two seconds.
pub const TICK: Duration = Duration::from_millis(50);
/// Carries messages to peers.
pub trait Transport: Send + 'static {
    /// Queues a message, or drops it if there is no room or no such peer. Never blocks.
    fn send(&mut self, message: Outbound) -> Result<(), Dropped>;
}

/// A message that was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped;

/// Why raft ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum RaftFailure {
    /// The node cannot go on.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// raft-rs or something under it panicked.
    #[error("raft panicked: {0}")]
    Panic(String),
}

/// Called at most once, from raft's thread, when raft ended without being told to.
pub type OnFailure = Box<dyn FnOnce(&RaftFailure) + Send>;

/// Logs why raft ended and ends the process with it: a coordinator without raft answers from a state that gets
/// older and older. One whose log cannot be written tells `cut_off` instead: what runs there may go on to its end.
pub fn end_process(cut_off: watch::Sender<Option<String>>) -> OnFailure {
    Box::new(move |failure| {
        if let RaftFailure::Node(NodeError::Store(error @ StoreError::Write { .. })) = failure {
            tracing::error!("this coordinator is no member until it is started again: {error}");
            metrics::log_failed();
            cut_off.send_replace(Some(error.to_string()));
            return;
        }
        tracing::error!("raft cannot go on, this process ends: {failure}");
        std::process::exit(70)
    })
}

/// A node that does not run yet; its handle is needed to make its transport.
pub struct Driver<S: StateMachine> {
    node: Node<S>,
    tick: Duration,
    inbox: Receiver<Input<S>>,
    stop: Arc<AtomicBool>,
    status: watch::Sender<RaftStatus>,
    state: watch::Sender<AppliedState<S>>,
}

/// The running thread; dropping this asks it to end.
#[must_use = "the node ends when this is dropped"]
pub struct RaftThread {
    stop: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
}

impl RaftThread {
    /// Asks the node to hand over the lead and to end, and waits until it has.
    pub async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The sender goes with the thread.
        let _ = (&mut self.ended).await;
    }
}

impl Drop for RaftThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl<S: StateMachine> Driver<S> {
    /// Makes a driver for `node` and the handle to it.
    pub fn new(node: Node<S>, tick: Duration) -> (Self, RaftHandle<S>) {
        let (sender, inbox) = sync_channel(MAX_INBOX);
        let stop = Arc::new(AtomicBool::new(false));
        let (status_sender, status) = watch::channel(node.status());
        let applied = Applied {
            last: node.applied(),
            view: node.machine().view(),
        };
        let (state_sender, state) = watch::channel(Arc::new(applied));
        let handle = RaftHandle {
            inbox: sender,
            budget: ByteBudget::new(MAX_INBOX_BYTES),
            stop: stop.clone(),
            status,
            state,
        };
        (
            Self {
                node,
                tick,
                inbox,
                stop,
                status: status_sender,
                state: state_sender,
            },
            handle,
        )
    }

    /// Starts the thread.
    pub fn start(self, transport: impl Transport, on_failure: OnFailure) -> io::Result<RaftThread> {
        metrics::log_works();
        let stop = self.stop.clone();
        let (ending, ended) = oneshot::channel();
        thread::Builder::new().name("raft".to_owned()).spawn(move || {
            let mut running = Running::new(self, transport);
            let failure = match catch_unwind(AssertUnwindSafe(|| running.run())) {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(RaftFailure::Node(error)),
                Err(panic) => Some(RaftFailure::Panic(panic_message(&*panic))),
            };
            if let Some(failure) = failure {
                on_failure(&failure);
            }
            // The log is closed and its lock released before anybody hears of the end.
            drop(running);
            drop(ending);
        })?;
        Ok(RaftThread { stop, ended })
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}
