//! Copies tensors from the mapped checkpoint to the device, in chunks.
//!
//! The host holds no copy of a tensor: a chunk goes from what was read ahead, or from the mapped file, to the backend, which
//! writes it to where it stays if the device's memory is the host's, else through bounded staging memory. Rows that are
//! stored in another order than devices hold them are put in order chunk by chunk. Every chunk is checked for values that
//! are no numbers before it is written, and scales for those that nothing can be multiplied with.

use std::ops::Range;

use tramontane_model::checkpoint::{BadValue, TensorView, Weight};
use tramontane_model::placement::ExpertRange;
use tramontane_model::tensors::{FfnMatrix, HalfSplit, Shape, TensorId};

use super::ahead::{Ahead, chunks, chunks_of};
use super::{LoadProgress, LoadWatch, MirrorError, ModelFiles, WeightError, WeightSlice};
use tramontane_kernels::layers::{Head, OwnerLayer, TensorSource};
use tramontane_kernels::ops::{
    Backend, BankPart, DeviceBuffer, ExpertBank, ExpertLayout, Matrix, MatrixPart, OpError, PART_ALIGN,
    Scales, Vector, WeightFormat, split_rows,
};

/// What the values of some rows must be.
type Check<'v> = fn(&TensorView<'v>) -> Result<(), BadValue>;

/// Loads tensors of one model to one device.
pub(super) struct Loader<'a, D> {
    backend: &'a mut D,
    model: &'a ModelFiles,
    watch: &'a LoadWatch<'a>,
    ahead: Option<&'a Ahead<'a>>,
}

/// Where some rows are held.
struct Part<'b, B> {
    rows: Range<u32>,
    buffer: &'b B,
    offset: u64,
}

fn device_error(tensor: TensorId) -> impl Fn(OpError) -> WeightError {
    move |source| WeightError::Device {
        tensor: tensor.to_string(),
        source,
    }
}

/// Rows and columns; a vector is one row.
fn dims(shape: Shape) -> (u32, u32) {
    match shape {
        Shape::Matrix { rows, cols } => (rows, cols),
        Shape::Vector(len) => (1, len),
    }
}

/// Experts of a layer on their way to the device, record by record.
#[derive(Debug)]
pub(super) struct UnfinishedBank<B> {
    layer: u32,
    experts: ExpertRange,
    layout: ExpertLayout,
    parts: Vec<BankPart<B>>,
    /// The first expert that is not there.
    next: u32,
}

impl<B: DeviceBuffer> UnfinishedBank<B> {
    /// Which layer's experts they are.
    pub(super) fn slice(&self) -> WeightSlice {
        WeightSlice::Experts {
            layer: self.layer,
            experts: self.experts,
        }
    }

    /// The bank, once every record is there.
    pub(super) fn finish(self) -> Result<ExpertBank<B>, WeightError> {
        let first = TensorId::Expert {
            layer: self.layer,
            expert: self.experts.start(),
            matrix: FfnMatrix::W1,
        };
        ExpertBank::new(self.layout, self.experts.iter(), self.parts).map_err(device_error(first))
    }
}

impl<'a, D: Backend> Loader<'a, D> {
    pub(super) fn new(
        backend: &'a mut D,
        model: &'a ModelFiles,
        watch: &'a LoadWatch<'a>,
        ahead: Option<&'a Ahead<'a>>,
    ) -> Self {
        Self {
            backend,
            model,
            watch,
            ahead,
        }
    }

    pub(super) fn model(&self) -> &'a ModelFiles {
        self.model
    }

    pub(super) fn progress(&self) -> &'a LoadProgress {
        self.watch.progress
    }

    pub(super) fn embedding(&mut self) -> Result<Matrix<D::Buffer>, WeightError> {
        self.matrix(TensorId::Embedding, 1)
    }

    pub(super) fn head(&mut self) -> Result<Head<D::Buffer>, WeightError> {
        Ok(Head {
            norm: self.vector(TensorId::FinalNorm)?,
            output: match self.model.spec.tied_embeddings {
                true => None,
                false => Some(self.matrix(TensorId::Head, 1)?),
            },
        })
    }

    pub(super) fn layer(&mut self, layer: u32) -> Result<OwnerLayer<D::Buffer>, WeightError> {
        // In the order in which tensors are read ahead.
        let model = self.model;
        OwnerLayer::of(&model.spec, layer, self)
    }

    /// Memory for the records of some experts of a layer, which are still to be loaded.
    pub(super) fn begin_bank(
        &mut self,
        layer: u32,
        experts: ExpertRange,
    ) -> Result<UnfinishedBank<D::Buffer>, WeightError> {
        // Checked when the model was opened: a layer's experts are stored alike.
        let id = |matrix| TensorId::Expert {
            layer,
            expert: experts.start(),
            matrix,
        };
        let first = id(FfnMatrix::W1);
        let (up, down) = (self.weight(first)?, self.weight(id(FfnMatrix::W2))?);
        let (hidden, dim) = dims(up.shape());
        let layout = ExpertLayout::new(dim, hidden, (up.format(), down.format()));
        let layout = layout.map_err(device_error(first))?;
        let limit = self.backend.max_binding_bytes();
        let ranges = layout.split(experts.iter(), limit).map_err(device_error(first))?;
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges {
            let bytes = layout.bytes * u64::from(range.end - range.start);
            let label = format!("layers.{layer}.experts.{}..{}", range.start, range.end);
            let buffer = self
                .backend
                .alloc_weights(&label, bytes)
                .map_err(device_error(first))?;
            parts.push(BankPart {
                experts: range,
                buffer,
                offset: 0,
            });
        }
        Ok(UnfinishedBank {
            layer,
            experts,
            layout,
            parts,
            next: experts.start(),
        })
    }

    /// Loads one more record of a bank. Says whether all are there.
    pub(super) fn add_expert(&mut self, bank: &mut UnfinishedBank<D::Buffer>) -> Result<bool, WeightError> {
        let (layer, expert, layout) = (bank.layer, bank.next, bank.layout);
        let part = bank.parts.iter().find(|part| part.experts.contains(&expert));
        if let Some(part) = part {
            let record = layout.bytes * u64::from(expert - part.experts.start);
            for (matrix, values, scales) in [
                (FfnMatrix::W1, layout.w1, layout.s1),
                (FfnMatrix::W2, layout.w2, layout.s2),
                (FfnMatrix::W3, layout.w3, layout.s3),
            ] {
                let tensor = TensorId::Expert {
                    layer,
                    expert,
                    matrix,
                };
                let weight = self.stored(tensor)?;
                self.copy(tensor, weight.values(), (&part.buffer, record + values))?;
                self.copy_scales(&weight, &part.buffer, record + scales)?;
            }
        }
        bank.next += 1;
        Ok(bank.next >= bank.experts.end())
    }

    fn weight(&self, id: TensorId) -> Result<Weight<'a>, WeightError> {
        Ok(self.model.checkpoint.weight(&self.model.spec, id)?)
    }

    /// A weight whose bytes are there and, where there is a manifest, what they were.
    fn stored(&self, id: TensorId) -> Result<Weight<'a>, WeightError> {
        let weight = self.weight(id)?;
        let problem = |problem: String| WeightError::Files {
            tensor: id.to_string(),
            problem,
        };
        for view in weight.stored() {
            if (self.watch.cancelled)() {
                return Err(WeightError::Cancelled);
            }
            if let Some(mirror) = &self.model.mirror {
                let go_on = |_| !(self.watch.cancelled)();
                let fetched = mirror.need(view.file(), view.offset(), view.bytes().len() as u64, &go_on);
                fetched.map_err(|error| match error {
                    MirrorError::Cancelled => WeightError::Cancelled,
                    other @ (MirrorError::Net(_)
                    | MirrorError::Sources { .. }
                    | MirrorError::Folder { .. }
                    | MirrorError::Write { .. }) => problem(other.to_string()),
                })?;
            }
            let summed = self.model.checkpoint.check_sum(&view);
            summed.map_err(|error| problem(error.to_string()))?;
        }
        Ok(weight)
    }

    /// Copies a view's rows to a place of a buffer, chunk by chunk.
    fn copy(
        &mut self,
        id: TensorId,
        view: TensorView<'_>,
        (buffer, offset): (&D::Buffer, u64),
    ) -> Result<(), WeightError> {
        let whole = Part {
            rows: 0..u32::try_from(view.row_count()).unwrap_or(u32::MAX),
            buffer,
            offset,
        };
        self.copy_checked(id, view, &[whole], |chunk| chunk.check_finite())
    }

    /// Copies a matrix's rows to the parts that hold them.
    fn copy_rows(
        &mut self,
        id: TensorId,
        view: TensorView<'_>,
        parts: &[MatrixPart<D::Buffer>],
    ) -> Result<(), WeightError> {
        let parts: Vec<Part<'_, D::Buffer>> = parts
            .iter()
            .map(|part| Part {
                rows: part.rows.clone(),
                buffer: &part.buffer,
                offset: part.offset,
            })
            .collect();
        self.copy_checked(id, view, &parts, |chunk| chunk.check_finite())
    }

    fn copy_checked(
        &mut self,
        id: TensorId,
        view: TensorView<'_>,
        parts: &[Part<'_, D::Buffer>],
        check: fn(&TensorView<'_>) -> Result<(), BadValue>,
    ) -> Result<(), WeightError> {
        let row_bytes = (view.bytes().len() as u64)
            .checked_div(view.row_count())
            .unwrap_or(0);
        for rows in chunks(&view) {
            if (self.watch.cancelled)() {
                return Err(WeightError::Cancelled);
            }
            let mapped = view.rows(rows.clone())?;
            let read = self.ahead.and_then(|ahead| ahead.take(&mapped));
            let chunk = read.as_ref().and_then(|read| read.view(mapped));
            let chunk = chunk.unwrap_or(mapped);
            check(&chunk)?;
            for part in parts {
                let (start, end) = (rows.start.max(part.rows.start), rows.end.min(part.rows.end));
                if start < end {
                    let own = chunk.rows(start - rows.start..end - rows.start)?;
                    let at = part.offset + u64::from(start - part.rows.start) * row_bytes;
                    self.put(id, own.bytes(), part.buffer, at)?;
                }
            }
            match read.zip(self.ahead) {
                Some((read, ahead)) => ahead.give_back(read),
                None => self.model.checkpoint.let_go(&mapped),
            }
        }
        Ok(())
    }

    /// Copies some rows, counted as devices hold them, chunk by chunk.
    fn copy_in_order<'v>(
        &mut self,
        id: TensorId,
        (view, check): (TensorView<'v>, Check<'v>),
        (split, range): (HalfSplit, Range<u32>),
        buffer: &D::Buffer,
        offset: u64,
    ) -> Result<(), WeightError> {
        let row_bytes = (view.bytes().len() as u64)
            .checked_div(view.row_count())
            .unwrap_or(0);
        for rows in chunks_of(range.clone(), row_bytes) {
            let at = offset + u64::from(rows.start - range.start) * row_bytes;
            let mut chunk = Vec::new();
            for row in rows {
                let stored = split.stored(row);
                let row = view.rows(stored..stored + 1)?;
                check(&row)?;
                chunk.extend_from_slice(row.bytes());
            }
            self.put(id, &chunk, buffer, at)?;
        }
        Ok(())
    }

    fn put(&mut self, id: TensorId, bytes: &[u8], buffer: &D::Buffer, at: u64) -> Result<(), WeightError> {
        if (self.watch.cancelled)() {
            return Err(WeightError::Cancelled);
        }
        // Writes are of whole words: what is missing to one is added to the last.
        let (whole, rest) = bytes.split_at(bytes.len() / 4 * 4);
        self.backend.write(buffer, at, whole).map_err(device_error(id))?;
        if !rest.is_empty() {
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            let end = at + whole.len() as u64;
            self.backend.write(buffer, end, &last).map_err(device_error(id))?;
        }
        self.watch.progress.add(bytes.len() as u64);
        if let Some(ahead) = self.ahead {
            ahead.took(bytes.len() as u64);
        }
        Ok(())
    }

    /// Copies a weight's scales, laid out as [`WeightFormat`] says; nothing for formats without them.
    fn copy_scales(&mut self, weight: &Weight<'_>, buffer: &D::Buffer, at: u64) -> Result<(), WeightError> {
        let multipliers = weight.multipliers()?;
        if multipliers.is_empty() {
            return Ok(());
        }
        self.put(weight.id(), bytemuck::cast_slice(&multipliers), buffer, at)?;
        let (WeightFormat::Nvfp4, Some(scales)) = (weight.format(), weight.scales()) else {
            return Ok(());
        };
        let at = at + PART_ALIGN;
        match (weight.half_split(), weight.shape()) {
            (Some(split), Shape::Matrix { rows, .. }) => {
                let scales = (scales, TensorView::check_scales as Check<'_>);
                self.copy_in_order(weight.id(), scales, (split, 0..rows), buffer, at)
            }
            (Some(_) | None, _) => {
                let whole = Part {
                    rows: 0..u32::try_from(scales.row_count()).unwrap_or(u32::MAX),
                    buffer,
                    offset: at,
                };
                self.copy_checked(weight.id(), scales, &[whole], |chunk| chunk.check_scales())
            }
        }
    }
}

impl<D: Backend> TensorSource for Loader<'_, D> {
    type Buffer = D::Buffer;
    type Error = WeightError;

    /// Loads a matrix, split by rows at multiples of `unit` where it exceeds the binding limit.
    fn matrix(&mut self, id: TensorId, unit: u32) -> Result<Matrix<D::Buffer>, WeightError> {
        let weight = self.stored(id)?;
        let (rows, cols) = dims(weight.shape());
        let format = weight.format();
        let row_bytes = format.row_bytes(cols);
        let limit = self.backend.max_binding_bytes();
        let ranges = split_rows(rows, row_bytes, unit, limit).map_err(device_error(id))?;
        let mut parts = Vec::with_capacity(ranges.len());
        for rows in ranges {
            let bytes = row_bytes * u64::from(rows.end - rows.start);
            let buffer = self
                .backend
                .alloc_weights(&id.to_string(), bytes)
                .map_err(device_error(id))?;
            parts.push(MatrixPart {
                rows,
                buffer,
                offset: 0,
            });
        }
        match weight.half_split() {
            None => self.copy_rows(id, weight.values(), &parts)?,
            Some(split) => {
                for part in &parts {
                    let values = (weight.values(), TensorView::check_finite as Check<'_>);
                    self.copy_in_order(id, values, (split, part.rows.clone()), &part.buffer, part.offset)?;
                }
            }
        }
        let scales = match format.scale_bytes(rows, cols) {
            0 => None,
            bytes => {
                let label = format!("scales of {id}");
                let buffer = self
                    .backend
                    .alloc_weights(&label, bytes)
                    .map_err(device_error(id))?;
                self.copy_scales(&weight, &buffer, 0)?;
                Some(Scales { buffer, offset: 0 })
            }
        };
        Matrix::new(rows, cols, format, parts, scales).map_err(device_error(id))
    }

    fn vector(&mut self, id: TensorId) -> Result<Vector<D::Buffer>, WeightError> {
        let weight = self.stored(id)?;
        let (_, len) = dims(weight.shape());
        let bytes = u64::from(len) * 2;
        let buffer = self
            .backend
            .alloc_weights(&id.to_string(), bytes)
            .map_err(device_error(id))?;
        self.copy(id, weight.values(), (&buffer, 0))?;
        Vector::new(len, buffer, 0).map_err(device_error(id))
    }
}
