//! A backend around another that says what is recorded, or passes on one op of it: so that what is measured is what
//! runs, and in the very calls that whoever serves makes.

use std::time::Instant;

use super::Seen;
use super::cost::{self, Cost};
use crate::ops::{
    Adjust, Attention, Backend, Combine, DeviceBuffer, DeviceInfo, Embed, ExpandedAttention, Experts, GateUp,
    LatentWrite, Linear, OpError, Queries, ReadRange, RmsNorm, RotateQkv, Route, Sample, Values,
};

/// An op that was recorded.
#[derive(Clone, Debug)]
pub struct Recorded<B> {
    /// Which op.
    pub op: &'static str,
    /// Where the weight that it was given stands in the host's memory: whoever recorded the op knows which one that is.
    /// 0 without.
    pub weight: usize,
    /// What it must read, write and compute.
    pub cost: Cost,
    /// Rows that it was given.
    pub rows: u32,
    /// Different experts whose weights it reads.
    pub experts: u32,
    /// Where its result is.
    pub output: B,
}

/// What becomes of an op.
#[derive(Clone, Copy, Debug)]
enum Mode {
    /// It is noted and passed on.
    All,
    /// It is noted.
    None,
    /// It is passed on if so many came before it.
    Only(usize),
}

/// The backend.
#[derive(Debug)]
pub struct Probe<D: Backend> {
    inner: D,
    mode: Mode,
    seen: Seen,
    recorded: Vec<Recorded<D::Buffer>>,
    /// Ops since the mode was set.
    count: usize,
}

fn place<T>(weight: &T) -> usize {
    std::ptr::from_ref(weight).addr()
}

impl<D: Backend> Probe<D> {
    /// Passes everything on.
    pub fn new(inner: D) -> Self {
        Self {
            inner,
            mode: Mode::All,
            seen: Seen::default(),
            recorded: Vec::new(),
            count: 0,
        }
    }

    /// What is inside.
    pub fn inner(&mut self) -> &mut D {
        &mut self.inner
    }

    /// The ops since the last call that were noted.
    pub fn take(&mut self) -> Vec<Recorded<D::Buffer>> {
        std::mem::take(&mut self.recorded)
    }

    /// What `record` would record, where it sees so much; nothing is passed on.
    pub fn list(
        &mut self,
        seen: Seen,
        record: impl FnOnce(&mut Self) -> Result<(), OpError>,
    ) -> Result<Vec<Recorded<D::Buffer>>, OpError> {
        self.recorded.clear();
        self.seen = seen;
        self.within(Mode::None, record)?;
        Ok(self.take())
    }

    /// Passes on the op of what `record` records that has so many before it.
    pub fn only(
        &mut self,
        index: usize,
        record: impl FnOnce(&mut Self) -> Result<(), OpError>,
    ) -> Result<(), OpError> {
        self.within(Mode::Only(index), record)
    }

    fn within(
        &mut self,
        mode: Mode,
        record: impl FnOnce(&mut Self) -> Result<(), OpError>,
    ) -> Result<(), OpError> {
        (self.mode, self.count) = (mode, 0);
        let result = record(self);
        (self.mode, self.count) = (Mode::All, 0);
        result
    }

    /// Notes an op; says whether it is to be passed on.
    fn note(&mut self, op: &'static str, weight: usize, cost: Cost, rows: u32, output: &D::Buffer) -> bool {
        let index = self.count;
        self.count += 1;
        if let Mode::Only(wanted) = self.mode {
            return index == wanted;
        }
        self.recorded.push(Recorded {
            op,
            weight,
            cost,
            rows,
            experts: if op == "experts" { self.seen.experts } else { 0 },
            output: output.clone(),
        });
        matches!(self.mode, Mode::All)
    }
}

impl<D: Backend> Backend for Probe<D> {
    type Buffer = D::Buffer;

    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn max_binding_bytes(&self) -> u64 {
        self.inner.max_binding_bytes()
    }

    fn held_bytes(&self) -> u64 {
        self.inner.held_bytes()
    }

    fn alloc(&mut self, label: &str, bytes: u64) -> Result<D::Buffer, OpError> {
        self.inner.alloc(label, bytes)
    }

    fn alloc_weights(&mut self, label: &str, bytes: u64) -> Result<D::Buffer, OpError> {
        self.inner.alloc_weights(label, bytes)
    }

    fn write(&mut self, buffer: &D::Buffer, offset: u64, bytes: &[u8]) -> Result<(), OpError> {
        self.inner.write(buffer, offset, bytes)
    }

    fn submit(&mut self) -> Result<(), OpError> {
        self.inner.submit()
    }

    fn read(&mut self, ranges: &[ReadRange<D::Buffer>], deadline: Instant) -> Result<Vec<Vec<u8>>, OpError> {
        self.inner.read(ranges, deadline)
    }

    fn embed(&mut self, op: &Embed<'_, D::Buffer>) -> Result<(), OpError> {
        let rows = op.rows.total();
        match self.note("embed", place(op.table), cost::embed(op), rows, op.output) {
            true => self.inner.embed(op),
            false => Ok(()),
        }
    }

    fn rms_norm(&mut self, op: &RmsNorm<'_, D::Buffer>) -> Result<(), OpError> {
        let rows = op.rows.total();
        match self.note("rms_norm", place(op.weight), cost::rms_norm(op), rows, op.output) {
            true => self.inner.rms_norm(op),
            false => Ok(()),
        }
    }

    fn linear(&mut self, op: &Linear<'_, D::Buffer>) -> Result<(), OpError> {
        let rows = op.rows.total();
        match self.note("linear", place(op.weight), cost::linear(op), rows, op.output) {
            true => self.inner.linear(op),
            false => Ok(()),
        }
    }

    fn gate_up(&mut self, op: &GateUp<'_, D::Buffer>) -> Result<(), OpError> {
        let rows = op.rows.total();
        match self.note("gate_up", place(op.w1), cost::gate_up(op), rows, op.output) {
            true => self.inner.gate_up(op),
            false => Ok(()),
        }
    }

    fn latent_write(&mut self, op: &LatentWrite<'_, D::Buffer>) -> Result<(), OpError> {
        let (rows, output) = (op.rows.total(), op.cache.buffer());
        match self.note(
            "latent_write",
            place(op.norm),
            cost::latent_write(op),
            rows,
            output,
        ) {
            true => self.inner.latent_write(op),
            false => Ok(()),
        }
    }

    fn queries(&mut self, op: &Queries<'_, D::Buffer>) -> Result<(), OpError> {
        let rows = op.rows.total();
        match self.note("queries", place(op.wkv_b), cost::queries(op), rows, op.output) {
            true => self.inner.queries(op),
            false => Ok(()),
        }
    }

    fn rotate_qkv(&mut self, op: &RotateQkv<'_, D::Buffer>) -> Result<(), OpError> {
        let rows = op.rows.total();
        match self.note("rotate_qkv", 0, cost::rotate_qkv(op), rows, op.output) {
            true => self.inner.rotate_qkv(op),
            false => Ok(()),
        }
    }

    fn attention(&mut self, op: &Attention<'_, D::Buffer>) -> Result<(), OpError> {
        let (rows, cost) = (op.rows.total(), cost::attention(op, &self.seen));
        match self.note("attention", 0, cost, rows, op.output) {
            true => self.inner.attention(op),
            false => Ok(()),
        }
    }

    fn expanded_attention(&mut self, op: &ExpandedAttention<'_, D::Buffer>) -> Result<(), OpError> {
        let cost = cost::expanded_attention(op);
        let rows = op.sequences.iter().map(|piece| piece.rows).sum();
        match self.note("expanded_attention", place(op.wkv_b), cost, rows, op.output) {
            true => self.inner.expanded_attention(op),
            false => Ok(()),
        }
    }

    fn values(&mut self, op: &Values<'_, D::Buffer>) -> Result<(), OpError> {
        let rows = op.rows.total();
        match self.note("values", place(op.wkv_b), cost::values(op), rows, op.output) {
            true => self.inner.values(op),
            false => Ok(()),
        }
    }

    fn route(&mut self, op: &Route<'_, D::Buffer>) -> Result<(), OpError> {
        let rows = op.rows.total();
        match self.note("route", place(op.gate), cost::route(op), rows, op.logits) {
            true => self.inner.route(op),
            false => Ok(()),
        }
    }

    fn experts(&mut self, op: &Experts<'_, D::Buffer>) -> Result<(), OpError> {
        let (rows, cost) = (op.rows.total(), cost::experts(op, &self.seen));
        match self.note("experts", 0, cost, rows, op.output) {
            true => self.inner.experts(op),
            false => Ok(()),
        }
    }

    fn combine(&mut self, op: &Combine<'_, D::Buffer>) -> Result<(), OpError> {
        let rows = op.rows.total();
        match self.note("combine", 0, cost::combine(op), rows, op.output) {
            true => self.inner.combine(op),
            false => Ok(()),
        }
    }

    fn adjust(&mut self, op: &Adjust<'_, D::Buffer>) -> Result<(), OpError> {
        // A request that asks for it pays for it: nothing is counted.
        match self.note("adjust", 0, Cost::default(), op.count, op.logits) {
            true => self.inner.adjust(op),
            false => Ok(()),
        }
    }

    fn sample(&mut self, op: &Sample<'_, D::Buffer>) -> Result<(), OpError> {
        match self.note("sample", 0, cost::sample(op), op.rows, op.output) {
            true => self.inner.sample(op),
            false => Ok(()),
        }
    }
}

/// The name of the weight that stands there.
pub(super) fn name_of<B: DeviceBuffer>(
    recorded: &Recorded<B>,
    names: &[(usize, &'static str)],
) -> Option<&'static str> {
    let found = names.iter().find(|(place, _)| *place == recorded.weight);
    found.map(|(_, name)| *name)
}

/// Where a weight stands.
pub(super) fn place_of<T>(weight: &T) -> usize {
    place(weight)
}
