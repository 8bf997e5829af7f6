//! From a checkpoint to device memory: which slices of it a device holds, and how they get there.
//!
//! Only what is placed on the device is read. No ops run here, and nothing is decoded: weights stay as stored, but for
//! multipliers, which are widened to f32, and divisors, which become multipliers.

mod ahead;
mod copies;
mod error;
mod load;
pub mod mirror;
mod progress;
mod slices;
mod store;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tramontane_model::checkpoint::{Checkpoint, CheckpointError};
use tramontane_model::spec::ModelSpec;
use tramontane_model::tensors::{ModelBytes, WeightFormat};

pub use copies::Copies;
pub use error::WeightError;
pub use mirror::{Mirror, MirrorError};
pub use progress::{LoadProgress, LoadWatch};
pub use slices::{DeviceSlices, ExpertSlice, GroupRoute, StageSlice, WeightSlice};
pub use store::WeightStore;

/// A checkpoint that was found to hold the model its parameters describe.
#[derive(Debug)]
pub struct ModelFiles {
    /// The model.
    pub spec: ModelSpec,
    /// Its files.
    pub checkpoint: Arc<Checkpoint>,
    /// Bytes on devices of each of its parts.
    pub bytes: ModelBytes,
    /// Where what is not in its folder is fetched from, if it is one that is filled.
    pub mirror: Option<Mirror>,
    /// The formats that its tensors have.
    pub formats: BTreeSet<WeightFormat>,
}

impl ModelFiles {
    /// Opens a checkpoint's folder and checks that every tensor of the model is there as it must be.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(dir)?;
        let spec = checkpoint.spec()?;
        let inventory = checkpoint.validate(&spec)?;
        Ok(Self {
            spec,
            checkpoint: Arc::new(checkpoint),
            bytes: inventory.bytes,
            formats: inventory.formats,
            mirror: None,
        })
    }
}
