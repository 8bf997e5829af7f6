//! What a measurement of a device's kernels found, as it is written to a file and read again.
//!
//! Plain data: no device is needed to read it. docs/bench-kernels.md says what each field means.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Version of the file's fields: raised when one changes its meaning or is gone. New ones may come without.
pub const VERSION: u32 = 1;

/// Everything that one run measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelFigures {
    /// [`VERSION`] of whoever wrote it.
    pub version: u32,
    /// What was measured.
    pub device: Device,
    /// The model whose dimensions were taken.
    pub model: Model,
    /// Whose clock the times are of.
    pub clock: Clock,
    /// What the device can do at most, measured in the same run.
    pub ceilings: Ceilings,
    /// Ops and whole layers, in the order in which they were measured.
    pub lines: Vec<Line>,
    /// What was not measured, and why.
    pub missing: Vec<Missing>,
    /// Seconds that the run took.
    pub run_seconds: f64,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// The adapter's name.
    pub name: String,
    /// Name and version of the driver.
    pub driver: String,
    /// The device kind: equal kinds give equal bits.
    pub kind: String,
    /// Whether it is a processor that emulates a GPU.
    pub is_cpu: bool,
    /// Bytes that weights, cache and scratch may use together.
    pub memory_bytes: u64,
}

/// A model's dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// What `--shape` said.
    pub shape: String,
    /// How the weights are stored: `bf16`, `fp8`, `fp8-tensor` or `nvfp4`.
    pub format: String,
    /// Routed experts of a layer; 0 without.
    pub experts: u32,
    /// Experts of a row.
    pub experts_per_row: u32,
    /// Layers of each kind, with weights of their own, that were measured in turn.
    pub layers: u32,
    /// How the cache stores its values: `f32` or `f16`.
    pub cache_format: String,
}

/// Whose clock times are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// The device's: from the end of what comes before an op to its own end.
    Device,
    /// The host's: from the submit to the answer.
    Host,
}

/// What the device can do at most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// Bytes read and written in a second by a copy.
    pub copy_bytes_per_s: f64,
    /// What copied.
    pub copy_by: String,
    /// Floating-point operations in a second of the best plain product of matrices, a multiply-add counted as two.
    pub product_flops_per_s: f64,
    /// Which product.
    pub product_by: String,
}

/// Where in the model an op is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// A layer with routed experts.
    #[value(name = "moe")]
    MoeLayer,
    /// A layer without.
    #[value(name = "dense")]
    DenseLayer,
    /// What is before the first layer and after the last one.
    Ends,
}

/// Which of a step's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Rows of generated tokens, each of a sequence of its own.
    Generated,
    /// Rows of a prompt, the last of one sequence.
    Given,
    /// The same, attending to expanded keys and values.
    Expanded,
}

impl Role {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generated => "generated",
            Self::Given => "given",
            Self::Expanded => "expanded",
        }
    }
}

/// A call of an op, or a whole layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Where it is.
    pub part: Part,
    /// The op, as `linear`; `layer` for a whole layer.
    pub op: String,
    /// Which of the model's weights, as `wq_a`, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// Role of the rows.
    pub role: Role,
    /// Rows of the call.
    pub rows: u32,
    /// Tokens of each sequence, the last row included; none where the op does not depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    /// Least time of a call.
    pub seconds: f64,
    /// Bytes of the weights that it reads, each once.
    pub weight_bytes: u64,
    /// Bytes of cached keys and values that it reads, each once.
    pub cache_bytes: u64,
    /// Bytes of its other operands, each once.
    pub input_bytes: u64,
    /// Bytes that it writes.
    pub output_bytes: u64,
    /// Floating-point operations of its products, a multiply-add counted as two.
    pub flops: u64,
    /// Different experts whose weights it reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<u32>,
    /// The fastest kernels for this very call, whatever they would do to bits, if they were looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fastest: Option<Fastest>,
}

/// Kernels of other sizes than the device's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fastest {
    /// Least time of a call.
    pub seconds: f64,
    /// The sizes; none where the device's own are the fastest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<String>,
}

/// What was not measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Missing {
    /// What, as `moe layer, 64 rows after 131072 tokens`.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// Which ceiling a line is nearer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The copy.
    Memory,
    /// The product.
    Arithmetic,
}

impl Line {
    /// All bytes that it moves.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes + self.cache_bytes + self.input_bytes + self.output_bytes
    }

    /// Bytes in a second.
    pub fn bytes_per_s(&self) -> f64 {
        self.bytes() as f64 / self.seconds
    }

    /// Operations in a second.
    pub fn flops_per_s(&self) -> f64 {
        self.flops as f64 / self.seconds
    }

    /// Share of the copy.
    pub fn copy_share(&self, ceilings: &Ceilings) -> f64 {
        self.bytes_per_s() / ceilings.copy_bytes_per_s
    }

    /// Share of the product.
    pub fn product_share(&self, ceilings: &Ceilings) -> f64 {
        self.flops_per_s() / ceilings.product_flops_per_s
    }

    /// The ceiling that would be reached first.
    pub fn bound(&self, ceilings: &Ceilings) -> Bound {
        match self.copy_share(ceilings) >= self.product_share(ceilings) {
            true => Bound::Memory,
            false => Bound::Arithmetic,
        }
    }
}
