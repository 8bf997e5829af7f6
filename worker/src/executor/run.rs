//! The executor: what a device holds for a placement, and a step from its input to its output.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tramontane_model::footprint::StepCapacity;
use tramontane_model::ids::{Fence, Generation, ReplicaId, SequenceId};
use tramontane_model::rope::RotaryTable;
use tramontane_model::step::{MAX_STEP_SEQUENCES, StepBatch};
use tramontane_proto::{ExpertResults, ExpertWork};

use super::masks::MaskMaker;
use super::open::OpenSequence;
use super::plan::{self, StepPlan};
use super::{DeviceError, ExpertExchange, StageInput, StageOutput, decoding};
use crate::weights::{
    DeviceSlices, ExpertSlice, LoadWatch, ModelFiles, StageSlice, WeightError, WeightSlice, WeightStore,
};
use tramontane_kernels::layers::{self, HeadBuffers, HolderBuffers, OwnerBuffers};
use tramontane_kernels::ops::{Backend, DeviceInfo, ExpertScratch, KvCache, OpError, ReadRange};

/// Most sequences whose sampling parameters a last stage keeps.
pub(super) const MAX_OPEN_SEQUENCES: usize = 64 * MAX_STEP_SEQUENCES;

/// The placement of rehearsals: no replica has this id.
const NOBODY: Fence = Fence {
    replica: ReplicaId(0),
    generation: Generation(0),
};

/// What an executor is made with.
#[derive(Clone, Copy, Debug)]
pub struct ExecutorOptions {
    /// How long the device may take over what it is waited for, and other devices over their experts.
    pub timeout: Duration,
}

/// The stage that the device owns.
#[derive(Debug)]
pub(super) struct OwnedStage<B> {
    pub(super) slice: StageSlice,
    pub(super) caches: Vec<KvCache<B>>,
    pub(super) buffers: OwnerBuffers<B>,
    /// There on the last stage.
    pub(super) head: Option<HeadBuffers<B>>,
    /// What is sampled from the open sequences' logits, and how; empty but on the last stage.
    pub(super) sampling: BTreeMap<SequenceId, OpenSequence>,
    /// There on the last stage.
    pub(super) masks: Option<MaskMaker>,
}

/// What the device needs to compute routed experts, its own stage's or others'.
#[derive(Debug)]
pub(super) struct HeldExperts<B> {
    pub(super) slices: Vec<ExpertSlice>,
    pub(super) scratch: ExpertScratch<B>,
    /// There if the device holds experts of stages of others.
    pub(super) for_others: Option<HolderBuffers<B>>,
}

/// What a device holds for one placement, beside weights.
#[derive(Debug)]
pub(super) struct Placed<B> {
    pub(super) fence: Fence,
    pub(super) capacity: StepCapacity,
    pub(super) stage: Option<OwnedStage<B>>,
    pub(super) experts: Option<HeldExperts<B>>,
}

/// Everything that a step uses, but for the placement's state.
pub(super) struct Device<'a, D: Backend> {
    pub(super) backend: &'a mut D,
    pub(super) model: &'a ModelFiles,
    pub(super) weights: &'a WeightStore<D::Buffer>,
    pub(super) capacity: StepCapacity,
    pub(super) timeout: Duration,
}

impl<D: Backend> Device<'_, D> {
    /// Runs what was recorded and reads buffers back: no later than `deadline`, nor than the device's own limit.
    pub(super) fn read(
        &mut self,
        ranges: &[ReadRange<D::Buffer>],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, DeviceError> {
        let limit = Instant::now() + self.timeout;
        Ok(self.backend.read(ranges, deadline.min(limit))?)
    }
}

/// A device's weights, cache and buffers, and the steps that run on them.
#[derive(Debug)]
pub struct Executor<D: Backend> {
    pub(super) backend: D,
    pub(super) model: Arc<ModelFiles>,
    options: ExecutorOptions,
    rotary: RotaryTable,
    pub(super) weights: WeightStore<D::Buffer>,
    /// What of the weights the placement asks for.
    pub(super) computes: Vec<WeightSlice>,
    /// What of the weights is kept for others beside that.
    pub(super) copies: Vec<WeightSlice>,
    placed: Option<Placed<D::Buffer>>,
    /// Whether the device was found to decode the model's formats as it must.
    decodes: bool,
}

impl<D: Backend> Executor<D> {
    /// An executor that holds nothing yet.
    pub fn new(backend: D, model: Arc<ModelFiles>, options: ExecutorOptions) -> Self {
        let rotary = RotaryTable::new(&model.spec.rope);
        Self {
            backend,
            model,
            options,
            rotary,
            weights: WeightStore::default(),
            computes: Vec::new(),
            copies: Vec::new(),
            placed: None,
            decodes: false,
        }
    }

    /// What the backend runs on.
    pub fn info(&self) -> &DeviceInfo {
        self.backend.info()
    }

    pub(super) fn timeout(&self) -> Duration {
        self.options.timeout
    }

    pub(super) fn model(&self) -> &ModelFiles {
        &self.model
    }

    pub(super) fn placed(&self) -> Option<&Placed<D::Buffer>> {
        self.placed.as_ref()
    }

    /// Bytes allocated on the device.
    pub fn held_bytes(&self) -> u64 {
        self.backend.held_bytes()
    }

    /// Holds these slices, in place of what is held. Weights in both stay on the device, and copies where there is room
    /// for them; cache and buffers are new.
    ///
    /// After an error the device holds no placement; what was loaded stays for the next attempt.
    pub fn load(
        &mut self,
        fence: Fence,
        slices: &DeviceSlices,
        watch: &LoadWatch<'_>,
    ) -> Result<(), DeviceError> {
        self.placed = None;
        self.computes = slices.weights();
        let planned = slices.planned_bytes(&self.model.spec, &self.model.bytes);
        let memory = self.backend.info().memory_bytes;
        self.fit_copies(memory.saturating_sub(planned));
        if planned > memory {
            return Err(WeightError::TooLarge { planned, memory }.into());
        }
        if !self.decodes {
            // Before anything is held, so that it finds room whatever is planned.
            let deadline = Instant::now() + self.options.timeout;
            decoding::check(&mut self.backend, self.model.formats.iter().copied(), deadline)?;
            self.decodes = true;
        }
        let mut placed = self.place(fence, slices)?;
        self.weights
            .load(&mut self.backend, &self.model, slices, watch)
            .map_err(|error| match error {
                WeightError::Cancelled => DeviceError::LoadCancelled { fence },
                error @ (WeightError::Tensor(_)
                | WeightError::Value(_)
                | WeightError::Rows(_)
                | WeightError::TooLarge { .. }
                | WeightError::Files { .. }
                | WeightError::Device { .. }) => error.into(),
            })?;
        self.backend.submit()?;
        if let Some(stage) = placed.stage.as_mut().filter(|stage| stage.slice.last) {
            let masks = MaskMaker::start(&self.model).map_err(|error| DeviceError::Failed {
                reason: format!("no threads for grammars could be started: {error}"),
            })?;
            stage.masks = Some(masks);
        }
        self.placed = Some(placed);
        Ok(())
    }

    /// Allocates cache and buffers.
    fn place(&mut self, fence: Fence, slices: &DeviceSlices) -> Result<Placed<D::Buffer>, OpError> {
        let (backend, spec) = (&mut self.backend, &self.model.spec);
        let capacity = slices.capacity;
        let stage = match &slices.stage {
            None => None,
            Some(slice) => Some(OwnedStage {
                slice: slice.clone(),
                caches: layers::caches(backend, spec, slice.layers, slice.kv)?,
                buffers: OwnerBuffers::new(backend, spec, capacity, slice.kv)?,
                head: match slice.last {
                    true => Some(HeadBuffers::new(backend, spec)?),
                    false => None,
                },
                sampling: BTreeMap::new(),
                masks: None,
            }),
        };
        let experts = match slices.experts.is_empty() {
            true => None,
            false => Some(HeldExperts {
                slices: slices.experts.clone(),
                scratch: layers::expert_scratch(backend, spec, capacity)?,
                for_others: match slices.serves_others() {
                    true => Some(HolderBuffers::new(backend, spec, capacity)?),
                    false => None,
                },
            }),
        };
        Ok(Placed {
            fence,
            capacity,
            stage,
            experts,
        })
    }

    /// Allocates cache and buffers for a placement that is nobody's.
    pub(super) fn place_alone(&mut self, slices: &DeviceSlices) -> Result<(), OpError> {
        self.placed = Some(self.place(NOBODY, slices)?);
        Ok(())
    }

    /// Frees everything but copies.
    pub fn release(&mut self) {
        self.placed = None;
        self.computes.clear();
        self.retain();
    }

    /// Runs a step through the stage that the device owns.
    ///
    /// `experts` reaches the groups that other devices compute; requests that come through it meanwhile are served. An
    /// error leaves the device ready for the next step, unless [`DeviceError::ends_device`] says otherwise.
    pub fn run(
        &mut self,
        batch: &StepBatch,
        input: StageInput,
        experts: &mut dyn ExpertExchange,
        deadline: Instant,
    ) -> Result<StageOutput, DeviceError> {
        let (capacity, stage, held) = match &mut self.placed {
            Some(Placed {
                fence,
                capacity,
                stage: Some(stage),
                experts,
            }) if *fence == batch.fence => (*capacity, stage, experts.as_ref()),
            placed => return Err(fenced(batch.fence, placed.as_ref())),
        };
        let mut device = Device {
            backend: &mut self.backend,
            model: &self.model,
            weights: &self.weights,
            capacity,
            timeout: self.options.timeout,
        };
        let spec = &self.model.spec;
        plan::check(batch, spec, stage.slice.kv, capacity)?;
        if stage.slice.last {
            stage.open_and_close(batch, spec.vocab_size)?;
        }
        let plan = StepPlan::new(batch, spec, stage.slice.kv, &self.rotary);
        device.upload(stage, &plan, batch, input)?;
        let mut run = StageRun {
            device,
            stage,
            held,
            plan: &plan,
            batch,
            experts,
            deadline,
        };
        for layer in run.stage.slice.layers.iter() {
            run.layer(layer)?;
        }
        run.output()
    }

    /// Computes experts that the device holds, for the owner of a stage elsewhere.
    pub fn run_experts(
        &mut self,
        work: &ExpertWork,
        deadline: Instant,
    ) -> Result<ExpertResults, DeviceError> {
        let placed = match &self.placed {
            Some(placed) if placed.fence == work.fence => placed,
            placed => return Err(fenced(work.fence, placed.as_ref())),
        };
        let mut device = Device {
            backend: &mut self.backend,
            model: &self.model,
            weights: &self.weights,
            capacity: placed.capacity,
            timeout: self.options.timeout,
        };
        device.serve(placed.experts.as_ref(), work, deadline)
    }
}

fn fenced<B>(asked: Fence, placed: Option<&Placed<B>>) -> DeviceError {
    let serving = match placed {
        None => "holds nothing".to_owned(),
        Some(placed) if placed.fence == asked => "owns no stage of it".to_owned(),
        Some(placed) => format!("serves {}", placed.fence),
    };
    DeviceError::Fenced { asked, serving }
}

impl<D: Backend> Device<'_, D> {
    /// Uploads what a step needs and brings the residual stream to where its first layer reads it.
    fn upload(
        &mut self,
        stage: &OwnedStage<D::Buffer>,
        plan: &StepPlan,
        batch: &StepBatch,
        input: StageInput,
    ) -> Result<(), DeviceError> {
        let buffers = &stage.buffers;
        if plan.order.is_empty() {
            return Ok(());
        }
        self.backend
            .write(&buffers.meta, 0, bytemuck::cast_slice(&plan.meta))?;
        self.backend
            .write(&buffers.rotary, 0, bytemuck::cast_slice(&plan.rotary))?;
        self.backend
            .write(&buffers.tables, 0, bytemuck::cast_slice(&plan.tables))?;
        let input_error = |problem: String| DeviceError::Input {
            step: batch.step,
            problem,
        };
        // The embedding may be held as a last stage's head, or for another device, too.
        let table = self.weights.embedding().filter(|_| stage.slice.first);
        match (input, table) {
            (StageInput::Embed, Some(table)) => {
                self.backend
                    .write(&buffers.tokens, 0, bytemuck::cast_slice(&plan.tokens))?;
                self.backend.embed(&tramontane_kernels::ops::Embed {
                    tokens: &buffers.tokens,
                    table,
                    output: &buffers.hidden,
                    rows: plan.rows,
                })?;
            }
            (StageInput::Embed, None) => {
                let problem = "came without hidden states, but the stage is not the first";
                return Err(input_error(problem.to_owned()));
            }
            (StageInput::Hidden(_), Some(_)) => {
                let problem = "came with hidden states, but the stage is the first";
                return Err(input_error(problem.to_owned()));
            }
            (StageInput::Hidden(values), None) => {
                let row_bytes = self.model.spec.dim as usize * 4;
                let needed = plan.order.len() * row_bytes;
                if values.len() != needed {
                    let problem = format!(
                        "came with {} bytes of hidden states, {needed} are needed",
                        values.len()
                    );
                    return Err(input_error(problem));
                }
                let values = if plan.is_in_order() {
                    values
                } else {
                    let row = |&row: &u32| &values[row as usize * row_bytes..][..row_bytes];
                    let rows: Vec<&[u8]> = plan.order.iter().map(row).collect();
                    Bytes::from(rows.concat())
                };
                self.backend.write(&buffers.hidden, 0, &values)?;
            }
        }
        Ok(())
    }
}

/// A step on its way through the layers.
pub(super) struct StageRun<'a, D: Backend> {
    pub(super) device: Device<'a, D>,
    pub(super) stage: &'a OwnedStage<D::Buffer>,
    pub(super) held: Option<&'a HeldExperts<D::Buffer>>,
    pub(super) plan: &'a StepPlan,
    pub(super) batch: &'a StepBatch,
    pub(super) experts: &'a mut dyn ExpertExchange,
    pub(super) deadline: Instant,
}

impl<D: Backend> StageRun<'_, D> {
    /// Reads what the stage has made of the step.
    fn output(mut self) -> Result<StageOutput, DeviceError> {
        if self.stage.slice.last {
            return self.sample().map(StageOutput::Sampled);
        }
        if self.plan.order.is_empty() {
            return Ok(StageOutput::Hidden(Bytes::new()));
        }
        let row_bytes = self.device.model.spec.dim as usize * 4;
        let range = ReadRange {
            buffer: self.stage.buffers.hidden.clone(),
            offset: 0,
            bytes: (self.plan.order.len() * row_bytes) as u64,
        };
        let read = self.device.read(&[range], self.deadline)?;
        let rows = read.into_iter().next().unwrap_or_default();
        if self.plan.is_in_order() {
            return Ok(StageOutput::Hidden(rows.into()));
        }
        let mut in_step_order = vec![0; rows.len()];
        for (row, &to) in rows.chunks_exact(row_bytes).zip(&self.plan.order) {
            in_step_order[to as usize * row_bytes..][..row_bytes].copy_from_slice(row);
        }
        Ok(StageOutput::Hidden(in_step_order.into()))
    }
}
