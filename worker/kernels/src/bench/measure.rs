//! A measurement: ops one by one, and all of them, and what is kept of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tramontane_model::spec::{AttentionSpec, ModelSpec};

use super::ceilings::Flush;
use super::clock::{Record, Stopwatch};
use super::det_cost::Trials;
use super::probe::{Probe, Recorded, name_of};
use super::report::Table;
use super::{BenchError, Budget, Case, Cost, Options, Seen};
use crate::figures::{KernelFigures, Line, Missing, Part, Role};
use crate::gpu::{GpuBackend, GpuBuffer};
use crate::ops::OpError;

/// Ops that depend on the context.
pub(super) const OF_CONTEXT: [&str; 2] = ["attention", "expanded_attention"];
/// The name of a line of a whole layer.
const LAYER: &str = "layer";
/// Share of the budget that the calls of one line may take, where more than one is made.
const LINE_SHARE: f64 = 0.01;
/// Longest wait for what is read back.
pub(super) const TIMEOUT: Duration = Duration::from_secs(600);

/// A measurement that goes on.
pub(super) struct Bench<'a> {
    pub(super) options: &'a Options,
    pub(super) spec: &'a ModelSpec,
    pub(super) device: Probe<GpuBackend>,
    watch: Stopwatch,
    flush: Flush,
    pub(super) budget: Budget,
    pub(super) figures: KernelFigures,
    pub(super) table: Table<'a>,
    /// Seconds and cost of whole layers so far, by kind: what others are judged by before they run.
    pub(super) known: BTreeMap<Part, (f64, Cost)>,
    pub(super) trials: Option<Trials>,
}

/// Records a layer.
type RecordLayer<'w> = dyn Fn(&mut Probe<GpuBackend>, usize) -> Result<(), OpError> + 'w;

/// What a case is measured with: ops in turn, or all of them.
pub(super) struct Work<'w> {
    pub(super) part: Part,
    pub(super) case: Case,
    pub(super) names: Vec<(usize, &'static str)>,
    /// Records everything for the layer with this index.
    pub(super) record: &'w RecordLayer<'w>,
    /// Puts back what ops change that others depend on, before each call.
    pub(super) restore: &'w dyn Fn(&mut Probe<GpuBackend>) -> Result<(), OpError>,
    /// How many layers there are.
    pub(super) count: usize,
}

impl Work<'_> {
    /// What it is called where it is missing.
    pub(super) fn name(&self) -> String {
        case_name(self.part, self.case)
    }
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
        let is_latent = matches!(self.spec.attention, AttentionSpec::Mla(_));
        let expanded = given.clone().filter(|_| is_latent);
        let expanded = expanded.map(|(_, rows)| (Role::Expanded, rows));
        generated.chain(given).chain(expanded).collect()
    }

    pub(super) fn spent(&self) -> String {
        format!("the budget of {} s is spent: --budget", self.options.budget)
    }

    /// Measures those of the listed ops that are wanted, and what they would be without DET-1 if that was asked.
    pub(super) fn ops(
        &mut self,
        work: &Work<'_>,
        listed: &[Recorded<GpuBuffer>],
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), BenchError> {
        let mut lines = Vec::new();
        let wanted: Vec<_> = (listed.iter().enumerate())
            .filter(|(_, op)| wanted(op.op))
            .collect();
        for (done, &(index, op)) in wanted.iter().enumerate() {
            if self.budget.left_s() <= 0.0 {
                let left = wanted.len() - done;
                let reason = self.spent();
                self.miss(format!("{left} ops of {}", work.name()), reason)?;
                break;
            }
            let weight = name_of(op, &work.names).map(str::to_owned);
            match self.time_op(work, index) {
                Ok(seconds) => lines.push((index, self.line(work, op, weight, seconds))),
                Err(error) => {
                    let name = weight.map_or_else(String::new, |name| format!(" {name}"));
                    let what = format!("{}{name} of {}", op.op, work.name());
                    self.miss(what, error.to_string())?;
                }
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
        self.least(&mut |device| (work.restore)(device), &mut |device| {
            let layer = turn % work.count;
            turn += 1;
            device.only(index, |device| (work.record)(device, layer))
        })
    }

    fn line(&self, work: &Work<'_>, op: &Recorded<GpuBuffer>, weight: Option<String>, seconds: f64) -> Line {
        Line {
            context: OF_CONTEXT.contains(&op.op).then_some(work.case.context),
            experts: (op.op == "experts").then_some(op.experts),
            ..line(work, op.op, weight, op.rows, seconds, op.cost)
        }
    }

    /// Measures a whole layer, from the same rows each time.
    pub(super) fn whole(
        &mut self,
        work: &Work<'_>,
        listed: &[Recorded<GpuBuffer>],
        seen: Seen,
        refresh: &mut Record<'_>,
    ) -> Result<(), BenchError> {
        let what = work.name();
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

pub(super) fn total(listed: &[Recorded<GpuBuffer>]) -> Cost {
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

pub(super) fn rows_name(role: Role, rows: u32) -> String {
    format!("{rows} {} rows", role.name())
}

pub(super) fn case_name(part: Part, case: Case) -> String {
    let rows = rows_name(case.role, case.rows);
    match part {
        Part::MoeLayer | Part::DenseLayer => {
            format!("{}, {rows}, context {}", part_name(part), case.context)
        }
        Part::Ends => format!("{}, {rows}", part_name(part)),
    }
}
