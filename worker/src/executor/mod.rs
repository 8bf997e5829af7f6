//! Runs a [`tramontane_model::step::StepBatch`] through the layers of a stage.
//!
//! [`Executor`] is the work itself, over any [`tramontane_kernels::ops::Backend`]: weights, cache, step buffers, layers, sampler.
//! [`DeviceHandle`] is how the rest of the worker reaches it: one OS thread per device, one bounded inbox. No decision
//! about what to run is taken here (that is the scheduler's), and no connection is made (that is the peer links').
//!
//! **DET-1:** a row's result depends on its sequence, its role and the weights alone. Rows are split by role, every op
//! keeps its promise for any number of rows, and experts are combined in their order whoever computed them.

mod busy;
mod command;
mod copies;
mod copying;
mod decoding;
mod error;
mod exchange;
pub mod fencing;
mod handle;
mod head;
mod holder;
mod inbox;
mod layer;
mod links;
mod masks;
mod moe;
mod open;
mod plan;
mod remote;
mod run;
mod shared;
mod thread;
mod warm_up;

pub use command::{Assignment, StageInput, StageOutput};
pub use error::DeviceError;
pub use exchange::{
    AllExpertsHere, ExchangeError, ExchangeEvent, ExpertAnswer, ExpertExchange, ExpertLinks, ExpertRequest,
};
pub use handle::{DeviceHandle, Reply};
pub use inbox::{ANSWER_PLACES, CONTROL_PLACES, EXPERT_PLACES, STEP_PLACES};
pub use links::LocalLinks;
pub use open::OpenSequence;
pub use run::{Executor, ExecutorOptions};
pub use thread::DeviceOptions;
