//! Why a checkpoint was refused: every fault names its file and tensor and what would be right.

use std::fmt;
use std::path::PathBuf;

use super::header::MAX_HEADER_BYTES;
use crate::dtype::Dtype;
use crate::spec::SpecError;
use crate::tensors::WeightFormat;

/// Most faults kept of one checkpoint; the rest are counted.
pub const MAX_FAULTS: usize = 32;

/// Why a checkpoint could not be opened or does not fit its spec.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The model's parameters could not be read.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A file could not be read or mapped.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder has no weights.
    #[error("{dir}: has neither {index} nor {single}")]
    NoWeights {
        /// The folder.
        dir: PathBuf,
        /// What an index would be called.
        index: &'static str,
        /// What a file of all weights would be called.
        single: &'static str,
    },
    /// The index of the weight files is not one.
    #[error("{path}: {problem}")]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// What is wrong with the files or tensors.
    #[error("{dir}: {faults}")]
    Faults {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// Each fault, up to a bound.
        faults: Faults,
    },
}

/// Faults found in one pass: the first [`MAX_FAULTS`] and how many there were.
#[derive(Debug, Default)]
pub struct Faults {
    kept: Vec<Fault>,
    total: usize,
}

impl Faults {
    pub(super) fn push(&mut self, fault: Fault) {
        self.total += 1;
        if self.kept.len() < MAX_FAULTS {
            self.kept.push(fault);
        }
    }

    /// The faults that were kept.
    pub fn kept(&self) -> &[Fault] {
        &self.kept
    }

    /// How many faults there were.
    pub fn total(&self) -> usize {
        self.total
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.kept.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{fault}")?;
        }
        if self.total > self.kept.len() {
            write!(f, "; and {} more faults", self.total - self.kept.len())?;
        }
        Ok(())
    }
}

/// One thing wrong with a checkpoint. `file` is the name of a weight file in the checkpoint's folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Shorter than the length that opens a safetensors file.
    #[error("{file}: has {bytes} bytes, a safetensors file has at least 8")]
    TooShort {
        /// The file.
        file: String,
        /// Its length.
        bytes: u64,
    },
    /// The header's claimed length is beyond any real checkpoint's.
    #[error("{file}: claims a header of {claimed} bytes, expected at most {MAX_HEADER_BYTES}")]
    HeaderTooLong {
        /// The file.
        file: String,
        /// The claim.
        claimed: u64,
    },
    /// The file ends within its header.
    #[error("{file}: is truncated: its header ends at byte {end}, the file at byte {bytes}")]
    HeaderTruncated {
        /// The file.
        file: String,
        /// Where the header would end.
        end: u64,
        /// The file's length.
        bytes: u64,
    },
    /// The header is not the JSON that it should be.
    #[error("{file}: header: {problem}")]
    HeaderJson {
        /// The file.
        file: String,
        /// What is wrong, with its place in the header.
        problem: String,
    },
    /// One name twice in a header.
    #[error("{file}: names tensor {name} twice")]
    NamedTwice {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
    },
    /// A dtype that the safetensors format does not have.
    #[error("{file}: tensor {name} has the unknown dtype {found:?}, expected one such as BF16 or F8_E4M3")]
    UnknownDtype {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// The dtype.
        found: String,
    },
    /// Offsets that end before they begin, or past the end of the file.
    #[error(
        "{file}: tensor {name} has the offsets {begin}..{end}, expected a range within the {data_bytes} bytes of data that the file has"
    )]
    Offsets {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// First byte, counted from the end of the header.
        begin: u64,
        /// One past its last byte.
        end: u64,
        /// Bytes after the header.
        data_bytes: u64,
    },
    /// Offsets that disagree with shape and dtype.
    #[error(
        "{file}: tensor {name} spans {found} bytes, its shape {shape:?} in {dtype} takes {}",
        expected.map_or("more than a file can hold".to_owned(), |bytes| bytes.to_string())
    )]
    Size {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes between the offsets.
        found: u64,
        /// Bytes of the shape; none if they overflow.
        expected: Option<u64>,
    },
    /// Two tensors share bytes.
    #[error(
        "{file}: tensor {name} begins at byte {begin} of the data, within {other}, which ends at {other_end}"
    )]
    Overlap {
        /// The file.
        file: String,
        /// The later tensor.
        name: String,
        /// Where it begins.
        begin: u64,
        /// The earlier one.
        other: String,
        /// Where that ends.
        other_end: u64,
    },
    /// Bytes of the data that belong to no tensor.
    #[error(
        "{file}: bytes {begin}..{end} of the data belong to no tensor, expected none between or after tensors"
    )]
    Gap {
        /// The file.
        file: String,
        /// First such byte.
        begin: u64,
        /// One past the last.
        end: u64,
    },
    /// More tensors than any served model has.
    #[error("the checkpoint has {found} tensors or more, expected at most {max}")]
    TooManyTensors {
        /// Tensors counted.
        found: usize,
        /// The bound.
        max: usize,
    },
    /// A file that the index names is not there or cannot be read.
    #[error("{file}: is named by the index and cannot be read: {problem}")]
    MissingFile {
        /// The file.
        file: String,
        /// Why.
        problem: String,
    },
    /// One name in two files.
    #[error("tensor {name} is both in {first} and in {second}, expected in one file")]
    InTwoFiles {
        /// The tensor.
        name: String,
        /// One file.
        first: String,
        /// The other.
        second: String,
    },
    /// The index says another file.
    #[error("tensor {name} is not in {file}, where the index says it is")]
    NotWhereIndexed {
        /// The tensor.
        name: String,
        /// The file that the index gives.
        file: String,
    },
    /// A tensor that the model needs is in no file.
    #[error("tensor {name} is missing, expected with shape {expected:?}")]
    Missing {
        /// The tensor.
        name: String,
        /// Its shape.
        expected: Vec<u64>,
    },
    /// A tensor of another shape.
    #[error("{file}: tensor {name} has shape {found:?}, the model needs {expected:?}")]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<u64>,
        /// What the model's parameters ask for.
        expected: Vec<u64>,
    },
    /// A tensor of a dtype that is not served at its place.
    #[error("{file}: tensor {name} has dtype {found}, expected {expected}")]
    Dtype {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// Its dtype.
        found: Dtype,
        /// The dtypes that are right.
        expected: String,
    },
    /// Rows that must be reordered across scale blocks.
    #[error(
        "{file}: tensor {name}: rows {start}..{end} are a rotated half-split head with scales of two blocks, expected within one block of 128 rows, or rows interleaved as in the consolidated layout"
    )]
    SplitAcrossBlocks {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// First of the rows.
        start: u32,
        /// One past the last.
        end: u32,
    },
    /// A weight file or tensor that the manifest does not name.
    #[error("{name} is not in manifest.json: make it anew with `tramontane checkpoint manifest`")]
    NoSum {
        /// The file or tensor.
        name: String,
    },
    /// A tensor that the manifest names is in no file.
    #[error("tensor {name} is in manifest.json and in no weight file")]
    NoTensor {
        /// The tensor.
        name: String,
    },
    /// A file of another length than the manifest says.
    #[error("{file}: has {found} bytes, manifest.json says {expected}")]
    FileLength {
        /// The file.
        file: String,
        /// Its length.
        found: u64,
        /// What it was.
        expected: u64,
    },
    /// A file whose bytes are not those that the manifest was made of.
    #[error("{file}: its SHA-256 is {found}, manifest.json says {expected}")]
    FileSum {
        /// The file.
        file: String,
        /// Its sum.
        found: String,
        /// What it was.
        expected: String,
    },
    /// A tensor whose bytes are not those that the manifest was made of.
    #[error("{file}: the bytes of tensor {name} are not those that manifest.json was made of")]
    TensorSum {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
    },
    /// A quantised tensor without its scales.
    #[error(
        "{file}: tensor {name} has dtype {dtype} and needs tensor {scale} with shape {expected:?}, which is in no file"
    )]
    MissingScale {
        /// The file of the tensor.
        file: String,
        /// The tensor.
        name: String,
        /// Its dtype.
        dtype: Dtype,
        /// The name of what is missing.
        scale: String,
        /// Its shape.
        expected: Vec<u64>,
    },
    /// Two tensors of which only one may be there.
    #[error("{file}: tensor {name} is there beside {other} of {other_file}, expected one of them")]
    Ambiguous {
        /// The file of one.
        file: String,
        /// One.
        name: String,
        /// The other.
        other: String,
        /// The file of the other.
        other_file: String,
    },
    /// Tensors that are read together, stored in different formats.
    #[error("{file}: tensor {name} is stored in {found}, expected {expected} as {other}")]
    MixedFormats {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// Its format.
        found: WeightFormat,
        /// The other's format.
        expected: WeightFormat,
        /// The tensor that it must agree with.
        other: String,
    },
}

/// A value that no weight or scale can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{file}: tensor {name} has a {dtype} value {problem} at byte {offset} of the file, expected {expected}"
)]
pub struct BadValue {
    /// The file.
    pub file: String,
    /// The tensor.
    pub name: String,
    /// Its dtype.
    pub dtype: Dtype,
    /// What is wrong with the value.
    pub problem: &'static str,
    /// The value's first byte, counted from the start of the file.
    pub offset: u64,
    /// What would be right.
    pub expected: &'static str,
}

/// Rows that a tensor does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor {name}: rows {start}..{end} were asked for, it has rows 0..{rows}")]
pub struct NoSuchRows {
    /// The tensor.
    pub name: String,
    /// First row asked for.
    pub start: u32,
    /// One past the last row asked for.
    pub end: u32,
    /// Rows of the tensor.
    pub rows: u64,
}
