//! Does a checkpoint hold the model that its parameters describe: every tensor there, of the right shape and dtype.

use std::collections::{BTreeMap, BTreeSet};

use super::Checkpoint;
use super::error::{CheckpointError, Fault, Faults};
use super::weight::{Weight, weight_beside};
use crate::spec::ModelSpec;
use crate::tensors::{
    FfnMatrix, LayerTensor, ModelBytes, TensorId, WeightFormat, is_vision_tensor, language_tensors,
    tensor_spec,
};

/// Most names of unknown tensors kept for the log.
const MAX_UNKNOWN_NAMES: usize = 8;

/// What a checkpoint holds, after it was found to be complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// Bytes on devices of each part, from the formats found.
    pub bytes: ModelBytes,
    /// The formats that its tensors have.
    pub formats: BTreeSet<WeightFormat>,
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
        let (mut known, mut may_be_quantised) = (BTreeSet::new(), BTreeSet::new());
        let mut formats: BTreeMap<TensorId, WeightFormat> = BTreeMap::new();
        let mut language_file_bytes = 0;
        for tensor in language_tensors(spec) {
            match self.stored(&tensor) {
                Ok(weight) => {
                    language_file_bytes += weight.file_bytes();
                    if let Some(fault) = self.format_fault(&weight, &formats) {
                        faults.push(fault);
                    }
                    formats.insert(tensor.id, weight.format());
                }
                Err(fault) => faults.push(fault),
            }
            if tensor.may_be_quantised {
                may_be_quantised.insert(tensor.id.to_string());
            } else {
                known.insert(tensor.id.to_string());
            }
        }
        if faults.total() > 0 {
            return Err(CheckpointError::Faults {
                dir: self.dir.clone(),
                faults,
            });
        }
        let is_known = |name: &str| {
            known.contains(name)
                || may_be_quantised.contains(name)
                || weight_beside(name).is_some_and(|weight| may_be_quantised.contains(&weight))
        };
        let (vision, unknown): (Vec<&str>, Vec<&str>) = self
            .names()
            .filter(|name| !is_known(name))
            .partition(|name| is_vision_tensor(name));
        let inventory = Inventory {
            bytes: ModelBytes::with_formats(spec, |tensor| {
                formats.get(&tensor.id).copied().unwrap_or(tensor.usual_format)
            }),
            formats: formats.values().copied().collect(),
            language_tensors: formats.len(),
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

    /// What is wrong with the format of a weight beside those before it.
    fn format_fault(&self, weight: &Weight<'_>, formats: &BTreeMap<TensorId, WeightFormat>) -> Option<Fault> {
        let other = agrees_with(weight.id())?;
        let expected = *formats.get(&other)?;
        (weight.format() != expected).then(|| Fault::MixedFormats {
            file: weight.values().file().to_owned(),
            name: weight.values().name().to_owned(),
            found: weight.format(),
            expected,
            other: self.name_in_files(&other.to_string()),
        })
    }

    /// A tensor of the model with its scales; refused unless it has the shape and a format that the spec asks for.
    pub fn weight(&self, spec: &ModelSpec, id: TensorId) -> Result<Weight<'_>, Fault> {
        self.stored(&tensor_spec(spec, id))
    }
}

/// The tensor whose format a tensor must have as well, an earlier one: gate and up are read together, and devices keep a
/// layer's experts in records of one layout.
#[expect(clippy::wildcard_enum_match_arm, reason = "all others stand for themselves")]
fn agrees_with(id: TensorId) -> Option<TensorId> {
    match id {
        TensorId::Layer { layer, tensor } => {
            let tensor = match tensor {
                LayerTensor::Dense(FfnMatrix::W3) => LayerTensor::Dense(FfnMatrix::W1),
                LayerTensor::Shared(FfnMatrix::W3) => LayerTensor::Shared(FfnMatrix::W1),
                _ => return None,
            };
            Some(TensorId::Layer { layer, tensor })
        }
        TensorId::Expert { layer, matrix, .. } => {
            let first = match matrix {
                FfnMatrix::W1 | FfnMatrix::W3 => FfnMatrix::W1,
                FfnMatrix::W2 => FfnMatrix::W2,
            };
            let first = TensorId::Expert {
                layer,
                expert: 0,
                matrix: first,
            };
            Some(first).filter(|first| *first != id)
        }
        TensorId::Embedding | TensorId::FinalNorm | TensorId::Head => None,
    }
}
