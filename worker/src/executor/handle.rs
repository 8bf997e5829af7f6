//! The cheap handle through which async code, and other device threads, reach a device.
//!
//! Nothing here blocks: every call enters the inbox or says that it is full, and every answer is waited for with a
//! deadline. Places in the inbox are reserved before an entry is made, one semaphore per kind of entry, so that a
//! flood of one kind never keeps another out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio::time::{Instant as TokioInstant, timeout_at};
use tramontane_model::ids::{DeviceIndex, Fence};
use tramontane_model::members::{DeviceReport, DeviceState};
use tramontane_model::step::StepBatch;
use tramontane_proto::{ExpertResults, ExpertWork};

use super::DeviceError;
use super::command::{Assignment, Command, Control, ControlCommand, StageInput, StageOutput, StepCommand};
use super::exchange::{ExpertAnswer, ExpertReply, ExpertRequest};
use super::fencing::serving;
use super::inbox::{CONTROL_PLACES, EXPERT_PLACES, STEP_PLACES};
use super::shared::{Shared, place, try_place};
use crate::weights::Copies;
use tramontane_kernels::ops::DeviceInfo;

/// A device of this worker. Clones reach the same device. It ends when it is told to, or with the last handle; handles
/// inside the links of an assignment keep devices alive, so a worker that ends tells each of its devices.
#[derive(Clone, Debug)]
pub struct DeviceHandle {
    owner: Arc<Owner>,
    state: watch::Receiver<DeviceState>,
}

/// The sending side; its end is the thread's end.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    sender: SyncSender<Command>,
}

impl Owner {
    fn begin_stop(&self) {
        let mut target = self.shared.target();
        if !target.stopping {
            target.stopping = true;
            self.shared.order.fetch_add(1, Ordering::Relaxed);
            // The channel has a place for it; it fails only when the thread has ended.
            let _ = self.sender.try_send(Command::Control(ControlCommand {
                control: Control::Stop,
                _place: None,
            }));
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.begin_stop();
    }
}

/// An answer to wait for.
#[derive(Debug)]
#[must_use = "the answer, and every error, comes through it"]
pub struct Reply<T> {
    what: &'static str,
    receiver: oneshot::Receiver<Result<T, DeviceError>>,
    deadline: Instant,
    state: watch::Receiver<DeviceState>,
}

impl<T> Reply<T> {
    /// Waits for the answer, at most until the deadline that the work was given. Needs a tokio runtime with time.
    pub async fn wait(self) -> Result<T, DeviceError> {
        match timeout_at(TokioInstant::from_std(self.deadline), self.receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(gone(&self.state)),
            Err(_) => Err(DeviceError::Deadline { what: self.what }),
        }
    }
}

/// Why a device's thread dropped what it was asked.
fn gone(state: &watch::Receiver<DeviceState>) -> DeviceError {
    match &*state.borrow() {
        DeviceState::Failed { reason, .. } => DeviceError::Failed {
            reason: reason.clone(),
        },
        DeviceState::Idle | DeviceState::Loading { .. } | DeviceState::Ready { .. } => DeviceError::Stopped,
    }
}

impl DeviceHandle {
    pub(super) fn new(
        shared: Arc<Shared>,
        sender: SyncSender<Command>,
        state: watch::Receiver<DeviceState>,
    ) -> Self {
        let owner = Arc::new(Owner { shared, sender });
        Self { owner, state }
    }

    /// Which of the worker's devices it is.
    pub fn index(&self) -> DeviceIndex {
        self.owner.shared.index
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.owner.shared.info
    }

    /// Largest range that one binding may cover, in bytes.
    pub fn max_binding_bytes(&self) -> u64 {
        self.owner.shared.max_binding_bytes
    }

    /// What it is doing, and every change of it. Progress while loading is only in [`DeviceHandle::report`].
    pub fn state(&self) -> watch::Receiver<DeviceState> {
        self.state.clone()
    }

    /// Its part of the worker's report. A thread that hangs cannot say so itself: its device has failed.
    pub fn report(&self) -> DeviceReport {
        let shared = &self.owner.shared;
        let hangs = shared.busy.hangs(shared.timeout, Instant::now());
        let failed = hangs.map(|(fence, taken)| DeviceState::Failed {
            fence,
            reason: format!("the device hangs: its thread has been at one piece of work for {taken:.0?}"),
        });
        let state = failed.unwrap_or_else(|| self.told_state());
        DeviceReport {
            index: shared.index,
            held_bytes: shared.held_bytes.load(Ordering::Relaxed),
            state,
            standby: *shared.copies(),
        }
    }

    /// What the thread said last.
    fn told_state(&self) -> DeviceState {
        match self.state.borrow().clone() {
            DeviceState::Loading { fence, .. } => DeviceState::Loading {
                fence,
                load: self.owner.shared.progress.report(Instant::now()),
            },
            state @ (DeviceState::Idle | DeviceState::Ready { .. } | DeviceState::Failed { .. }) => state,
        }
    }

    /// Tells the device what to hold, in place of what it holds; slices that are in both stay loaded. The outcome
    /// shows in [`DeviceHandle::state`]. Told again what it was told last, the device does nothing; a lower
    /// generation of the same replica is refused (PL-3).
    pub fn assign(&self, assignment: Assignment) -> Result<(), DeviceError> {
        let mut target = self.owner.shared.target();
        let asked = assignment.fence;
        if target.stopping {
            return Err(DeviceError::Stopped);
        }
        if !target.is_news(asked)? {
            return Ok(());
        }
        let place = self.control_place()?;
        let order = self.owner.shared.order.fetch_add(1, Ordering::Relaxed) + 1;
        target.hold(asked);
        self.put_control(Control::Assign { assignment, order }, place)
    }

    /// Frees what the device holds for this replica, up to this generation.
    pub fn release(&self, fence: Fence) -> Result<(), DeviceError> {
        let mut target = self.owner.shared.target();
        if target.stopping {
            return Err(DeviceError::Stopped);
        }
        let place = self.control_place()?;
        if target.free(fence) {
            self.owner.shared.order.fetch_add(1, Ordering::Relaxed);
        }
        self.put_control(Control::Release(fence), place)
    }

    /// Tells the device what to keep copies of, beside what it computes with and in place of the copies of before. They
    /// are loaded when it has nothing else to do; how far they are shows in [`DeviceHandle::report`].
    pub fn keep_copies(&self, copies: Copies) -> Result<(), DeviceError> {
        if self.owner.shared.target().stopping {
            return Err(DeviceError::Stopped);
        }
        let place = self.control_place()?;
        self.put_control(Control::Keep(copies), place)
    }

    /// Waits until the device is ready for this placement, or has failed for it.
    pub async fn ready(&self, fence: Fence, deadline: Instant) -> Result<(), DeviceError> {
        let mut state = self.state.clone();
        let ended = timeout_at(
            TokioInstant::from_std(deadline),
            state.wait_for(|state| match state {
                DeviceState::Ready { fence: found } | DeviceState::Failed { fence: found, .. } => {
                    *found == fence
                }
                DeviceState::Idle | DeviceState::Loading { .. } => false,
            }),
        );
        match ended.await {
            Err(_) => Err(DeviceError::Deadline {
                what: "loading the assigned slices",
            }),
            Ok(Err(_)) => Err(DeviceError::Stopped),
            Ok(Ok(state)) => match &*state {
                DeviceState::Failed { reason, .. } => Err(DeviceError::Failed {
                    reason: reason.clone(),
                }),
                DeviceState::Idle | DeviceState::Loading { .. } | DeviceState::Ready { .. } => Ok(()),
            },
        }
    }

    /// Enters a step at the end of the queue, or says that the queue is full. Steps run in the order of these calls.
    pub fn try_step(
        &self,
        batch: StepBatch,
        input: StageInput,
        deadline: Instant,
    ) -> Result<Reply<StageOutput>, DeviceError> {
        self.check_ready(batch.fence)?;
        let place = try_place(&self.owner.shared.places.steps, "steps", STEP_PLACES)?;
        self.enter_step(batch, input, deadline, place)
    }

    /// Enters a step as soon as there is a place for it and returns what waits for the answer. Calls that wait for a
    /// place get one in their order.
    pub async fn enqueue_step(
        &self,
        batch: StepBatch,
        input: StageInput,
        deadline: Instant,
    ) -> Result<Reply<StageOutput>, DeviceError> {
        self.check_ready(batch.fence)?;
        let place = place(&self.owner.shared.places.steps, "entering a step", deadline).await?;
        self.enter_step(batch, input, deadline, place)
    }

    /// Runs a step and waits for what comes of it.
    pub async fn step(
        &self,
        batch: StepBatch,
        input: StageInput,
        deadline: Instant,
    ) -> Result<StageOutput, DeviceError> {
        self.enqueue_step(batch, input, deadline).await?.wait().await
    }

    /// Computes experts that the device holds, for the owner of a stage elsewhere.
    pub async fn experts(&self, work: ExpertWork, deadline: Instant) -> Result<ExpertResults, DeviceError> {
        self.check_ready(work.fence)?;
        let place = place(
            &self.owner.shared.places.experts,
            "entering expert work",
            deadline,
        )
        .await?;
        let (sender, receiver) = oneshot::channel();
        self.put(Command::Experts(ExpertRequest {
            work,
            deadline,
            reply: ExpertReply::Task(sender),
            _place: Some(place),
        }))?;
        self.reply("expert work", receiver, deadline).wait().await
    }

    /// As [`DeviceHandle::experts`], for another device of this process: the answer, and every refusal, goes to
    /// that device's inbox.
    pub fn experts_for_device(&self, work: ExpertWork, answer: ExpertAnswer, deadline: Instant) {
        let entered = self.check_ready(work.fence).and_then(|()| {
            let place = try_place(&self.owner.shared.places.experts, "expert work", EXPERT_PLACES)?;
            Ok(place)
        });
        match entered {
            Err(error) => answer.deliver(Err(error.to_string())),
            // When the thread has ended, the dropped answer tells the owner.
            Ok(place) => drop(self.put(Command::Experts(ExpertRequest {
                work,
                deadline,
                reply: ExpertReply::Device(answer),
                _place: Some(place),
            }))),
        }
    }

    /// Ends the device's thread, giving up what it is doing, and waits until its memory is free.
    pub async fn stop(&self, limit: Duration) -> Result<(), DeviceError> {
        self.begin_stop();
        let mut state = self.state.clone();
        // The thread drops the sending side when everything else is gone.
        let ended = async { while state.changed().await.is_ok() {} };
        match timeout_at(TokioInstant::now() + limit, ended).await {
            Ok(()) => Ok(()),
            Err(_) => Err(DeviceError::StillRunning { waited: limit }),
        }
    }

    /// Tells the thread to end.
    pub fn begin_stop(&self) {
        self.owner.begin_stop();
    }

    fn put_control(&self, control: Control, place: OwnedSemaphorePermit) -> Result<(), DeviceError> {
        self.put(Command::Control(ControlCommand {
            control,
            _place: Some(place),
        }))
    }

    fn control_place(&self) -> Result<OwnedSemaphorePermit, DeviceError> {
        try_place(&self.owner.shared.places.controls, "assignments", CONTROL_PLACES)
    }

    fn enter_step(
        &self,
        batch: StepBatch,
        input: StageInput,
        deadline: Instant,
        place: OwnedSemaphorePermit,
    ) -> Result<Reply<StageOutput>, DeviceError> {
        let (reply, receiver) = oneshot::channel();
        self.put(Command::Step(StepCommand {
            batch,
            input,
            deadline,
            reply,
            _place: place,
        }))?;
        Ok(self.reply("a step", receiver, deadline))
    }

    fn reply<T>(
        &self,
        what: &'static str,
        receiver: oneshot::Receiver<Result<T, DeviceError>>,
        deadline: Instant,
    ) -> Reply<T> {
        Reply {
            what,
            receiver,
            deadline,
            state: self.state.clone(),
        }
    }

    /// Refuses work of another placement at once, without waiting for a thread that loads.
    fn check_ready(&self, asked: Fence) -> Result<(), DeviceError> {
        serving(&self.state.borrow(), asked)
    }

    fn put(&self, command: Command) -> Result<(), DeviceError> {
        self.owner
            .sender
            .try_send(command)
            .map_err(|_| DeviceError::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use tramontane_model::ids::{Generation, ReplicaId};

    use super::*;

    #[test]
    fn a_device_whose_thread_hangs_has_failed() {
        let fence = Fence {
            replica: ReplicaId(1),
            generation: Generation(2),
        };
        let info = DeviceInfo {
            name: "a GPU".to_owned(),
            driver: String::new(),
            kind: String::new(),
            memory_bytes: 1,
            is_cpu: false,
        };
        let shared = Arc::new(Shared::new(DeviceIndex(0), info, 1, Duration::ZERO));
        let (sender, _inbox) = sync_channel(1);
        let (_publisher, state) = watch::channel(DeviceState::Ready { fence });
        let handle = DeviceHandle::new(Arc::clone(&shared), sender, state);
        assert_eq!(handle.report().state, DeviceState::Ready { fence });
        let long_ago = Instant::now()
            .checked_sub(Duration::from_secs(3))
            .expect("after the start");
        shared.busy.set(Some((fence, long_ago)));
        let DeviceState::Failed {
            fence: failed,
            reason,
        } = handle.report().state
        else {
            panic!("{:?}", handle.report());
        };
        assert_eq!(failed, fence);
        assert_eq!(
            reason,
            "the device hangs: its thread has been at one piece of work for 3s"
        );
        shared.busy.set(None);
        assert_eq!(handle.report().state, DeviceState::Ready { fence });
    }
}
