//! What can go wrong on a device, as those who ask it for work see it.

use std::time::Duration;

use tramontane_model::ids::{Fence, SequenceId, StepId};
use tramontane_model::sampling::SamplingError;
use tramontane_model::step::StepError;

use crate::weights::WeightError;
use tramontane_kernels::ops::OpError;

/// Error of a device.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// The work is of another placement than the one the device serves.
    #[error("asked to work for {asked}, the device {serving}")]
    Fenced {
        /// Whom the work is for.
        asked: Fence,
        /// What the device does instead, for people.
        serving: String,
    },
    /// A queue of the device is full.
    #[error("the device's queue of {queue} is full: it holds {limit}")]
    Busy {
        /// Which queue.
        queue: &'static str,
        /// How many it holds.
        limit: usize,
    },
    /// The work was not done in time.
    #[error("{what} was not done within its deadline")]
    Deadline {
        /// What was asked for.
        what: &'static str,
    },
    /// A step that breaks a bound.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A step that needs more than the device's buffers hold.
    #[error("step {step} has {found} {what}, the device's buffers hold {limit}")]
    Capacity {
        /// The step.
        step: StepId,
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Hidden states that do not fit the step, or none where there must be some.
    #[error("step {step}: {problem}")]
    Input {
        /// The step.
        step: StepId,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A sample for a sequence whose sampling parameters never came.
    #[error("step {step} samples sequence {sequence}, which was never opened on the last stage")]
    NotOpened {
        /// The step.
        step: StepId,
        /// The sequence.
        sequence: SequenceId,
    },
    /// Sampling parameters out of their ranges.
    #[error("step {step}: sequence {sequence}: {problem}")]
    Sampling {
        /// The step.
        step: StepId,
        /// The sequence.
        sequence: SequenceId,
        /// What is wrong.
        problem: SamplingError,
    },
    /// A request for experts that the device does not hold, or that is not well formed.
    #[error("expert work for layer {layer} of step {step}: {problem}")]
    ExpertWork {
        /// The step.
        step: StepId,
        /// The layer.
        layer: u32,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A group on another device did not answer as it must.
    #[error("step {step} layer {layer}: expert group {group} on {holder}: {problem}")]
    Experts {
        /// The step.
        step: StepId,
        /// The layer.
        layer: u32,
        /// The group.
        group: u32,
        /// Who computes it.
        holder: String,
        /// What happened.
        problem: String,
    },
    /// The step was given up because the device was told to do something else.
    #[error("step {step} was given up: the device was given a new assignment or told to stop")]
    Interrupted {
        /// The step.
        step: StepId,
    },
    /// Loading was given up because the device was told to do something else.
    #[error("loading for {fence} was given up: the device was given a new assignment or told to stop")]
    LoadCancelled {
        /// For whom it loaded.
        fence: Fence,
    },
    /// An assignment older than the one that the device serves.
    #[error("an assignment for {asked} came after one for {serving}")]
    Outdated {
        /// The older assignment.
        asked: Fence,
        /// The one that holds.
        serving: Fence,
    },
    /// Weights could not be loaded.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A command was refused, or the device is gone.
    #[error(transparent)]
    Op(#[from] OpError),
    /// The device has failed, and does nothing until it is assigned anew.
    #[error("the device has failed: {reason}")]
    Failed {
        /// Why.
        reason: String,
    },
    /// A fault of this program, caught.
    #[error("the device thread panicked: {reason}")]
    Panicked {
        /// The panic's message.
        reason: String,
    },
    /// The device thread has stopped.
    #[error("the device has stopped")]
    Stopped,
    /// The device thread did not end in time.
    #[error("the device thread did not end within {waited:?}")]
    StillRunning {
        /// How long it was waited for.
        waited: Duration,
    },
}

impl DeviceError {
    /// Whether the device cannot go on: it is lost, hangs, refuses commands, or this program failed on it.
    ///
    /// Everything else leaves it as it was, ready for the next step.
    pub fn ends_device(&self) -> bool {
        match self {
            Self::Op(error) | Self::Weights(WeightError::Device { source: error, .. }) => match error {
                OpError::Timeout { .. }
                | OpError::DeviceLost { .. }
                | OpError::Refused { .. }
                | OpError::Wrong { .. }
                | OpError::OutOfMemory { .. } => true,
                OpError::Shape { .. }
                | OpError::TooSmall { .. }
                | OpError::BindingLimit { .. }
                | OpError::Range { .. } => false,
            },
            Self::Panicked { .. } => true,
            Self::Fenced { .. }
            | Self::Busy { .. }
            | Self::Deadline { .. }
            | Self::Step(_)
            | Self::Capacity { .. }
            | Self::Input { .. }
            | Self::NotOpened { .. }
            | Self::Sampling { .. }
            | Self::ExpertWork { .. }
            | Self::Experts { .. }
            | Self::Interrupted { .. }
            | Self::LoadCancelled { .. }
            | Self::Outdated { .. }
            | Self::Weights(_)
            | Self::Failed { .. }
            | Self::Stopped
            | Self::StillRunning { .. } => false,
        }
    }
}
