//! Layers of each kind, with rows of each role and sequences of each length.

use std::collections::BTreeSet;
use std::time::Instant;

use super::measure::{Bench, OF_CONTEXT, TIMEOUT, Work, case_name, part_name, total};
use super::probe::Probe;
use super::step::{Layers, Step};
use super::weights::{Maker, names};
use super::{BenchError, Case, Cost};
use crate::figures::{Part, Role};
use crate::gpu::{GpuBackend, GpuBuffer};
use crate::ops::{Backend, OpError, ReadRange};

/// What of a layer is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    All,
    /// Attention and the whole: what depends on the context.
    OfContext,
    /// All else.
    Others,
}

impl Bench<'_> {
    /// All cases of one kind of layer.
    pub(super) fn layers(&mut self, part: Part) -> Result<(), BenchError> {
        let moe = self.spec.moe_layers();
        let is_there = match part {
            Part::MoeLayer => !moe.is_empty(),
            Part::DenseLayer => (moe.end - moe.start) < self.spec.n_layers,
            Part::Ends => false,
        };
        if !is_there {
            return Ok(());
        }
        let made = Layers::new(
            &mut Maker::new(&mut self.device, self.spec),
            part,
            self.options.layers,
        );
        let layers = match made {
            Ok(layers) => layers,
            Err(reason) => return self.miss(part_name(part).to_owned(), reason),
        };
        let cached = self.options.cached(self.device.info().is_cpu);
        for (role, rows) in self.rows() {
            // Expanded rows are given ones to all but attention.
            let mut wanted = match role {
                Role::Generated | Role::Given => Wanted::All,
                Role::Expanded => Wanted::OfContext,
            };
            let mut before = 0;
            for &context in self.options.context.each() {
                // A prompt is as long as its rows.
                let context = match role {
                    Role::Generated => context,
                    Role::Given | Role::Expanded => context.max(rows),
                };
                if context == before {
                    continue;
                }
                before = context;
                let case = Case {
                    role,
                    rows,
                    context,
                    cached,
                };
                if self.case(&layers, case, wanted)? {
                    wanted = Wanted::OfContext;
                }
            }
            if wanted == Wanted::All && self.budget.left_s() > 0.0 {
                // No context fits; most ops do not depend on it.
                let context = if role == Role::Given { rows } else { 1 };
                let case = Case {
                    role,
                    rows,
                    context,
                    cached,
                };
                self.case(&layers, case, Wanted::Others)?;
            }
        }
        Ok(())
    }

    /// What is wanted of one case. Says whether it could be measured.
    fn case(&mut self, layers: &Layers<GpuBuffer>, case: Case, wanted: Wanted) -> Result<bool, BenchError> {
        let what = case_name(layers.part, case);
        if self.budget.left_s() <= 0.0 {
            self.miss(what, self.spent())?;
            return Ok(false);
        }
        let made = Step::new(&mut Maker::new(&mut self.device, self.spec), layers, case);
        let mut step = match made {
            Ok(step) => step,
            Err(reason) => {
                self.miss(what, reason)?;
                return Ok(false);
            }
        };
        let spec = self.spec;
        let experts = spec.moe.as_ref().filter(|_| layers.part == Part::MoeLayer);
        step.seen.experts = experts.map_or(0, |moe| {
            moe.n_experts
                .min(case.rows.saturating_mul(moe.n_experts_per_token))
        });
        let outcome = self.estimate(layers, &step);
        let estimate = match outcome {
            Ok(estimate) => estimate,
            Err(error) => {
                self.miss(what, error.to_string())?;
                return Ok(false);
            }
        };
        // Each layer once to compile, each op, and the whole.
        let calls = 2.0 + layers.count() as f64;
        let left = self.budget.left_s();
        if let Some(seconds) = estimate
            .map(|seconds| calls * seconds)
            .filter(|&seconds| seconds > left)
        {
            let reason =
                format!("it would take about {seconds:.0} s, {left:.0} s of the budget are left: --budget");
            self.miss(what, reason)?;
            return Ok(false);
        }
        let ids = match self.first_call(layers, &step) {
            Ok(ids) => ids,
            Err(reason) => {
                self.miss(what, reason)?;
                return Ok(false);
            }
        };
        step.seen.experts = ids.iter().collect::<BTreeSet<_>>().len() as u32;
        let step = step;
        let record = |device: &mut Probe<GpuBackend>, index: usize| layers.record(device, spec, &step, index);
        // The router chooses anew from whatever its operands hold by then.
        let restore = |device: &mut Probe<GpuBackend>| {
            device.write(&step.buffers.expert_ids, 0, bytemuck::cast_slice(&ids))
        };
        let work = Work {
            part: layers.part,
            case,
            names: layers.owners.first().map(names).unwrap_or_default(),
            record: &record,
            restore: &restore,
            count: layers.count(),
        };
        let seen = step.seen;
        let listed = match self.device.list(seen, |device| record(device, 0)) {
            Ok(listed) => listed,
            Err(error) => {
                self.miss(what, error.to_string())?;
                return Ok(false);
            }
        };
        self.ops(&work, &listed, |op| match wanted {
            Wanted::All => true,
            Wanted::OfContext => OF_CONTEXT.contains(&op),
            Wanted::Others => !OF_CONTEXT.contains(&op),
        })?;
        if wanted != Wanted::Others {
            let mut refresh = |device: &mut Probe<GpuBackend>| {
                device.write(&step.buffers.hidden, 0, bytemuck::cast_slice(&step.hidden))
            };
            self.whole(&work, &listed, seen, &mut refresh)?;
        }
        Ok(true)
    }

    /// Seconds that a layer will take about, from those before.
    fn estimate(
        &mut self,
        layers: &Layers<GpuBuffer>,
        step: &Step<GpuBuffer>,
    ) -> Result<Option<f64>, OpError> {
        let spec = self.spec;
        let listed = self
            .device
            .list(step.seen, |device| layers.record(device, spec, step, 0))?;
        let cost = total(&listed);
        let known = self
            .known
            .get(&layers.part)
            .or_else(|| self.known.values().next());
        Ok(known.map(|(seconds, of)| {
            let ratio = |now: u64, then: u64| now as f64 / (then.max(1)) as f64;
            let moved = |cost: &Cost| cost.weight_bytes + cost.cache_bytes;
            seconds * ratio(cost.flops, of.flops).max(ratio(moved(&cost), moved(of)))
        }))
    }

    /// Every layer once, so that everything is compiled and every buffer has values. Gives the experts that the last one's
    /// rows chose.
    fn first_call(&mut self, layers: &Layers<GpuBuffer>, step: &Step<GpuBuffer>) -> Result<Vec<u32>, String> {
        let called = self.call_first(layers, step).map_err(|error| error.to_string());
        let (ids, hidden) = called?;
        if !hidden.iter().all(|value| value.is_finite()) {
            return Err("the layer's result is not finite".to_owned());
        }
        Ok(ids)
    }

    fn call_first(
        &mut self,
        layers: &Layers<GpuBuffer>,
        step: &Step<GpuBuffer>,
    ) -> Result<(Vec<u32>, Vec<f32>), OpError> {
        let spec = self.spec;
        let hidden = &step.buffers.hidden;
        for index in 0..layers.count() {
            self.device.write(hidden, 0, bytemuck::cast_slice(&step.hidden))?;
            layers.record(&mut self.device, spec, step, index)?;
        }
        self.device.take();
        let per_row = spec.moe.as_ref().filter(|_| layers.part == Part::MoeLayer);
        let ids = per_row.map_or(0, |moe| u64::from(moe.n_experts_per_token));
        let range = |buffer: &GpuBuffer, words: u64| ReadRange {
            buffer: buffer.clone(),
            offset: 0,
            bytes: u64::from(step.rows.total()) * words * 4,
        };
        let ranges = [
            range(&step.buffers.expert_ids, ids),
            range(hidden, spec.dim.into()),
        ];
        let read = self.device.read(&ranges, Instant::now() + TIMEOUT)?;
        let [ids, hidden] = read.as_slice() else {
            return Err(OpError::shape(
                "layer",
                "a read of two ranges gave another number",
            ));
        };
        Ok((
            bytemuck::pod_collect_to_vec(ids),
            bytemuck::pod_collect_to_vec(hidden),
        ))
    }
}
