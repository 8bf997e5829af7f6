//! Names of the things a cluster keeps apart.
//!
//! No allocation of ids here: who gives an id out says so on the type.

use std::fmt;
use std::num::NonZeroU128;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest worker name, in bytes.
pub const MAX_WORKER_NAME_BYTES: usize = 63;

/// A worker's configured name, unique in its cluster and kept over restarts.
///
/// Lower-case letters, digits, `-` and `.`, starting with a letter or digit, so that it can stand in
/// host names, metrics and file names alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerId(Arc<str>);

/// A name that cannot be a [`WorkerId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "worker name {found:?} is not valid: use 1 to {MAX_WORKER_NAME_BYTES} of a-z, 0-9, '-' and '.', starting with a letter or digit"
)]
pub struct WorkerNameError {
    /// The name as given, cut to a printable length.
    pub found: String,
}

impl WorkerId {
    /// Checks and wraps a worker's name.
    pub fn new(name: &str) -> Result<Self, WorkerNameError> {
        let valid_bytes = name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
        let valid_start = name
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if valid_bytes && valid_start && name.len() <= MAX_WORKER_NAME_BYTES {
            Ok(Self(name.into()))
        } else {
            Err(WorkerNameError {
                found: name.chars().take(MAX_WORKER_NAME_BYTES + 1).collect(),
            })
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for WorkerId {
    type Error = WorkerNameError;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(&name)
    }
}

impl From<WorkerId> for String {
    fn from(id: WorkerId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! numeric_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

numeric_id!(
    /// A coordinator's raft id: from its configuration, at least 1, never used again once removed.
    CoordinatorId(u64)
);
numeric_id!(
    /// Which of a worker's devices: counted from 0 in the order of its configuration.
    DeviceIndex(u32)
);
numeric_id!(
    /// One serving copy of the model; given out by the replicated state, never reused.
    ReplicaId(u64)
);
numeric_id!(
    /// How often a replica was placed: grows with every new placement (PL-3), the first is 1.
    Generation(u64)
);
numeric_id!(
    /// A step of one replica generation, counted by its head from 0.
    StepId(u64)
);
numeric_id!(
    /// A sequence within one replica generation; given out by its scheduler, never reused.
    SequenceId(u64)
);

/// Who a message belongs to: a worker drops any message of another attempt at the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fence {
    /// The replica.
    pub replica: ReplicaId,
    /// Its generation.
    pub generation: Generation,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "replica {} generation {}", self.replica, self.generation)
    }
}

/// One GPU of one worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceRef {
    /// The worker that drives it.
    pub worker: WorkerId,
    /// Which of the worker's devices.
    pub device: DeviceIndex,
}

impl fmt::Display for DeviceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.worker, self.device)
    }
}

/// A client's request as the whole cluster knows it: 128 random bits given out by the gateway.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u128);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({self})")
    }
}

/// A trace, as W3C Trace Context names one: 128 bits, not all zero. From the client, or given out by the HTTP side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(NonZeroU128);

impl TraceId {
    /// A trace of these bits; zero is none.
    pub fn new(bits: u128) -> Option<Self> {
        NonZeroU128::new(bits).map(Self)
    }

    /// Its bits.
    pub fn bits(self) -> u128 {
        self.0.get()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceId({self})")
    }
}

/// Whom a sequence is computed for: stands in the logs of every stage and changes nothing that is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The request.
    pub request: RequestId,
    /// The trace that the request is part of.
    pub trace: TraceId,
}

impl Origin {
    /// Of a sequence that no client asked for, as in a device's first steps.
    pub const NOBODY: Self = Self {
        request: RequestId(0),
        trace: TraceId(NonZeroU128::MIN),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_never_zero() {
        assert_eq!(TraceId::new(0), None);
        let trace = TraceId::new(0xab).map(|trace| trace.to_string());
        assert_eq!(trace.as_deref(), Some("000000000000000000000000000000ab"));
    }

    #[test]
    fn worker_names_are_checked() {
        for good in ["w1", "gpu-7.rack-2", "0", &"a".repeat(MAX_WORKER_NAME_BYTES)] {
            assert_eq!(WorkerId::new(good).map(String::from), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "-a",
            ".a",
            "W1",
            "a_b",
            "a b",
            "é",
            &"a".repeat(MAX_WORKER_NAME_BYTES + 1),
        ] {
            assert!(WorkerId::new(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn worker_names_are_checked_when_deserialised() {
        assert!(serde_json::from_str::<WorkerId>("\"w1\"").is_ok());
        assert!(serde_json::from_str::<WorkerId>("\"W 1\"").is_err());
    }
}
