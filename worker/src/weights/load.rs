//! Copies tensors from the mapped checkpoint to the device, in chunks.
//!
//! The host holds no copy of a tensor: a chunk goes from the mapped file to the backend, whose staging memory is
//! bounded. Rows that are stored in another order than devices hold them are put in order chunk by chunk. Every chunk is
//! checked for values that are not finite before it is written.

use std::ops::Range;

use tramontane_model::checkpoint::{TensorView, Weight};
use tramontane_model::placement::ExpertRange;
use tramontane_model::spec::AttentionSpec;
use tramontane_model::tensors::{self, FfnMatrix, HalfSplit, LayerTensor, Shape, TensorId};

use super::store::{
    FeedForward, GroupedAttention, Head, LatentAttention, LayerAttention, LayerFeedForward, OwnerLayer,
};
use super::{LoadWatch, ModelFiles, WeightError};
use crate::ops::{
    Backend, BankPart, ExpertBank, ExpertLayout, Matrix, MatrixPart, OpError, Scales, Vector, WeightFormat,
    split_rows,
};

/// Most bytes that are checked and written at once: how soon a cancelled load ends.
const CHUNK_BYTES: u64 = 8 << 20;

/// Loads tensors of one model to one device.
pub(super) struct Loader<'a, D> {
    backend: &'a mut D,
    model: &'a ModelFiles,
    watch: &'a LoadWatch<'a>,
}

fn device_error(tensor: TensorId) -> impl Fn(OpError) -> WeightError {
    move |source| WeightError::Device {
        tensor: tensor.to_string(),
        source,
    }
}

fn format_of(weight: &Weight<'_>) -> WeightFormat {
    match weight.format() {
        tensors::WeightFormat::Bf16 => WeightFormat::Bf16,
        tensors::WeightFormat::Fp8Block => WeightFormat::Fp8Block,
    }
}

/// Rows and columns; a vector is one row.
fn dims(shape: Shape) -> (u32, u32) {
    match shape {
        Shape::Matrix { rows, cols } => (rows, cols),
        Shape::Vector(len) => (1, len),
    }
}

impl<'a, D: Backend> Loader<'a, D> {
    pub(super) fn new(backend: &'a mut D, model: &'a ModelFiles, watch: &'a LoadWatch<'a>) -> Self {
        Self {
            backend,
            model,
            watch,
        }
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
        let id = |tensor| TensorId::Layer { layer, tensor };
        let feed_forward = match self.model.spec.moe_at(layer) {
            None => LayerFeedForward::Dense(self.feed_forward(layer, LayerTensor::Dense)?),
            Some(moe) => LayerFeedForward::Moe {
                gate: self.matrix(id(LayerTensor::Gate), 1)?,
                shared: match moe.n_shared_experts {
                    0 => None,
                    _ => Some(self.feed_forward(layer, LayerTensor::Shared)?),
                },
            },
        };
        Ok(OwnerLayer {
            attention_norm: self.vector(id(LayerTensor::AttentionNorm))?,
            attention: self.attention(layer)?,
            wo: self.matrix(id(LayerTensor::Wo), 1)?,
            ffn_norm: self.vector(id(LayerTensor::FfnNorm))?,
            feed_forward,
        })
    }

    fn attention(&mut self, layer: u32) -> Result<LayerAttention<D::Buffer>, WeightError> {
        let id = |tensor| TensorId::Layer { layer, tensor };
        Ok(match &self.model.spec.attention {
            AttentionSpec::Mla(mla) => {
                let head_rows = mla.qk_nope_head_dim + mla.v_head_dim;
                LayerAttention::Latent(LatentAttention {
                    wq_a: self.matrix(id(LayerTensor::WqA), 1)?,
                    q_a_norm: self.vector(id(LayerTensor::QANorm))?,
                    wq_b: self.matrix(id(LayerTensor::WqB), 1)?,
                    wkv_a: self.matrix(id(LayerTensor::WkvAWithMqa), 1)?,
                    kv_a_norm: self.vector(id(LayerTensor::KvANorm))?,
                    wkv_b: self.matrix(id(LayerTensor::WkvB), head_rows)?,
                })
            }
            AttentionSpec::Gqa(_) => LayerAttention::Grouped(GroupedAttention {
                wq: self.matrix(id(LayerTensor::Wq), 1)?,
                wk: self.matrix(id(LayerTensor::Wk), 1)?,
                wv: self.matrix(id(LayerTensor::Wv), 1)?,
            }),
        })
    }

    fn feed_forward(
        &mut self,
        layer: u32,
        of: fn(FfnMatrix) -> LayerTensor,
    ) -> Result<FeedForward<D::Buffer>, WeightError> {
        let id = |matrix| TensorId::Layer {
            layer,
            tensor: of(matrix),
        };
        self.same_format(id(FfnMatrix::W1), id(FfnMatrix::W3))?;
        Ok(FeedForward {
            w1: self.matrix(id(FfnMatrix::W1), 1)?,
            w2: self.matrix(id(FfnMatrix::W2), 1)?,
            w3: self.matrix(id(FfnMatrix::W3), 1)?,
        })
    }

    /// Loads the records of some experts of a layer.
    pub(super) fn experts(
        &mut self,
        layer: u32,
        experts: ExpertRange,
    ) -> Result<ExpertBank<D::Buffer>, WeightError> {
        let id = |expert, matrix| TensorId::Expert {
            layer,
            expert,
            matrix,
        };
        let first = id(experts.start(), FfnMatrix::W1);
        let weight = self.weight(first)?;
        let (hidden, dim) = dims(weight.shape());
        let layout = ExpertLayout::new(dim, hidden, format_of(&weight)).map_err(device_error(first))?;
        let limit = self.backend.max_binding_bytes();
        let ranges = layout.split(experts.iter(), limit).map_err(device_error(first))?;
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges {
            let bytes = layout.bytes * u64::from(range.end - range.start);
            let label = format!("layers.{layer}.experts.{}..{}", range.start, range.end);
            let buffer = self.backend.alloc(&label, bytes).map_err(device_error(first))?;
            for expert in range.clone() {
                let record = layout.bytes * u64::from(expert - range.start);
                for (matrix, values, scales) in [
                    (FfnMatrix::W1, layout.w1, layout.s1),
                    (FfnMatrix::W3, layout.w3, layout.s3),
                    (FfnMatrix::W2, layout.w2, layout.s2),
                ] {
                    let tensor = id(expert, matrix);
                    self.same_format(first, tensor)?;
                    let weight = self.weight(tensor)?;
                    self.copy(tensor, weight.values(), &buffer, record + values)?;
                    self.copy_scales(&weight, &buffer, record + scales)?;
                }
            }
            parts.push(BankPart {
                experts: range,
                buffer,
                offset: 0,
            });
        }
        ExpertBank::new(layout, experts.iter(), parts).map_err(device_error(first))
    }

    /// Loads a matrix, split by rows at multiples of `unit` where it exceeds the binding limit.
    fn matrix(&mut self, id: TensorId, unit: u32) -> Result<Matrix<D::Buffer>, WeightError> {
        let weight = self.weight(id)?;
        let (rows, cols) = dims(weight.shape());
        let format = format_of(&weight);
        let row_bytes = format.row_bytes(cols);
        let limit = self.backend.max_binding_bytes();
        let ranges = split_rows(rows, row_bytes, unit, limit).map_err(device_error(id))?;
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges {
            let bytes = row_bytes * u64::from(range.end - range.start);
            let buffer = self
                .backend
                .alloc(&id.to_string(), bytes)
                .map_err(device_error(id))?;
            match weight.half_split() {
                None => self.copy(id, weight.values().rows(range.clone())?, &buffer, 0)?,
                Some(split) => self.copy_in_order(&weight, split, range.clone(), &buffer)?,
            }
            parts.push(MatrixPart {
                rows: range,
                buffer,
                offset: 0,
            });
        }
        let scales = match format {
            WeightFormat::Bf16 => None,
            WeightFormat::Fp8Block => {
                let bytes = format.scale_count(rows, cols) * 4;
                let buffer = self
                    .backend
                    .alloc(&id.scale_name(), bytes)
                    .map_err(device_error(id))?;
                self.copy_scales(&weight, &buffer, 0)?;
                Some(Scales { buffer, offset: 0 })
            }
        };
        Matrix::new(rows, cols, format, parts, scales).map_err(device_error(id))
    }

    fn vector(&mut self, id: TensorId) -> Result<Vector<D::Buffer>, WeightError> {
        let weight = self.weight(id)?;
        let (_, len) = dims(weight.shape());
        let bytes = u64::from(len) * 2;
        let buffer = self
            .backend
            .alloc(&id.to_string(), bytes)
            .map_err(device_error(id))?;
        self.copy(id, weight.values(), &buffer, 0)?;
        Vector::new(len, buffer, 0).map_err(device_error(id))
    }

    fn weight(&self, id: TensorId) -> Result<Weight<'a>, WeightError> {
        Ok(self.model.checkpoint.weight(&self.model.spec, id)?)
    }

    fn same_format(&self, first: TensorId, second: TensorId) -> Result<(), WeightError> {
        let (first_format, second_format) =
            (format_of(&self.weight(first)?), format_of(&self.weight(second)?));
        if first_format == second_format {
            return Ok(());
        }
        Err(WeightError::Formats {
            first: first.to_string(),
            second: second.to_string(),
            first_format,
            second_format,
        })
    }

    /// Copies a view's rows to the device, chunk by chunk.
    fn copy(
        &mut self,
        id: TensorId,
        view: TensorView<'_>,
        buffer: &D::Buffer,
        offset: u64,
    ) -> Result<(), WeightError> {
        let rows = u32::try_from(view.row_count()).unwrap_or(u32::MAX);
        let row_bytes = (view.bytes().len() as u64)
            .checked_div(u64::from(rows))
            .unwrap_or(0)
            .max(1);
        let step = u32::try_from(CHUNK_BYTES / row_bytes).unwrap_or(u32::MAX).max(1);
        let mut start = 0;
        while start < rows {
            let end = start.saturating_add(step).min(rows);
            let chunk = view.rows(start..end)?;
            let at = offset + u64::from(start) * row_bytes;
            self.put(id, chunk, buffer, at)?;
            start = end;
        }
        Ok(())
    }

    /// Copies the rows `range` as devices hold them, chunk by chunk.
    fn copy_in_order(
        &mut self,
        weight: &Weight<'_>,
        split: HalfSplit,
        range: Range<u32>,
        buffer: &D::Buffer,
    ) -> Result<(), WeightError> {
        let (_, cols) = dims(weight.shape());
        let row_bytes = format_of(weight).row_bytes(cols);
        let step = u32::try_from(CHUNK_BYTES / row_bytes).unwrap_or(u32::MAX).max(1);
        for start in range.clone().step_by(step as usize) {
            if (self.watch.cancelled)() {
                return Err(WeightError::Cancelled);
            }
            let mut chunk = Vec::new();
            for row in start..start.saturating_add(step).min(range.end) {
                let stored = split.stored(row);
                let view = weight.values().rows(stored..stored + 1)?;
                view.check_finite()?;
                chunk.extend_from_slice(view.bytes());
            }
            let at = u64::from(start - range.start) * row_bytes;
            self.backend
                .write(buffer, at, &chunk)
                .map_err(device_error(weight.id()))?;
            self.watch.progress.add(chunk.len() as u64);
        }
        Ok(())
    }

    fn put(
        &mut self,
        id: TensorId,
        chunk: TensorView<'_>,
        buffer: &D::Buffer,
        at: u64,
    ) -> Result<(), WeightError> {
        if (self.watch.cancelled)() {
            return Err(WeightError::Cancelled);
        }
        chunk.check_finite()?;
        self.backend
            .write(buffer, at, chunk.bytes())
            .map_err(device_error(id))?;
        self.watch.progress.add(chunk.bytes().len() as u64);
        Ok(())
    }

    /// Copies a weight's scales, widened to f32; nothing for formats without them.
    fn copy_scales(&mut self, weight: &Weight<'_>, buffer: &D::Buffer, at: u64) -> Result<(), WeightError> {
        let scales = weight.scales_f32()?;
        if scales.is_empty() {
            return Ok(());
        }
        let bytes: &[u8] = bytemuck::cast_slice(&scales);
        self.backend
            .write(buffer, at, bytes)
            .map_err(device_error(weight.id()))?;
        self.watch.progress.add(bytes.len() as u64);
        Ok(())
    }
}
