//! What a device thread is told, through its one inbox.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tramontane_model::ids::Fence;
use tramontane_model::step::{StepBatch, StepResult};

use super::DeviceError;
use super::exchange::{Answer, ExpertLinks, ExpertRequest};
use crate::weights::{Copies, DeviceSlices};

/// What a device is to hold and whom it works with.
#[derive(Clone)]
pub struct Assignment {
    /// The placement that it is part of.
    pub fence: Fence,
    /// The device's share of it.
    pub slices: DeviceSlices,
    /// The way to the expert groups of its stage that other devices compute.
    pub links: Arc<dyn ExpertLinks>,
}

impl std::fmt::Debug for Assignment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assignment")
            .field("fence", &self.fence)
            .field("slices", &self.slices)
            .finish_non_exhaustive()
    }
}

/// What a stage computes a step from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageInput {
    /// The token ids of the step: the first stage.
    Embed,
    /// Hidden states of all rows, in the order of the step's chunks: f32, little-endian, `dim` values a row.
    Hidden(Bytes),
}

/// What a stage has made of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum StageOutput {
    /// Hidden states for the next stage, as in [`StageInput::Hidden`].
    Hidden(Bytes),
    /// What the last stage sampled.
    Sampled(StepResult),
}

/// A step with everything it needs.
#[derive(Debug)]
pub(super) struct StepCommand {
    pub(super) batch: StepBatch,
    pub(super) input: StageInput,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Result<StageOutput, DeviceError>>,
    /// The place in the inbox, free again once the step is done.
    pub(super) _place: OwnedSemaphorePermit,
}

/// A change of what the device holds.
#[derive(Debug)]
pub(super) enum Control {
    /// Hold this.
    Assign {
        assignment: Assignment,
        /// Which order of the handle this is: a later one cancels it.
        order: u64,
    },
    /// Free what is held for this replica, up to this generation.
    Release(Fence),
    /// Keep these copies for others, in place of those of before.
    Keep(Copies),
    /// End the thread.
    Stop,
}

/// A change with its place in the inbox, which [`Control::Stop`] does not need.
#[derive(Debug)]
pub(super) struct ControlCommand {
    pub(super) control: Control,
    pub(super) _place: Option<OwnedSemaphorePermit>,
}

/// One entry of the inbox.
#[derive(Debug)]
pub(super) enum Command {
    /// A change of what the device holds.
    Control(ControlCommand),
    /// A step of the stage that the device owns.
    Step(StepCommand),
    /// Work for experts that the device holds.
    Experts(ExpertRequest),
    /// The answer to work that this device sent.
    Answer(Answer),
}
