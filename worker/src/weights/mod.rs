//! From a checkpoint to device memory: which slices of it a device holds, and how they get there.
//!
//! Only what is placed on the device is read. No ops run here, and nothing is decoded: weights stay as stored, but for
//! FP8 block scales, which are widened to f32.

mod error;
mod load;
mod progress;
mod slices;
mod store;

use std::path::Path;

use tramontane_model::checkpoint::{Checkpoint, CheckpointError};
use tramontane_model::spec::ModelSpec;
use tramontane_model::tensors::ModelBytes;

pub use error::WeightError;
pub use progress::{LoadProgress, LoadWatch};
pub use slices::{DeviceSlices, ExpertSlice, GroupRoute, StageSlice, WeightSlice};
pub use store::{
    FeedForward, GroupedAttention, Head, LatentAttention, LayerAttention, LayerFeedForward, OwnerLayer,
    WeightStore,
};

/// A checkpoint that was found to hold the model its parameters describe.
#[derive(Debug)]
pub struct ModelFiles {
    /// The model.
    pub spec: ModelSpec,
    /// Its files.
    pub checkpoint: Checkpoint,
    /// Bytes on devices of each of its parts.
    pub bytes: ModelBytes,
}

impl ModelFiles {
    /// Opens a checkpoint's folder and checks that every tensor of the model is there as it must be.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(dir)?;
        let spec = checkpoint.spec()?;
        let bytes = checkpoint.validate(&spec)?.bytes;
        Ok(Self {
            spec,
            checkpoint,
            bytes,
        })
    }
}
