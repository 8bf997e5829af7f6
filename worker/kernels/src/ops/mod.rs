//! The operations of the model's graph, and the one trait through which the executor runs them.
//!
//! Every op is a triple: a struct here that holds its operands, checks their shapes and says which dispatches it
//! needs; a shader in `shaders/`; a twin in [`crate::reference`]. [`Backend`] has two implementations:
//! [`crate::gpu::GpuBackend`] (wgpu) and [`crate::reference::CpuBackend`] (plain loops, f64 sums).
//!
//! No wgpu, no threads, no model configuration here: ops take plain numbers and buffers.
//!
//! **DET-1:** an element of an output is computed by one sequence of operations that depends on the weight's shape
//! and on the row's own values, position and role only. The number of rows in a call, their order, the parts a
//! matrix is split in and the experts that are local change nothing in it.

mod adjust;
mod attention;
mod cache;
mod combine;
mod embed;
mod error;
mod expanded_attention;
mod expert_bank;
mod experts;
mod gate_up;
mod latent;
mod linear;
mod matrix;
mod queries;
mod rms_norm;
mod rotate_qkv;
mod route;
mod rows;
mod sample;
mod values;

use std::time::Instant;

pub use adjust::{Adjust, AdjustedRow, Adjustment, HELD_BACK, mask_words};
pub use attention::Attention;
pub use cache::{KvCache, KvCacheShape};
pub use combine::Combine;
pub use embed::Embed;
pub use error::OpError;
pub use expanded_attention::{ExpandedAttention, ExpandedScratch, PromptRows};
pub use expert_bank::{BankPart, ExpertBank, ExpertLayout};
pub use experts::{ExpertScratch, Experts};
pub use gate_up::GateUp;
pub use latent::LatentWrite;
pub use linear::Linear;
pub use matrix::{
    COLS_ALIGN, FP8_BLOCK, Matrix, MatrixPart, NVFP4_GROUP, PART_ALIGN, Scales, Vector, WeightFormat,
    split_rows,
};
pub use queries::{MlaDims, Queries};
pub use rms_norm::RmsNorm;
pub use rotate_qkv::RotateQkv;
pub use route::{MAX_EXPERTS, MAX_TOP_K, Route};
pub use rows::{NO_ROW, RowMeta, Rows};
pub(crate) use sample::PARAM_WORDS;
pub use sample::{MAX_TOP, Sample, SampleParams, SampleResult};
pub use values::Values;

/// A handle to device memory. Clones share the memory; it is freed when the last one is dropped.
pub trait DeviceBuffer: Clone + Send + 'static {
    /// Size in bytes, a multiple of 4.
    fn bytes(&self) -> u64;
}

/// Bytes to read back from a buffer.
#[derive(Clone, Debug)]
pub struct ReadRange<B> {
    /// The buffer.
    pub buffer: B,
    /// First byte, a multiple of 4.
    pub offset: u64,
    /// Number of bytes, a multiple of 4.
    pub bytes: u64,
}

/// What a backend runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The adapter's name, such as `llvmpipe (LLVM 15.0.6, 256 bits)`.
    pub name: String,
    /// The driver's name and version.
    pub driver: String,
    /// The device kind of DET-1: equal kinds give equal bits. Adapter, driver version and kernel-set version.
    pub kind: String,
    /// Whether the adapter is a processor that emulates a GPU.
    pub is_cpu: bool,
    /// Bytes that weights, cache and scratch may use together.
    pub memory_bytes: u64,
}

/// Device memory and the ops on it.
///
/// Calls take effect in program order: a `write` is seen by the ops recorded after it and by none before it. Ops are
/// recorded and run together at [`Backend::submit`] or [`Backend::read`]. Every op checks its operands' shapes and
/// sizes before anything is recorded. One thread owns a backend; buffers may be handed between threads.
///
/// After [`OpError::DeviceLost`] every further call fails with it; the backend must be dropped and opened anew.
pub trait Backend {
    /// Handle to device memory.
    type Buffer: DeviceBuffer;

    /// What the backend runs on.
    fn info(&self) -> &DeviceInfo;

    /// Largest buffer an op may bind. Matrices and banks above it are split in parts.
    fn max_binding_bytes(&self) -> u64;

    /// Bytes of all live buffers made by [`Backend::alloc`] and [`Backend::alloc_weights`].
    fn held_bytes(&self) -> u64;

    /// Makes a zeroed buffer of `bytes`, rounded up to a multiple of 16. `label` names it in errors.
    fn alloc(&mut self, label: &str, bytes: u64) -> Result<Self::Buffer, OpError>;

    /// The same for what is written once, before any op has it. Where the device's memory is the host's such writes go
    /// straight to it.
    fn alloc_weights(&mut self, label: &str, bytes: u64) -> Result<Self::Buffer, OpError> {
        self.alloc(label, bytes)
    }

    /// Copies `bytes` into the buffer at `offset`; both are multiples of 4. Goes through bounded staging memory: a
    /// large write may wait for earlier ones to finish.
    fn write(&mut self, buffer: &Self::Buffer, offset: u64, bytes: &[u8]) -> Result<(), OpError>;

    /// Starts what was recorded; does not wait for it.
    fn submit(&mut self) -> Result<(), OpError>;

    /// Submits, waits until everything has run, and returns the bytes of each range. Fails at the deadline.
    fn read(
        &mut self,
        ranges: &[ReadRange<Self::Buffer>],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, OpError>;

    /// Copies the rows of the embedding table that the token ids name.
    fn embed(&mut self, op: &Embed<'_, Self::Buffer>) -> Result<(), OpError>;
    /// Root-mean-square norm of rows.
    fn rms_norm(&mut self, op: &RmsNorm<'_, Self::Buffer>) -> Result<(), OpError>;
    /// Matrix times rows, optionally added to the output.
    fn linear(&mut self, op: &Linear<'_, Self::Buffer>) -> Result<(), OpError>;
    /// `silu(w1 x) * (w3 x)`.
    fn gate_up(&mut self, op: &GateUp<'_, Self::Buffer>) -> Result<(), OpError>;
    /// Norms the latent, rotates the rope part of the key, writes both to the cache.
    fn latent_write(&mut self, op: &LatentWrite<'_, Self::Buffer>) -> Result<(), OpError>;
    /// Rotates queries and folds the key half of `wkv_b` into them.
    fn queries(&mut self, op: &Queries<'_, Self::Buffer>) -> Result<(), OpError>;
    /// Rotates queries and keys of grouped-query attention, writes keys and values to the cache.
    fn rotate_qkv(&mut self, op: &RotateQkv<'_, Self::Buffer>) -> Result<(), OpError>;
    /// Attention over the paged cache.
    fn attention(&mut self, op: &Attention<'_, Self::Buffer>) -> Result<(), OpError>;
    /// Latent attention of rows of prompts over expanded keys and values.
    fn expanded_attention(&mut self, op: &ExpandedAttention<'_, Self::Buffer>) -> Result<(), OpError>;
    /// Applies the value half of `wkv_b` to attention's latent output.
    fn values(&mut self, op: &Values<'_, Self::Buffer>) -> Result<(), OpError>;
    /// Router: gate, softmax, top-k, renormalisation.
    fn route(&mut self, op: &Route<'_, Self::Buffer>) -> Result<(), OpError>;
    /// Routed experts of one bank on the rows that chose them.
    fn experts(&mut self, op: &Experts<'_, Self::Buffer>) -> Result<(), OpError>;
    /// Adds routed and shared expert results to the residual stream, in expert order.
    fn combine(&mut self, op: &Combine<'_, Self::Buffer>) -> Result<(), OpError>;
    /// Adjusted copies of logits.
    fn adjust(&mut self, op: &Adjust<'_, Self::Buffer>) -> Result<(), OpError>;
    /// Samples a token per row of logits, with log-probabilities.
    fn sample(&mut self, op: &Sample<'_, Self::Buffer>) -> Result<(), OpError>;
}
