//! The measurement: kinds of layers, cases of rows and contexts, ops of each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tramontane_model::spec::ModelSpec;

use super::ceilings::Flush;
use super::clock::{Record, Stopwatch, finish};
use super::det_cost::Trials;
use super::probe::{Probe, Recorded, name_of, place_of};
use super::report::Table;
use super::step::{Layers, Step};
use super::weights::{Maker, names};
use super::{BenchError, Budget, Case, Cost, Options, Seen};
use crate::figures::{KernelFigures, Line, Missing, Part, Role};
use crate::gpu::{GpuBackend, GpuBuffer};
use crate::ops::{Backend, OpError, ReadRange};

/// The name of a line of a whole layer.
const LAYER: &str = "layer";
/// Share of the budget that the calls of one line may take, where more than one is made.
const LINE_SHARE: f64 = 0.01;
/// Longest wait for what is read back.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A measurement that goes on.
pub(super) struct Bench<'a> {
    options: &'a Options,
    pub(super) spec: &'a ModelSpec,
    pub(super) device: Probe<GpuBackend>,
    watch: Stopwatch,
    flush: Flush,
    pub(super) budget: Budget,
    pub(super) figures: KernelFigures,
    pub(super) table: Table<'a>,
    /// Seconds and cost of whole layers so far, by kind: what others are judged by before they run.
    known: BTreeMap<Part, (f64, Cost)>,
    pub(super) trials: Option<Trials>,
}

/// What a case is measured with: ops in turn, or all of them.
pub(super) struct Work<'w> {
    pub(super) part: Part,
    pub(super) case: Case,
    pub(super) names: Vec<(usize, &'static str)>,
    /// Records everything for the layer with this index.
    pub(super) record: &'w dyn Fn(&mut Probe<GpuBackend>, usize) -> Result<(), OpError>,
    /// How many layers there are.
    pub(super) count: usize,
}

impl<'a> Bench<'a> {
    pub(super) fn new(
        options: &'a Options,
        spec: &'a ModelSpec,
        device: Probe<GpuBackend>,
        (watch, flush, budget): (Stopwatch, Flush, Budget),
        figures: KernelFigures,
        table: Table<'a>,
    ) -> Self {
        Self {
            options,
            spec,
            device,
            watch,
            flush,
            budget,
            figures,
            table,
            known: BTreeMap::new(),
            trials: options.det_cost.then(Trials::default),
        }
    }

    /// What was found.
    pub(super) fn end(mut self) -> Result<KernelFigures, BenchError> {
        self.table.end(&self.figures)?;
        Ok(self.figures)
    }

    pub(super) fn miss(&mut self, what: String, reason: String) -> Result<(), BenchError> {
        let missing = Missing { what, reason };
        self.table.missing(&missing)?;
        self.figures.missing.push(missing);
        Ok(())
    }

    /// Rows of each role, ascending.
    pub(super) fn rows(&self) -> Vec<(Role, u32)> {
        let generated = self
            .options
            .rows
            .each()
            .iter()
            .map(|&rows| (Role::Generated, rows));
        let given = self
            .options
            .prefill
            .each()
            .iter()
            .map(|&rows| (Role::Given, rows));
        generated.chain(given).collect()
    }

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
        for (role, rows) in self.rows() {
            let mut others_are_done = false;
            let mut before = 0;
            for &context in self.options.context.each() {
                // A prompt is as long as its rows.
                let context = if role == Role::Given {
                    context.max(rows)
                } else {
                    context
                };
                if context == before {
                    continue;
                }
                before = context;
                let case = Case { role, rows, context };
                others_are_done |= self.case(&layers, case, others_are_done)?;
            }
        }
        Ok(())
    }

    /// One case; ops that do not depend on the context unless they are done. Says whether they are.
    fn case(
        &mut self,
        layers: &Layers<GpuBuffer>,
        case: Case,
        others_are_done: bool,
    ) -> Result<bool, BenchError> {
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
        // A call that compiles, each op, and the whole.
        if estimate.is_some_and(|seconds| 3.0 * seconds > self.budget.left_s()) {
            let reason = format!(
                "it would take about {:.0} s, of the budget {:.0} s are left: --budget",
                3.0 * estimate.unwrap_or(0.0),
                self.budget.left_s()
            );
            self.miss(what, reason)?;
            return Ok(false);
        }
        match self.first_call(layers, &step) {
            Ok(experts) => step.seen.experts = experts,
            Err(reason) => {
                self.miss(what, reason)?;
                return Ok(false);
            }
        }
        let step = step;
        let record = |device: &mut Probe<GpuBackend>, index: usize| layers.record(device, spec, &step, index);
        let work = Work {
            part: layers.part,
            case,
            names: layers.owners.first().map(names).unwrap_or_default(),
            record: &record,
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
        self.ops(&work, &listed, |op| op == "attention" || !others_are_done)?;
        let mut refresh = |device: &mut Probe<GpuBackend>| {
            device.write(&step.buffers.hidden, 0, bytemuck::cast_slice(&step.hidden))
        };
        self.whole(&work, &listed, seen, &mut refresh)?;
        Ok(true)
    }

    fn spent(&self) -> String {
        format!("the budget of {} s is spent: --budget", self.options.budget)
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

    /// Every layer once, so that everything is compiled and every buffer has values. Gives how many experts were chosen.
    fn first_call(&mut self, layers: &Layers<GpuBuffer>, step: &Step<GpuBuffer>) -> Result<u32, String> {
        let called = self.call_first(layers, step).map_err(|error| error.to_string());
        let (ids, hidden) = called?;
        if !hidden.iter().all(|value| value.is_finite()) {
            return Err("the layer's result is not finite".to_owned());
        }
        let mut ids = ids;
        ids.sort_unstable();
        ids.dedup();
        Ok(ids.len() as u32)
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

    /// Measures those of the listed ops that are wanted, and what they would be without DET-1 if that was asked.
    pub(super) fn ops(
        &mut self,
        work: &Work<'_>,
        listed: &[Recorded<GpuBuffer>],
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), BenchError> {
        let mut lines = Vec::new();
        for (index, op) in listed.iter().enumerate().filter(|(_, op)| wanted(op.op)) {
            let weight = name_of(op, &work.names).map(str::to_owned);
            let what = || {
                let name = weight
                    .as_ref()
                    .map_or_else(String::new, |name| format!(" {name}"));
                format!("{}{name} of {}", op.op, case_name(work.part, work.case))
            };
            if self.budget.left_s() <= 0.0 {
                let reason = self.spent();
                self.miss(what(), reason)?;
                continue;
            }
            match self.time_op(work, index) {
                Ok(seconds) => lines.push((index, self.line(work, op, weight, seconds))),
                Err(error) => self.miss(what(), error.to_string())?,
            }
        }
        self.det_cost(work, listed, &mut lines)?;
        for (_, line) in lines {
            self.table.line(&line, &self.figures.ceilings)?;
            self.figures.lines.push(line);
        }
        Ok(())
    }

    /// Least seconds of one op, with weights of each layer in turn.
    pub(super) fn time_op(&mut self, work: &Work<'_>, index: usize) -> Result<f64, OpError> {
        let mut turn = 0;
        self.least(&mut |_| Ok(()), &mut |device| {
            let layer = turn % work.count;
            turn += 1;
            device.only(index, |device| (work.record)(device, layer))
        })
    }

    fn line(&self, work: &Work<'_>, op: &Recorded<GpuBuffer>, weight: Option<String>, seconds: f64) -> Line {
        Line {
            context: (op.op == "attention").then_some(work.case.context),
            experts: (op.op == "experts").then_some(op.experts),
            ..line(work, op.op, weight, op.rows, seconds, op.cost)
        }
    }

    /// Measures a whole layer, from the same rows each time.
    fn whole(
        &mut self,
        work: &Work<'_>,
        listed: &[Recorded<GpuBuffer>],
        seen: Seen,
        refresh: &mut Record<'_>,
    ) -> Result<(), BenchError> {
        let what = case_name(work.part, work.case);
        if self.budget.left_s() <= 0.0 {
            let reason = self.spent();
            return self.miss(what, reason);
        }
        let mut turn = 0;
        let timed = self.least(refresh, &mut |device| {
            let layer = turn % work.count;
            turn += 1;
            (work.record)(device, layer)
        });
        self.device.take();
        let seconds = match timed {
            Ok(seconds) => seconds,
            Err(error) => return self.miss(what, error.to_string()),
        };
        let cost = total(listed);
        self.known.insert(work.part, (seconds, cost));
        let line = Line {
            context: Some(work.case.context),
            experts: (work.part == Part::MoeLayer).then_some(seen.experts),
            ..line(work, LAYER, None, work.case.rows, seconds, cost)
        };
        self.table.line(&line, &self.figures.ceilings)?;
        self.figures.lines.push(line);
        Ok(())
    }

    /// The least time of a few calls, each with operands that are in no cache.
    fn least(&mut self, before: &mut Record<'_>, work: &mut Record<'_>) -> Result<f64, OpError> {
        let started = Instant::now();
        let most = self.budget.limit.mul_f64(LINE_SHARE);
        let flush = self.flush.clone();
        let mut least = f64::INFINITY;
        for call in 0..self.options.repeats {
            if call > 0 && started.elapsed() > most {
                break;
            }
            let mut before = |device: &mut Probe<GpuBackend>| {
                before(device)?;
                flush.record(device);
                Ok(())
            };
            least = least.min(self.watch.time(&mut self.device, &mut before, work)?);
        }
        Ok(least)
    }

    /// Both ends of the model.
    pub(super) fn ends(&mut self) -> Result<(), BenchError> {
        let made = super::step::Ends::new(&mut Maker::new(&mut self.device, self.spec));
        let ends = match made {
            Ok(ends) => ends,
            Err(reason) => return self.miss(part_name(Part::Ends).to_owned(), reason),
        };
        let mut names = vec![(place_of(&ends.head.norm), "norm")];
        if let Some(output) = &ends.head.output {
            names.push((place_of(output), "output"));
        }
        let spec = self.spec;
        for (role, rows) in self.rows() {
            let case = Case {
                role,
                rows,
                context: 0,
            };
            let what = format!("{}, {}", part_name(Part::Ends), rows_name(role, rows));
            let rows = match ends.rows(&mut self.device, spec, role, rows) {
                Ok(rows) => rows,
                Err(reason) => {
                    self.miss(what, reason)?;
                    continue;
                }
            };
            let record = |device: &mut Probe<GpuBackend>, _: usize| ends.record(device, spec, &rows);
            let work = Work {
                part: Part::Ends,
                case,
                names: names.clone(),
                record: &record,
                count: 1,
            };
            let first = record(&mut self.device, 0).and_then(|()| finish(&mut self.device));
            self.device.take();
            let listed = first.and_then(|()| self.device.list(Seen::default(), |device| record(device, 0)));
            match listed {
                Ok(listed) => self.ops(&work, &listed, |_| true)?,
                Err(error) => self.miss(what, error.to_string())?,
            }
        }
        Ok(())
    }
}

fn line(work: &Work<'_>, op: &str, weight: Option<String>, rows: u32, seconds: f64, cost: Cost) -> Line {
    Line {
        part: work.part,
        op: op.to_owned(),
        weight,
        role: work.case.role,
        rows,
        context: None,
        seconds,
        weight_bytes: cost.weight_bytes,
        cache_bytes: cost.cache_bytes,
        input_bytes: cost.input_bytes,
        output_bytes: cost.output_bytes,
        flops: cost.flops,
        experts: None,
        fastest: None,
    }
}

fn total(listed: &[Recorded<GpuBuffer>]) -> Cost {
    let costs = listed.iter().map(|op| op.cost);
    costs.fold(Cost::default(), Cost::and)
}

pub(super) fn part_name(part: Part) -> &'static str {
    match part {
        Part::MoeLayer => "layer with experts",
        Part::DenseLayer => "dense layer",
        Part::Ends => "embedding, head and sampler",
    }
}

fn rows_name(role: Role, rows: u32) -> String {
    match role {
        Role::Generated => format!("{rows} generated rows"),
        Role::Given => format!("{rows} given rows"),
    }
}

fn case_name(part: Part, case: Case) -> String {
    let rows = rows_name(case.role, case.rows);
    match part {
        Part::MoeLayer | Part::DenseLayer => {
            format!("{}, {rows}, context {}", part_name(part), case.context)
        }
        Part::Ends => format!("{}, {rows}", part_name(part)),
    }
}
