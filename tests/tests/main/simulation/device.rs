//! A worker's device in the world: what it is told to hold, and stages that hash what their caches hold.
//!
//! Which generation it works for is the program's own rule (`worker/src/executor/fencing.rs`), and so is what the last
//! stage keeps of a sequence. Experts that other devices hold are loaded, but not asked.

use std::collections::{BTreeMap, VecDeque};

use tramontane_model::ids::{Fence, SequenceId};
use tramontane_model::members::{DeviceReport, DeviceState, LoadReport, StandbyReport};
use tramontane_model::placement::{KvShape, LayerRange, Replica};
use tramontane_model::sampling::SampledToken;
use tramontane_model::step::{StepLimits, StepResult};
use tramontane_sim::cache::Cache;
use tramontane_worker::executor::OpenSequence;
use tramontane_worker::executor::fencing::{Target, covers, serving};

use super::invariants::{Violation, kv2, pl3};
use super::network::Step;
use super::sampler;
use super::scenario::{MAX_POSITIONS, VOCAB};

/// The stage that the device owns.
pub(super) struct Stage {
    pub(super) fence: Fence,
    layers: LayerRange,
    kv: KvShape,
    is_last: bool,
    cache: Cache,
    open: BTreeMap<SequenceId, OpenSequence>,
    /// The latest opening of the pipeline that a step came from.
    run: u64,
}

/// What comes of a step.
pub(super) enum Done {
    /// To the next stage.
    Forward(Box<Step>),
    Sampled {
        run: u64,
        head: usize,
        result: StepResult,
    },
}

pub(super) struct Device {
    target: Target,
    pub(super) state: DeviceState,
    pub(super) stage: Option<Stage>,
    pub(super) steps: VecDeque<Step>,
    /// What the step that runs will come to.
    pub(super) running: Option<Done>,
    pub(super) is_busy: bool,
    /// Grows with each order; what loads for an earlier one is given up.
    pub(super) order: u64,
    /// Shares that it keeps copies of.
    pub(super) copies: u64,
}

impl Device {
    pub(super) fn new() -> Self {
        Self {
            target: Target::default(),
            state: DeviceState::Idle,
            stage: None,
            steps: VecDeque::new(),
            running: None,
            is_busy: false,
            order: 0,
            copies: 0,
        }
    }

    /// Told to hold its part of a placement. Says whether it begins to load.
    pub(super) fn assign(&mut self, replica: &Replica, stage: Option<usize>) -> Result<bool, String> {
        let fence = replica.fence();
        if !self.target.is_news(fence).map_err(|error| error.to_string())? {
            return Ok(false);
        }
        self.target.hold(fence);
        self.order += 1;
        self.state = DeviceState::Loading {
            fence,
            load: LoadReport {
                total_bytes: 1,
                ..LoadReport::default()
            },
        };
        self.stage = stage.map(|index| Stage {
            fence,
            layers: replica.stages[index].layers,
            kv: replica.kv,
            is_last: index + 1 == replica.stages.len(),
            cache: Cache::new(replica.kv.block_tokens),
            open: BTreeMap::new(),
            run: 0,
        });
        Ok(true)
    }

    /// Loaded what this order asked for. Says what it is ready for.
    pub(super) fn loaded(&mut self, order: u64) -> Option<Fence> {
        let fence = self.state.fence().filter(|_| order == self.order)?;
        self.state = DeviceState::Ready { fence };
        Some(fence)
    }

    pub(super) fn release(&mut self, fence: Fence) {
        if self.target.free(fence) {
            self.order += 1;
        }
        if self.state.fence().is_some_and(|held| covers(fence, held)) {
            self.state = DeviceState::Idle;
            self.stage = None;
        }
    }

    /// Says whether there was anything to fail.
    pub(super) fn fail(&mut self) -> bool {
        let Some(fence) = self.state.fence() else {
            return false;
        };
        self.order += 1;
        self.stage = None;
        let reason = "it broke".to_owned();
        self.state = DeviceState::Failed { fence, reason };
        true
    }

    pub(super) fn report(&self) -> DeviceReport {
        DeviceReport {
            index: tramontane_model::ids::DeviceIndex(0),
            held_bytes: 1,
            state: self.state.clone(),
            standby: StandbyReport {
                loaded_bytes: self.copies,
                total_bytes: self.copies,
            },
        }
    }

    /// Runs a step: nothing if the device does not serve it, or a newer opening of the pipeline took the link's place.
    pub(super) fn run(&mut self, step: Step) -> Result<Option<Done>, Refused> {
        serving(&self.state, step.batch.fence).map_err(|_| Refused::Fenced)?;
        let Some(stage) = &mut self.stage else {
            return Err(Refused::Fenced);
        };
        pl3::check_step(Some(stage.fence), step.batch.fence).map_err(Refused::Violation)?;
        if step.run < stage.run {
            return Ok(None);
        }
        stage.run = step.run;
        stage.run(step).map(Some).map_err(Refused::Violation)
    }
}

/// Why a step was not run.
pub(super) enum Refused {
    Fenced,
    Violation(Violation),
}

impl Stage {
    fn run(&mut self, mut step: Step) -> Result<Done, Violation> {
        let limits = StepLimits {
            vocab_size: VOCAB,
            max_positions: MAX_POSITIONS,
            block_tokens: self.kv.block_tokens,
            blocks: self.kv.blocks,
        };
        let broken = |what: String| Violation { rule: "KV-2", what };
        step.batch
            .validate(&limits)
            .map_err(|error| broken(error.to_string()))?;
        for chunk in &step.batch.chunks {
            self.cache.write(chunk);
        }
        for (chunk, state) in step.batch.chunks.iter().zip(&mut step.states) {
            for layer in self.layers.iter() {
                *state = kv2::check_read(self.cache.read(chunk, layer as usize, *state))?;
            }
        }
        if self.is_last {
            let (run, head) = (step.run, step.head);
            let result = self.sample(&step)?;
            return Ok(Done::Sampled { run, head, result });
        }
        step.stage += 1;
        Ok(Done::Forward(Box::new(step)))
    }

    fn sample(&mut self, step: &Step) -> Result<StepResult, Violation> {
        let batch = &step.batch;
        for closed in &batch.closed {
            self.open.remove(closed);
        }
        let mut tokens = Vec::new();
        for (chunk, &state) in batch.chunks.iter().zip(&step.states) {
            if let Some(opening) = &chunk.open {
                let open = OpenSequence::unconstrained(opening, chunk.first_position);
                self.open.insert(chunk.sequence, open);
            }
            if let Some(open) = self.open.get_mut(&chunk.sequence) {
                open.take_in(chunk);
            }
            if !chunk.sample {
                continue;
            }
            let open = self.open.get(&chunk.sequence);
            kv2::check_open(open.is_some(), chunk.sequence.0)?;
            if let Some(open) = open {
                let position = chunk.first_position + chunk.tokens.len() as u32;
                let token = sampler::sample(open, state, position, VOCAB);
                let sampled = SampledToken {
                    token,
                    logprob: 0.0,
                    top: Vec::new(),
                };
                tokens.push((chunk.sequence, sampled));
            }
        }
        Ok(StepResult {
            fence: batch.fence,
            step: batch.step,
            tokens,
            scored: Vec::new(),
            unsampled: Vec::new(),
        })
    }
}
