//! What can go wrong when an op is recorded or run.

use std::time::Duration;

/// Error of an op or of device memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// Operands do not fit together.
    #[error("{op}: {detail}")]
    Shape {
        /// The op.
        op: &'static str,
        /// What is wrong and what would be right.
        detail: String,
    },
    /// An operand's buffer is smaller than the op needs.
    #[error("{op}: buffer {operand} holds {found} bytes, {needed} are needed")]
    TooSmall {
        /// The op.
        op: &'static str,
        /// The operand.
        operand: &'static str,
        /// Bytes in the buffer.
        found: u64,
        /// Bytes the op reads or writes.
        needed: u64,
    },
    /// A buffer that an op would have to bind whole is larger than the adapter's binding limit.
    #[error("{label}: {bytes} bytes do not fit in one binding of this device, at most {limit} do")]
    BindingLimit {
        /// Name of the buffer.
        label: String,
        /// Its size.
        bytes: u64,
        /// The device's limit.
        limit: u64,
    },
    /// The device has no memory left for a buffer.
    #[error("{label}: the device has no room for {bytes} bytes; {held} bytes are held already")]
    OutOfMemory {
        /// Name of the buffer.
        label: String,
        /// Its size.
        bytes: u64,
        /// Bytes that were held before.
        held: u64,
    },
    /// A copy reaches outside a buffer or is not aligned to 4 bytes.
    #[error(
        "copy of {bytes} bytes at offset {offset} does not fit a buffer of {size} bytes in steps of 4 bytes"
    )]
    Range {
        /// First byte.
        offset: u64,
        /// Length of the copy.
        bytes: u64,
        /// Size of the buffer.
        size: u64,
    },
    /// The device did not finish in time.
    #[error("device {device} did not finish within {waited:?}")]
    Timeout {
        /// The adapter's name.
        device: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The device is gone, with the driver's reason.
    #[error("device {device} is lost: {reason}")]
    DeviceLost {
        /// The adapter's name.
        device: String,
        /// What the driver said.
        reason: String,
    },
    /// The driver refused a pipeline, buffer or command.
    #[error("device {device} refused a command: {reason}")]
    Refused {
        /// The adapter's name.
        device: String,
        /// What the driver said.
        reason: String,
    },
    /// The device does not compute what it must.
    #[error("device {device} cannot be used: {problem}")]
    Wrong {
        /// The adapter's name.
        device: String,
        /// What it computes and what would be right.
        problem: String,
    },
}

impl OpError {
    /// Operands of `op` that do not fit together.
    pub fn shape(op: &'static str, detail: impl Into<String>) -> Self {
        Self::Shape {
            op,
            detail: detail.into(),
        }
    }
}
