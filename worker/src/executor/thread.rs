//! One OS thread per device: it owns the backend and the executor and takes orders from the inbox, one at a time.
//!
//! While a step waits for experts of other devices, the thread computes what others ask of its own; steps wait in
//! their queue. An error of the device and a panic end in [`DeviceState::Failed`] with the reason; the next assignment
//! opens the device anew.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tramontane_model::ids::{DeviceIndex, Fence};
use tramontane_model::members::{DeviceState, LoadReport, MAX_REASON_BYTES};
use tramontane_proto::ExpertResults;

use super::command::{Assignment, Command, Control, StageOutput, StepCommand};
use super::copying::Copying;
use super::exchange::{ExpertLinks, ExpertRequest};
use super::fencing::{covers, serving};
use super::handle::DeviceHandle;
use super::inbox::{CAPACITY, Inbox, InboxExchange, Next};
use super::shared::Shared;
use super::{DeviceError, Executor, ExecutorOptions};
use crate::weights::{LoadWatch, ModelFiles};
use tramontane_kernels::ops::{Backend, OpError};

/// What a device thread is made with.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// Which of the worker's devices it is.
    pub index: DeviceIndex,
    /// The checkpoint that it loads from.
    pub model: Arc<ModelFiles>,
    /// How long the device may take over one piece of work, and another device over its experts.
    pub timeout: Duration,
    /// Where what drivers make of shaders is kept, if anywhere.
    pub cache_dir: Option<PathBuf>,
}

impl DeviceHandle {
    /// Starts the thread of a device and waits until the device is open: call it where blocking is allowed.
    ///
    /// `open` is called on the thread, at once and again after the device has failed.
    pub fn spawn<B, F>(options: DeviceOptions, mut open: F) -> Result<Self, DeviceError>
    where
        B: Backend,
        F: FnMut() -> Result<B, OpError> + Send + 'static,
    {
        let (opened, is_open) = sync_channel(1);
        let thread = std::thread::Builder::new().name(format!("device-{}", options.index));
        let started = thread.spawn(move || {
            let backend = match guarded(|| open().map_err(DeviceError::from)) {
                Ok(backend) => backend,
                Err(error) => {
                    let _ = opened.send(Err(error));
                    return;
                }
            };
            let shared = Shared::new(
                options.index,
                backend.info().clone(),
                backend.max_binding_bytes(),
                options.timeout,
            );
            let shared = Arc::new(shared);
            let (sender, receiver) = sync_channel(CAPACITY);
            let (publisher, state) = watch::channel(DeviceState::Idle);
            let handle = Self::new(Arc::clone(&shared), sender.clone(), state);
            if opened.send(Ok(handle)).is_err() {
                return;
            }
            let executor = Executor::new(backend, Arc::clone(&options.model), options.executor());
            DeviceThread {
                options,
                open,
                shared,
                sender,
                state: &publisher,
                executor: Some(executor),
                links: None,
                next_ticket: 0,
                copying: Copying::default(),
            }
            .run(Inbox::new(receiver));
            // Here everything on the device is free: waiting for the end of the state is waiting for this.
            drop(publisher);
        });
        started.map_err(|error| DeviceError::Failed {
            reason: format!("no thread could be started: {error}"),
        })?;
        is_open.recv().unwrap_or(Err(DeviceError::Stopped))
    }
}

impl DeviceOptions {
    fn executor(&self) -> ExecutorOptions {
        ExecutorOptions {
            timeout: self.timeout,
        }
    }
}

pub(super) struct DeviceThread<'a, B: Backend, F> {
    pub(super) options: DeviceOptions,
    open: F,
    pub(super) shared: Arc<Shared>,
    sender: SyncSender<Command>,
    pub(super) state: &'a watch::Sender<DeviceState>,
    /// None after a failure, until the next assignment.
    pub(super) executor: Option<Executor<B>>,
    links: Option<Arc<dyn ExpertLinks>>,
    next_ticket: u64,
    pub(super) copying: Copying,
}

impl<B: Backend, F: FnMut() -> Result<B, OpError>> DeviceThread<'_, B, F> {
    fn run(mut self, mut inbox: Inbox) {
        loop {
            match inbox.next(self.next_copy_at()) {
                Next::Control(Control::Stop) => break,
                Next::Control(Control::Assign { assignment, order }) => self.assign(assignment, order),
                Next::Control(Control::Release(fence)) => self.release(fence),
                Next::Control(Control::Keep(slices)) => self.keep(slices),
                Next::Experts(request) => self.experts(request),
                Next::Step(step) => self.step(step, &mut inbox),
                Next::Nothing => self.copy(),
            }
            self.note_held_bytes();
        }
        let ended = guarded(|| {
            self.executor = None;
            Ok(())
        });
        if let Err(error) = ended {
            tracing::error!(device = %self.options.index, %error, "the device could not be closed");
        }
    }

    fn assign(&mut self, assignment: Assignment, order: u64) {
        let Assignment { fence, slices, links } = assignment;
        if self.shared.order.load(Ordering::Relaxed) != order {
            return;
        }
        self.shared.progress.reset();
        self.set(DeviceState::Loading {
            fence,
            load: LoadReport::default(),
        });
        self.links = None;
        let started = Instant::now();
        let loaded = guarded(|| {
            let executor = match &mut self.executor {
                Some(executor) => executor,
                slot => {
                    let backend = (self.open)()?;
                    let model = Arc::clone(&self.options.model);
                    let opened = slot.insert(Executor::new(backend, model, self.options.executor()));
                    opened.keep_copies(&self.copying.wanted.weights);
                    opened
                }
            };
            let cancelled = || self.shared.order.load(Ordering::Relaxed) != order;
            let watch = LoadWatch {
                progress: &self.shared.progress,
                cancelled: &cancelled,
            };
            executor.load(fence, &slices, &watch)?;
            executor.warm_up()
        });
        self.note_copies();
        match loaded {
            Ok(()) => {
                self.links = Some(links);
                self.set(DeviceState::Ready { fence });
                tracing::info!(device = %self.options.index, %fence, took = ?started.elapsed(), "ready");
            }
            // Whoever cancelled has told the device what to do next.
            Err(DeviceError::LoadCancelled { .. }) => self.set(DeviceState::Idle),
            Err(error) => self.fail(fence, &error),
        }
    }

    fn release(&mut self, fence: Fence) {
        let held = self.state.borrow().fence();
        if !held.is_some_and(|held| covers(fence, held)) {
            return;
        }
        self.links = None;
        let released = guarded(|| {
            if let Some(executor) = &mut self.executor {
                executor.release();
            }
            Ok(())
        });
        self.note_copies();
        match released {
            Ok(()) => self.set(DeviceState::Idle),
            Err(error) => self.fail(fence, &error),
        }
    }

    fn step(&mut self, command: StepCommand, inbox: &mut Inbox) {
        let StepCommand {
            batch,
            input,
            deadline,
            reply,
            _place,
        } = command;
        let result = self.serving(batch.fence, deadline).and_then(|()| {
            let (Some(executor), Some(links)) = (&mut self.executor, &self.links) else {
                return Err(DeviceError::Stopped);
            };
            let mut exchange = InboxExchange::new(
                inbox,
                links.as_ref(),
                &self.sender,
                &self.shared,
                &mut self.next_ticket,
            );
            let started = Instant::now();
            self.shared.busy.set(Some((batch.fence, started)));
            let result = guarded(|| executor.run(&batch, input, &mut exchange, deadline));
            self.shared.busy.set(None);
            record_step(&batch, &result, started.elapsed());
            result
        });
        self.note(batch.fence, &result);
        // Fails when nobody waits any more.
        let _ = reply.send(result);
    }

    fn experts(&mut self, request: ExpertRequest) {
        let ExpertRequest {
            work,
            deadline,
            reply,
            _place,
        } = request;
        let result: Result<ExpertResults, DeviceError> =
            self.serving(work.fence, deadline)
                .and_then(|()| match &mut self.executor {
                    Some(executor) => {
                        self.shared.busy.set(Some((work.fence, Instant::now())));
                        let result = guarded(|| executor.run_experts(&work, deadline));
                        self.shared.busy.set(None);
                        result
                    }
                    None => Err(DeviceError::Stopped),
                });
        self.note(work.fence, &result);
        reply.send(result);
    }

    /// Refuses work of another placement, and work whose deadline has passed.
    fn serving(&self, asked: Fence, deadline: Instant) -> Result<(), DeviceError> {
        serving(&self.state.borrow(), asked)?;
        if deadline <= Instant::now() {
            return Err(DeviceError::Deadline {
                what: "work that waited on the device",
            });
        }
        Ok(())
    }

    /// Takes a failure of the device to heart.
    fn note<T>(&mut self, fence: Fence, result: &Result<T, DeviceError>) {
        if let Err(error) = result
            && error.ends_device()
        {
            self.fail(fence, error);
        }
    }

    pub(super) fn fail(&mut self, fence: Fence, error: &DeviceError) {
        tracing::error!(device = %self.options.index, %fence, %error, "the device has failed");
        self.links = None;
        // What failed to load leaves nothing behind, and a failed device is opened anew.
        let closed = guarded(|| {
            match &mut self.executor {
                Some(executor) if !error.ends_device() => executor.release(),
                slot => *slot = None,
            }
            Ok(())
        });
        if closed.is_err() {
            self.executor = None;
        }
        self.note_held_bytes();
        self.note_copies();
        let mut reason = error.to_string();
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        self.set(DeviceState::Failed { fence, reason });
    }

    fn set(&self, state: DeviceState) {
        self.state.send_replace(state);
    }

    fn note_held_bytes(&self) {
        let held = self.executor.as_ref().map_or(0, Executor::held_bytes);
        self.shared.held_bytes.store(held, Ordering::Relaxed);
    }
}

/// Runs what may panic; a panic becomes an error with its message.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, DeviceError> {
    // Whatever a panic left half-done is dropped with the executor.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(DeviceError::Panicked {
            reason: panic_message(panic.as_ref()),
        })
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}

fn record_step(
    batch: &tramontane_model::step::StepBatch,
    result: &Result<StageOutput, DeviceError>,
    took: Duration,
) {
    if result.is_ok() {
        metrics::histogram!("tramontane_device_step_seconds").record(took.as_secs_f64());
        metrics::counter!("tramontane_device_rows_total").increment(batch.rows() as u64);
    }
}
