//! Does a checkpoint hold the model that its parameters describe: every tensor there, of the right shape and dtype.

use std::collections::BTreeSet;

use super::Checkpoint;
use super::error::{CheckpointError, Fault, Faults};
use super::view::{TensorView, Weight};
use crate::dtype::Dtype;
use crate::spec::ModelSpec;
use crate::tensors::{
    ModelBytes, Shape, TensorId, TensorSpec, WeightFormat, expert_tensors, is_vision_tensor,
    language_tensors, tensor_spec,
};

/// Most names of unknown tensors kept for the log.
const MAX_UNKNOWN_NAMES: usize = 8;

/// What a checkpoint holds, after it was found to be complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// Bytes on devices of each part, from the dtypes found.
    pub bytes: ModelBytes,
    /// Tensors of the language model, scales not counted.
    pub language_tensors: usize,
    /// Bytes of the language model in the files, scales included.
    pub language_file_bytes: u64,
    /// Tensors of the vision tower and its adapter, which are skipped.
    pub vision_tensors: usize,
    /// Tensors that are neither, which are skipped.
    pub unknown_tensors: usize,
    /// The first few of those.
    pub unknown_names: Vec<String>,
}

impl Checkpoint {
    /// Checks every tensor of the model and gives all faults at once, up to a bound. Logs tensors that are not used.
    pub fn validate(&self, spec: &ModelSpec) -> Result<Inventory, CheckpointError> {
        let mut faults = Faults::default();
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let (mut language_tensors_found, mut language_file_bytes) = (0, 0);
        for tensor in language_tensors(spec) {
            match self.checked(&tensor) {
                Ok(weight) => {
                    language_tensors_found += 1;
                    for view in [Some(weight.values), weight.scales].into_iter().flatten() {
                        language_file_bytes += view.bytes.len() as u64;
                    }
                    if let Err(fault) = self.same_format_as_first_expert(spec, &weight) {
                        faults.push(fault);
                    }
                }
                Err(fault) => faults.push(fault),
            }
            seen.insert(tensor.id.to_string());
            if tensor.may_be_fp8 {
                seen.insert(tensor.id.scale_name());
            }
        }
        if faults.total() > 0 {
            return Err(CheckpointError::Faults {
                dir: self.dir.clone(),
                faults,
            });
        }
        let (vision, unknown): (Vec<&str>, Vec<&str>) = self
            .names()
            .filter(|name| !seen.contains(*name))
            .partition(|name| is_vision_tensor(name));
        let inventory = Inventory {
            bytes: ModelBytes::with_formats(spec, |tensor| self.format_of(tensor)),
            language_tensors: language_tensors_found,
            language_file_bytes,
            vision_tensors: vision.len(),
            unknown_tensors: unknown.len(),
            unknown_names: unknown
                .iter()
                .take(MAX_UNKNOWN_NAMES)
                .map(|&name| name.to_owned())
                .collect(),
        };
        if inventory.unknown_tensors > 0 {
            let (count, names) = (inventory.unknown_tensors, inventory.unknown_names.join(", "));
            tracing::warn!(dir = %self.dir.display(), count, names, "unknown tensors are skipped");
        }
        Ok(inventory)
    }

    /// A tensor of the model with its scales; refused unless it has the shape and a dtype that the spec asks for.
    pub fn weight(&self, spec: &ModelSpec, id: TensorId) -> Result<Weight<'_>, Fault> {
        self.checked(&tensor_spec(spec, id))
    }

    fn checked(&self, tensor: &TensorSpec) -> Result<Weight<'_>, Fault> {
        let values = self.of_shape(&tensor.id.to_string(), tensor.shape.dims())?;
        let format = match format_of_dtype(values.dtype) {
            Some(WeightFormat::Fp8Block) if !tensor.may_be_fp8 => None,
            format => format,
        };
        let Some(format) = format else {
            let expected = if tensor.may_be_fp8 {
                "BF16 or F8_E4M3"
            } else {
                "BF16"
            };
            return Err(wrong_dtype(&values, expected));
        };
        let scales = match (format, tensor.shape.scale_table()) {
            (WeightFormat::Fp8Block, Some((rows, cols))) => {
                let scales = self.of_shape(&tensor.id.scale_name(), vec![rows.into(), cols.into()])?;
                if scales.dtype != Dtype::Bf16 && scales.dtype != Dtype::F32 {
                    return Err(wrong_dtype(&scales, "BF16 or F32"));
                }
                Some(scales)
            }
            (WeightFormat::Fp8Block, None) | (WeightFormat::Bf16, _) => None,
        };
        if let (Some(_), Some(split), Shape::Matrix { rows, .. }) = (&scales, tensor.half_split, tensor.shape)
            && let Some((start, end)) = split.across_blocks(rows)
        {
            return Err(Fault::SplitAcrossBlocks {
                file: values.file.to_owned(),
                name: values.name.to_owned(),
                start,
                end,
            });
        }
        Ok(Weight {
            id: tensor.id,
            shape: tensor.shape,
            format,
            values,
            scales,
            half_split: tensor.half_split,
        })
    }

    /// A tensor by name, of this shape.
    fn of_shape(&self, name: &str, expected: Vec<u64>) -> Result<TensorView<'_>, Fault> {
        let Some(view) = self.tensor(name) else {
            return Err(Fault::Missing {
                name: self.name_in_files(name),
                expected,
            });
        };
        if view.shape != expected {
            return Err(Fault::Shape {
                file: view.file.to_owned(),
                name: view.name.to_owned(),
                found: view.shape.to_vec(),
                expected,
            });
        }
        Ok(view)
    }

    /// Devices keep a layer's experts in records of one layout, so their formats must agree.
    fn same_format_as_first_expert(&self, spec: &ModelSpec, weight: &Weight<'_>) -> Result<(), Fault> {
        let TensorId::Expert { layer, .. } = weight.id else {
            return Ok(());
        };
        let first = expert_tensors(spec, layer, 0)[0].id.to_string();
        match self.tensor(&first) {
            Some(first) if first.dtype != weight.values.dtype => Err(Fault::MixedExperts {
                file: weight.values.file.to_owned(),
                name: weight.values.name.to_owned(),
                found: weight.values.dtype,
                expected: first.dtype,
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// The format found; the usual one for a tensor that is not there.
    fn format_of(&self, tensor: &TensorSpec) -> WeightFormat {
        self.tensor(&tensor.id.to_string())
            .and_then(|view| format_of_dtype(view.dtype))
            .unwrap_or(tensor.usual_format)
    }
}

fn format_of_dtype(dtype: Dtype) -> Option<WeightFormat> {
    if dtype == Dtype::Bf16 {
        Some(WeightFormat::Bf16)
    } else if dtype == Dtype::F8E4m3 {
        Some(WeightFormat::Fp8Block)
    } else {
        None
    }
}

fn wrong_dtype(view: &TensorView<'_>, expected: &'static str) -> Fault {
    Fault::Dtype {
        file: view.file.to_owned(),
        name: view.name.to_owned(),
        found: view.dtype,
        expected,
    }
}
