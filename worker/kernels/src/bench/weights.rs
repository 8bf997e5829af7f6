//! Random weights, written to the device from small blocks that repeat.

use tramontane_model::spec::ModelSpec;
use tramontane_model::tensors::{FfnMatrix, Shape, TensorId, TensorSpec, tensor_spec};

use super::probe::place_of;
use crate::layers::{FeedForward, Head, LayerAttention, LayerFeedForward, OwnerLayer, TensorSource};
use crate::ops::{
    Backend, BankPart, DeviceBuffer, ExpertBank, ExpertLayout, Matrix, MatrixPart, OpError, PART_ALIGN,
    Scales, Vector, WeightFormat, split_rows,
};
use crate::synthetic::{NVFP4_DIVISOR, Random, Values};

/// Bytes of a block: whole elements of every kind, and no multiple of a row, so that neighbouring rows differ.
const BLOCK_BYTES: usize = (1 << 20) - 12;

/// Makes weights of one model on one device.
pub(super) struct Maker<'a, D> {
    pub(super) backend: &'a mut D,
    pub(super) spec: &'a ModelSpec,
    blocks: Vec<(Values, Vec<u8>)>,
}

impl<'a, D: Backend> Maker<'a, D> {
    pub(super) fn new(backend: &'a mut D, spec: &'a ModelSpec) -> Self {
        let blocks = Vec::new();
        Self {
            backend,
            spec,
            blocks,
        }
    }

    /// What the owner of the last stage holds; of a model whose embedding is the output matrix, that.
    pub(super) fn head(&mut self) -> Result<Head<D::Buffer>, OpError> {
        Ok(Head {
            norm: self.vector(TensorId::FinalNorm)?,
            output: Some(self.matrix(TensorId::Head, 1)?),
        })
    }

    /// All experts of a layer.
    pub(super) fn bank(&mut self, layer: u32) -> Result<ExpertBank<D::Buffer>, OpError> {
        let expert = 0;
        let tensor = |matrix| {
            tensor_spec(
                self.spec,
                TensorId::Expert {
                    layer,
                    expert,
                    matrix,
                },
            )
        };
        let (up, down) = (tensor(FfnMatrix::W1), tensor(FfnMatrix::W2));
        let (hidden, dim) = dims(&up);
        let layout = ExpertLayout::new(dim, hidden, (up.usual_format, down.usual_format))?;
        let experts = 0..self.spec.n_experts();
        let ranges = layout.split(experts.clone(), self.backend.max_binding_bytes())?;
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges {
            let records = u64::from(range.end - range.start);
            let buffer = self.backend.alloc_weights("experts", layout.bytes * records)?;
            for record in 0..records {
                let at = layout.bytes * record;
                for (tensor, codes, scales) in [
                    (&up, layout.w1, layout.s1),
                    (&up, layout.w3, layout.s3),
                    (&down, layout.w2, layout.s2),
                ] {
                    let (rows, cols) = dims(tensor);
                    let bytes = u64::from(rows) * tensor.usual_format.row_bytes(cols);
                    let values = Values::codes(tensor.usual_format, cols);
                    self.fill(&buffer, at + codes, bytes, values)?;
                    self.scales(tensor, &buffer, at + scales)?;
                }
            }
            parts.push(BankPart {
                experts: range,
                buffer,
                offset: 0,
            });
        }
        ExpertBank::new(layout, experts, parts)
    }

    /// A matrix's section of scales, laid out as [`WeightFormat`] says.
    fn scales(&mut self, tensor: &TensorSpec, buffer: &D::Buffer, at: u64) -> Result<(), OpError> {
        let ((rows, cols), format) = (dims(tensor), tensor.usual_format);
        let bytes = format.scale_bytes(rows, cols);
        let values = Values::scales(format, cols);
        match format {
            WeightFormat::Bf16 => Ok(()),
            WeightFormat::Fp8Block | WeightFormat::Fp8Tensor => self.fill(buffer, at, bytes, values),
            WeightFormat::Nvfp4 => {
                self.fill(buffer, at, 4, Values::Constant(NVFP4_DIVISOR.recip()))?;
                self.fill(buffer, at + PART_ALIGN, bytes - PART_ALIGN, values)
            }
        }
    }

    /// Fills some bytes of a buffer with values.
    pub(super) fn fill(
        &mut self,
        buffer: &D::Buffer,
        at: u64,
        bytes: u64,
        values: Values,
    ) -> Result<(), OpError> {
        let known = self.blocks.iter().position(|(of, _)| *of == values);
        let index = known.unwrap_or_else(|| {
            let mut block = vec![0; BLOCK_BYTES];
            values.fill(&mut Random::of(self.blocks.len() as u64, "bench"), &mut block);
            self.blocks.push((values, block));
            self.blocks.len() - 1
        });
        let block = &self.blocks[index].1;
        // Writes are of whole words; a buffer has room for them.
        let end = (at + bytes.next_multiple_of(4)).min(buffer.bytes());
        for start in (at..end).step_by(BLOCK_BYTES) {
            let length = usize::try_from(end - start)
                .unwrap_or(usize::MAX)
                .min(BLOCK_BYTES);
            self.backend.write(buffer, start, &block[..length])?;
        }
        Ok(())
    }
}

impl<D: Backend> TensorSource for Maker<'_, D> {
    type Buffer = D::Buffer;
    type Error = OpError;

    fn matrix(&mut self, id: TensorId, unit: u32) -> Result<Matrix<D::Buffer>, OpError> {
        let tensor = tensor_spec(self.spec, id);
        let (rows, cols) = dims(&tensor);
        let format = tensor.usual_format;
        let row_bytes = format.row_bytes(cols);
        let ranges = split_rows(rows, row_bytes, unit, self.backend.max_binding_bytes())?;
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges {
            let bytes = row_bytes * u64::from(range.end - range.start);
            let buffer = self.backend.alloc_weights(&id.to_string(), bytes)?;
            self.fill(&buffer, 0, bytes, Values::codes(format, cols))?;
            parts.push(MatrixPart {
                rows: range,
                buffer,
                offset: 0,
            });
        }
        let scales = match format.scale_bytes(rows, cols) {
            0 => None,
            bytes => {
                let buffer = self.backend.alloc_weights(&id.to_string(), bytes)?;
                self.scales(&tensor, &buffer, 0)?;
                Some(Scales { buffer, offset: 0 })
            }
        };
        Matrix::new(rows, cols, format, parts, scales)
    }

    fn vector(&mut self, id: TensorId) -> Result<Vector<D::Buffer>, OpError> {
        let (_, len) = dims(&tensor_spec(self.spec, id));
        let bytes = u64::from(len) * 2;
        let buffer = self.backend.alloc_weights(&id.to_string(), bytes)?;
        self.fill(&buffer, 0, bytes, Values::Norm)?;
        Vector::new(len, buffer, 0)
    }
}

/// Rows and columns; a vector is one row.
fn dims(tensor: &TensorSpec) -> (u32, u32) {
    match tensor.shape {
        Shape::Matrix { rows, cols } => (rows, cols),
        Shape::Vector(len) => (1, len),
    }
}

/// Where the weights of a layer stand, and what they are called.
pub(super) fn names<B>(layer: &OwnerLayer<B>) -> Vec<(usize, &'static str)> {
    let mut names = vec![
        (place_of(&layer.attention_norm), "attention_norm"),
        (place_of(&layer.wo), "wo"),
        (place_of(&layer.ffn_norm), "ffn_norm"),
    ];
    match &layer.attention {
        LayerAttention::Latent(weights) => names.extend([
            (place_of(&weights.wq_a), "wq_a"),
            (place_of(&weights.q_a_norm), "q_a_norm"),
            (place_of(&weights.wq_b), "wq_b"),
            (place_of(&weights.wkv_a), "wkv_a"),
            (place_of(&weights.kv_a_norm), "kv_a_norm"),
            (place_of(&weights.wkv_b), "wkv_b"),
        ]),
        LayerAttention::Grouped(weights) => names.extend([
            (place_of(&weights.wq), "wq"),
            (place_of(&weights.wk), "wk"),
            (place_of(&weights.wv), "wv"),
        ]),
    }
    let of_feed_forward =
        |weights: &FeedForward<B>, up, down| [(place_of(&weights.w1), up), (place_of(&weights.w2), down)];
    match &layer.feed_forward {
        LayerFeedForward::Dense(weights) => names.extend(of_feed_forward(weights, "w1, w3", "w2")),
        LayerFeedForward::Moe { gate, shared } => {
            names.push((place_of(gate), "gate"));
            if let Some(weights) = shared {
                names.extend(of_feed_forward(weights, "shared w1, w3", "shared w2"));
            }
        }
    }
    names
}
