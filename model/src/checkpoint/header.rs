//! The header of a safetensors file: eight bytes of length, then JSON with each tensor's dtype, shape and offsets.
//!
//! Nothing is taken on trust: after [`parse`] every tensor lies within the file, has the bytes that its shape asks
//! for, and shares none with another. The values themselves are not looked at.

#[cfg(test)]
mod tests;

use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use super::error::{Fault, Faults};
use super::json::Members;
use crate::dtype::Dtype;

/// Longest header, in bytes; those of Mistral Large 3 have about 6 MB together.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes of the number that opens a file.
const LENGTH_BYTES: u64 = 8;
/// Most dimensions of a tensor.
const MAX_DIMS: usize = 8;

/// A tensor as its file's header describes it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    /// Its bytes, counted from the start of the file.
    pub(super) span: Range<usize>,
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Dims,
    data_offsets: (u64, u64),
}

/// A shape; its length is bounded while it is read.
struct Dims(Vec<u64>);

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DimsVisitor;
        impl<'de> Visitor<'de> for DimsVisitor {
            type Value = Dims;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a list of at most {MAX_DIMS} sizes")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dims, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element::<u64>()? {
                    if dims.len() == MAX_DIMS {
                        return Err(A::Error::custom(format!("more than {MAX_DIMS} dimensions")));
                    }
                    dims.push(dim);
                }
                Ok(Dims(dims))
            }
        }
        deserializer.deserialize_seq(DimsVisitor)
    }
}

/// Reads the header of a whole file's bytes. Tensors with a fault are left out and the fault is noted.
pub(super) fn parse(file: &str, bytes: &[u8], faults: &mut Faults) -> Vec<Entry> {
    match read(file, bytes, faults) {
        Ok(entries) => entries,
        Err(fault) => {
            faults.push(fault);
            Vec::new()
        }
    }
}

fn read(file: &str, bytes: &[u8], faults: &mut Faults) -> Result<Vec<Entry>, Fault> {
    let file_bytes = bytes.len() as u64;
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(Fault::TooShort {
            file: file.to_owned(),
            bytes: file_bytes,
        });
    };
    let claimed = u64::from_le_bytes(*length);
    if claimed > MAX_HEADER_BYTES {
        return Err(Fault::HeaderTooLong {
            file: file.to_owned(),
            claimed,
        });
    }
    let end = LENGTH_BYTES + claimed;
    // The claim is at most MAX_HEADER_BYTES, so it fits.
    let Some((header, data)) = rest.split_at_checked(claimed as usize) else {
        return Err(Fault::HeaderTruncated {
            file: file.to_owned(),
            end,
            bytes: file_bytes,
        });
    };
    let json_fault = |problem: String| Fault::HeaderJson {
        file: file.to_owned(),
        problem,
    };
    let text = str::from_utf8(header).map_err(|error| json_fault(error.to_string()))?;
    let members: Members<RawTensor> =
        serde_json::from_str(text).map_err(|error| json_fault(error.to_string()))?;
    for name in members.twice {
        faults.push(Fault::NamedTwice {
            file: file.to_owned(),
            name,
        });
    }
    let data_bytes = data.len() as u64;
    let n_members = members.members.len();
    let mut entries = Vec::new();
    for (name, raw) in members.members {
        match check(file, name, raw, end, data_bytes) {
            Ok(entry) => entries.push(entry),
            Err(fault) => faults.push(fault),
        }
    }
    // A tensor left out above would look like a gap.
    if entries.len() == n_members {
        check_tiling(file, &entries, end as usize, bytes.len(), faults);
    }
    Ok(entries)
}

/// Checks one tensor alone; `data_start` is where the header ends.
fn check(file: &str, name: String, raw: RawTensor, data_start: u64, data_bytes: u64) -> Result<Entry, Fault> {
    let file = file.to_owned();
    let Some(dtype) = Dtype::from_name(&raw.dtype) else {
        let found = raw.dtype.chars().take(40).collect();
        return Err(Fault::UnknownDtype { file, name, found });
    };
    let (begin, end) = raw.data_offsets;
    if begin > end || end > data_bytes {
        return Err(Fault::Offsets {
            file,
            name,
            begin,
            end,
            data_bytes,
        });
    }
    let shape = raw.shape.0;
    let expected = shape
        .iter()
        .try_fold(dtype.bytes(), |bytes, &dim| bytes.checked_mul(dim));
    let found = end - begin;
    if expected != Some(found) {
        return Err(Fault::Size {
            file,
            name,
            dtype,
            shape,
            found,
            expected,
        });
    }
    // Both are within the mapped file, so they fit.
    let span = (data_start + begin) as usize..(data_start + end) as usize;
    Ok(Entry {
        name,
        dtype,
        shape,
        span,
    })
}

/// Checks that the tensors tile the data: none overlaps another and no byte is left over.
fn check_tiling(file: &str, entries: &[Entry], data_start: usize, file_bytes: usize, faults: &mut Faults) {
    let mut in_order: Vec<&Entry> = entries.iter().collect();
    in_order.sort_by_key(|entry| (entry.span.start, entry.span.end));
    let from_data = |byte: usize| (byte - data_start) as u64;
    let gap = |begin: usize, end: usize| Fault::Gap {
        file: file.to_owned(),
        begin: from_data(begin),
        end: from_data(end),
    };
    let mut covered = data_start;
    let mut last: Option<&Entry> = None;
    for entry in in_order {
        if entry.span.start > covered {
            faults.push(gap(covered, entry.span.start));
        } else if entry.span.start < covered
            && let Some(other) = last
        {
            faults.push(Fault::Overlap {
                file: file.to_owned(),
                name: entry.name.clone(),
                begin: from_data(entry.span.start),
                other: other.name.clone(),
                other_end: from_data(other.span.end),
            });
        }
        if entry.span.end >= covered {
            covered = entry.span.end;
            last = Some(entry);
        }
    }
    if covered < file_bytes {
        faults.push(gap(covered, file_bytes));
    }
}
