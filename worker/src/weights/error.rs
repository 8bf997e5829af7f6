//! Why weights could not be brought to a device.

use tramontane_model::checkpoint::{BadValue, Fault, NoSuchRows};

use tramontane_kernels::ops::OpError;

/// Error of loading weights.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// A tensor is missing, or not as the model needs it.
    #[error(transparent)]
    Tensor(#[from] Fault),
    /// A weight is not a number, or a scale is one that cannot be.
    #[error(transparent)]
    Value(#[from] BadValue),
    /// A tensor has fewer rows than its shape says.
    #[error(transparent)]
    Rows(#[from] NoSuchRows),
    /// The device took no memory for a tensor, or did not take its bytes.
    #[error("{tensor}: {source}")]
    Device {
        /// The tensor.
        tensor: String,
        /// What the device said.
        source: OpError,
    },
    /// The slices with cache and buffers do not fit the device's memory.
    #[error(
        "the assigned slices take {planned} bytes with cache and buffers, the device has {memory}: {} are missing",
        planned - memory
    )]
    TooLarge {
        /// What they take.
        planned: u64,
        /// What there is.
        memory: u64,
    },
    /// A tensor's bytes could not be fetched, or are not those that the manifest was made of.
    #[error("{tensor}: {problem}")]
    Files {
        /// The tensor.
        tensor: String,
        /// Why.
        problem: String,
    },
    /// Loading was told to stop.
    #[error("loading was cancelled")]
    Cancelled,
}
