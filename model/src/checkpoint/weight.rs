//! A tensor of the language model as the files hold it: its codes, and the tensors beside them that scale them.
//!
//! Dtypes and names decide how a tensor is stored, each for itself: `X.weight` in BF16; `X.weight` in e4m3 with
//! `X.weight_scale` (a multiplier per block) or `X.qscale_weight` (one multiplier); `X.weight_packed` with
//! `X.weight_scale` and `X.weight_global_scale` in NVFP4. Scales of activations are not used.

use super::Checkpoint;
use super::error::{BadValue, Fault};
use super::view::TensorView;
use crate::dtype::{self, Dtype};
use crate::spec::FP8_BLOCK;
use crate::tensors::{HalfSplit, NVFP4_GROUP, Shape, TensorId, TensorSpec, WeightFormat};

const WEIGHT: &str = ".weight";
const PACKED: &str = ".weight_packed";
const SCALE: &str = ".weight_scale";
const TENSOR_SCALE: &str = ".qscale_weight";
const DIVISOR: &str = ".weight_global_scale";
/// What may lie beside a weight, those of activations included.
const BESIDE: [&str; 6] = [
    PACKED,
    SCALE,
    TENSOR_SCALE,
    DIVISOR,
    ".qscale_act",
    ".input_global_scale",
];

/// A tensor of the language model with its scales: shapes and dtypes are those that its spec and its format ask for.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    id: TensorId,
    shape: Shape,
    format: WeightFormat,
    values: TensorView<'a>,
    scales: Option<TensorView<'a>>,
    divisor: Option<TensorView<'a>>,
    half_split: Option<HalfSplit>,
}

impl<'a> Weight<'a> {
    /// Which tensor.
    pub fn id(&self) -> TensorId {
        self.id
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// How it is stored.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Its stored codes; [`TensorView::rows`] gives some rows. In NVFP4 a row has half as many bytes as columns.
    pub fn values(&self) -> TensorView<'a> {
        self.values
    }

    /// How the stored rows are ordered, if not as devices hold them.
    pub fn half_split(&self) -> Option<HalfSplit> {
        self.half_split
    }

    /// Its stored scales: BF16 or F32 in FP8; in NVFP4 e4m3, `[rows, cols / 16]`.
    pub fn scales(&self) -> Option<TensorView<'a>> {
        self.scales
    }

    /// The stored tensors that it is made of.
    pub fn stored(&self) -> impl Iterator<Item = TensorView<'a>> + use<'a> {
        [Some(self.values), self.scales, self.divisor]
            .into_iter()
            .flatten()
    }

    /// Bytes in the files, those that are not used left out.
    pub fn file_bytes(&self) -> u64 {
        self.stored().map(|view| view.bytes.len() as u64).sum()
    }

    /// What the codes are multiplied with, after a check that it can be: in FP8 each block's multiplier, row-major, or
    /// the one there is; in NVFP4 the reciprocal of the divisor. Empty in BF16.
    pub fn multipliers(&self) -> Result<Vec<f32>, BadValue> {
        let expected = "a number above zero";
        let Some(view) = self.divisor.or(self.scales) else {
            return Ok(Vec::new());
        };
        view.check_finite()?;
        let mut values = view.to_f32();
        for (index, value) in values.iter_mut().enumerate() {
            if *value <= 0.0 {
                return Err(view.bad_value(index, "that is not above zero", expected));
            }
            if self.divisor.is_some() {
                *value = value.recip();
                if !value.is_normal() {
                    return Err(view.bad_value(index, "that cannot be divided by", expected));
                }
            }
        }
        Ok(values)
    }

    /// What the codes stand for, each rounded once to f32, in the order of storage.
    pub fn to_f32(&self) -> Vec<f32> {
        let (Shape::Matrix { cols, .. }, Some(scales)) = (self.shape, self.scales) else {
            return self.values.to_f32();
        };
        let (cols, scales) = ((cols as usize).max(1), scales.to_f32());
        let block = match self.format {
            WeightFormat::Nvfp4 => NVFP4_GROUP as usize,
            WeightFormat::Bf16 | WeightFormat::Fp8Block | WeightFormat::Fp8Tensor => FP8_BLOCK as usize,
        };
        let per_row = cols.div_ceil(block);
        let scale = |row: usize, col: usize| match self.format {
            WeightFormat::Nvfp4 => scales[row * per_row + col / block],
            WeightFormat::Fp8Block => scales[row / block * per_row + col / block],
            WeightFormat::Bf16 | WeightFormat::Fp8Tensor => scales[0],
        };
        let codes = match self.format {
            WeightFormat::Nvfp4 => {
                let pairs = self.values.bytes.iter();
                pairs
                    .flat_map(|&pair| [pair, pair >> 4].map(dtype::e2m1_to_f32))
                    .collect()
            }
            WeightFormat::Bf16 | WeightFormat::Fp8Block | WeightFormat::Fp8Tensor => self.values.to_f32(),
        };
        let divisor = self
            .divisor
            .and_then(|view| view.to_f32().first().copied())
            .map_or(1.0, f64::from);
        let value = |(at, &code): (usize, &f32)| {
            (f64::from(code) * f64::from(scale(at / cols, at % cols)) / divisor) as f32
        };
        codes.iter().enumerate().map(value).collect()
    }
}

/// The name of what lies beside a weight.
fn beside(weight: &str, suffix: &str) -> String {
    format!("{}{suffix}", weight.strip_suffix(WEIGHT).unwrap_or(weight))
}

/// The weight that a tensor with this name lies beside; none for the weight itself.
pub(super) fn weight_beside(name: &str) -> Option<String> {
    let stem = BESIDE.iter().find_map(|suffix| name.strip_suffix(suffix))?;
    Some(format!("{stem}{WEIGHT}"))
}

impl Checkpoint {
    /// The tensor with its scales; refused unless all are there with the shapes and dtypes that they must have.
    pub(super) fn stored(&self, tensor: &TensorSpec) -> Result<Weight<'_>, Fault> {
        let name = tensor.id.to_string();
        let weight = |format, values, scales, divisor| Weight {
            id: tensor.id,
            shape: tensor.shape,
            format,
            values,
            scales,
            divisor,
            half_split: tensor.half_split,
        };
        let (rows, cols) = match tensor.shape {
            Shape::Matrix { rows, cols } if tensor.may_be_quantised => (rows, cols),
            Shape::Matrix { .. } | Shape::Vector(_) => {
                let values = self.of_shape(&name, tensor.shape.dims(), &[Dtype::Bf16])?;
                return Ok(weight(WeightFormat::Bf16, values, None, None));
            }
        };
        let packed = beside(&name, PACKED);
        let is_packed = match (self.tensor(&name), self.tensor(&packed)) {
            (Some(plain), Some(packed)) => return Err(ambiguous(&plain, &packed)),
            (plain, packed) => {
                packed.is_some() || plain.is_none() && tensor.usual_format == WeightFormat::Nvfp4
            }
        };
        if is_packed {
            let values = self.of_shape(&packed, vec![rows.into(), u64::from(cols / 2)], &[Dtype::U8])?;
            let table = vec![rows.into(), u64::from(cols / NVFP4_GROUP)];
            let scales = self.scale(&values, &beside(&name, SCALE), table, &[Dtype::F8E4m3])?;
            let divisor = self.scale(&values, &beside(&name, DIVISOR), ONE.to_vec(), &[Dtype::F32])?;
            return Ok(weight(WeightFormat::Nvfp4, values, Some(scales), Some(divisor)));
        }
        let values = self.of_shape(&name, tensor.shape.dims(), &[Dtype::Bf16, Dtype::F8E4m3])?;
        if values.dtype == Dtype::Bf16 {
            return Ok(weight(WeightFormat::Bf16, values, None, None));
        }
        let (blocks, whole) = (beside(&name, SCALE), beside(&name, TENSOR_SCALE));
        let has_one = match (self.tensor(&blocks), self.tensor(&whole)) {
            (Some(blocks), Some(whole)) => return Err(ambiguous(&blocks, &whole)),
            (None, None) => tensor.usual_format == WeightFormat::Fp8Tensor,
            (_, whole) => whole.is_some(),
        };
        let dtypes = [Dtype::Bf16, Dtype::F32];
        if has_one {
            let scale = self.scale(&values, &whole, ONE.to_vec(), &dtypes)?;
            return Ok(weight(WeightFormat::Fp8Tensor, values, Some(scale), None));
        }
        let table = [rows, cols].map(|side| side.div_ceil(FP8_BLOCK).into());
        let scales = self.scale(&values, &blocks, table.to_vec(), &dtypes)?;
        if let Some((start, end)) = tensor.half_split.and_then(|split| split.across_blocks(rows)) {
            return Err(Fault::SplitAcrossBlocks {
                file: values.file.to_owned(),
                name: values.name.to_owned(),
                start,
                end,
            });
        }
        Ok(weight(WeightFormat::Fp8Block, values, Some(scales), None))
    }

    /// A tensor by name, of this shape and one of these dtypes.
    fn of_shape(&self, name: &str, expected: Vec<u64>, dtypes: &[Dtype]) -> Result<TensorView<'_>, Fault> {
        let Some(view) = self.tensor(name) else {
            return Err(Fault::Missing {
                name: self.name_in_files(name),
                expected,
            });
        };
        check(&view, expected, dtypes)?;
        Ok(view)
    }

    /// What scales a weight, by name.
    fn scale(
        &self,
        weight: &TensorView<'_>,
        name: &str,
        expected: Vec<u64>,
        dtypes: &[Dtype],
    ) -> Result<TensorView<'_>, Fault> {
        let Some(view) = self.tensor(name) else {
            return Err(Fault::MissingScale {
                file: weight.file.to_owned(),
                name: weight.name.to_owned(),
                dtype: weight.dtype,
                scale: self.name_in_files(name),
                expected,
            });
        };
        // A single value may have no dimension at all.
        let is_single = expected == ONE && view.shape.is_empty();
        check(&view, if is_single { Vec::new() } else { expected }, dtypes)?;
        Ok(view)
    }
}

/// The shape of a single value.
const ONE: [u64; 1] = [1];

fn check(view: &TensorView<'_>, expected: Vec<u64>, dtypes: &[Dtype]) -> Result<(), Fault> {
    if view.shape != expected {
        return Err(Fault::Shape {
            file: view.file.to_owned(),
            name: view.name.to_owned(),
            found: view.shape.to_vec(),
            expected,
        });
    }
    if !dtypes.contains(&view.dtype) {
        return Err(Fault::Dtype {
            file: view.file.to_owned(),
            name: view.name.to_owned(),
            found: view.dtype,
            expected: dtypes
                .iter()
                .map(|dtype| dtype.name())
                .collect::<Vec<_>>()
                .join(" or "),
        });
    }
    Ok(())
}

fn ambiguous(one: &TensorView<'_>, other: &TensorView<'_>) -> Fault {
    Fault::Ambiguous {
        file: one.file.to_owned(),
        name: one.name.to_owned(),
        other: other.name.to_owned(),
        other_file: other.file.to_owned(),
    }
}
