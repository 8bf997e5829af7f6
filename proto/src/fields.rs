//! Checks that the conversions share: presence, lengths, ids.

use tramontane_model::ids::{Fence, Generation, ReplicaId, RequestId, TraceId, WorkerId};

use crate::WireError;
use crate::v1 as pb;

/// The value of a message field, or an error with its name.
pub(crate) fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::Missing(field))
}

/// Refuses more than `limit` items.
pub(crate) fn at_most(
    field: &'static str,
    unit: &'static str,
    found: usize,
    limit: usize,
) -> Result<(), WireError> {
    if found > limit {
        Err(WireError::TooLong {
            field,
            found,
            limit,
            unit,
        })
    } else {
        Ok(())
    }
}

/// A text of at most `limit` bytes.
pub(crate) fn text(field: &'static str, value: String, limit: usize) -> Result<String, WireError> {
    at_most(field, "bytes", value.len(), limit)?;
    Ok(value)
}

/// An error about a field's value.
pub(crate) fn invalid(field: &'static str, problem: impl ToString) -> WireError {
    WireError::Invalid {
        field,
        problem: problem.to_string(),
    }
}

/// A worker's name.
pub(crate) fn worker(field: &'static str, name: &str) -> Result<WorkerId, WireError> {
    WorkerId::new(name).map_err(|error| invalid(field, error))
}

/// Exactly `N` bytes.
pub(crate) fn exact<const N: usize>(field: &'static str, value: &[u8]) -> Result<[u8; N], WireError> {
    value.try_into().map_err(|_| {
        invalid(
            field,
            format_args!("it has {} bytes, it must have {N}", value.len()),
        )
    })
}

/// A request's id.
pub(crate) fn request(field: &'static str, value: &[u8]) -> Result<RequestId, WireError> {
    exact(field, value).map(|bytes| RequestId(u128::from_be_bytes(bytes)))
}

/// A trace's id.
pub(crate) fn trace(field: &'static str, value: &[u8]) -> Result<TraceId, WireError> {
    let bits = u128::from_be_bytes(exact(field, value)?);
    TraceId::new(bits).ok_or_else(|| invalid(field, "it is zero, it must be a trace's id"))
}

/// The fence that every message carries.
pub(crate) fn fence(value: Option<pb::Fence>) -> Result<Fence, WireError> {
    required("fence", value).map(Fence::from)
}

impl From<pb::Fence> for Fence {
    fn from(wire: pb::Fence) -> Self {
        Self {
            replica: ReplicaId(wire.replica),
            generation: Generation(wire.generation),
        }
    }
}

impl From<Fence> for pb::Fence {
    fn from(fence: Fence) -> Self {
        Self {
            replica: fence.replica.0,
            generation: fence.generation.0,
        }
    }
}
