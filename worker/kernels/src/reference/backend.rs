//! [`Backend`] over the twins.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::{
    CpuBuffer, adjust, attention, combine, embed, expanded_attention, experts, gate_up, latent, linear,
    queries, rms_norm, rotate_qkv, route, sample, values,
};
use crate::ops::{
    Adjust, Attention, Backend, Combine, DeviceBuffer, DeviceInfo, Embed, ExpandedAttention, Experts, GateUp,
    LatentWrite, Linear, OpError, Queries, ReadRange, RmsNorm, RotateQkv, Route, Sample, Values,
};

/// The reference backend.
#[derive(Debug)]
pub struct CpuBackend {
    info: DeviceInfo,
    binding_limit: u64,
    held: Arc<AtomicU64>,
}

impl CpuBackend {
    /// A backend with room for `memory_bytes` that pretends to bind at most `binding_limit` bytes at once.
    pub fn new(memory_bytes: u64, binding_limit: u64) -> Self {
        let info = DeviceInfo {
            name: "reference".to_owned(),
            driver: "none".to_owned(),
            kind: format!("reference {}", env!("CARGO_PKG_VERSION")),
            is_cpu: true,
            memory_bytes,
        };
        Self {
            info,
            binding_limit,
            held: Arc::default(),
        }
    }
}

/// The words that a copy touches, or an error.
fn word_range(size: u64, offset: u64, bytes: u64) -> Result<std::ops::Range<usize>, OpError> {
    let error = OpError::Range { offset, bytes, size };
    let end = offset.checked_add(bytes).filter(|&end| end <= size);
    match end {
        Some(end) if offset.is_multiple_of(4) && bytes.is_multiple_of(4) => {
            let word = |byte: u64| usize::try_from(byte / 4);
            match (word(offset), word(end)) {
                (Ok(start), Ok(end)) => Ok(start..end),
                (Err(_), _) | (_, Err(_)) => Err(error),
            }
        }
        Some(_) | None => Err(error),
    }
}

impl Backend for CpuBackend {
    type Buffer = CpuBuffer;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn max_binding_bytes(&self) -> u64 {
        self.binding_limit
    }

    fn held_bytes(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn alloc(&mut self, label: &str, bytes: u64) -> Result<CpuBuffer, OpError> {
        let held = self.held_bytes();
        let out_of_memory = || OpError::OutOfMemory {
            label: label.to_owned(),
            bytes,
            held,
        };
        let rounded = bytes
            .max(16)
            .checked_next_multiple_of(16)
            .ok_or_else(out_of_memory)?;
        let total = held.checked_add(rounded).ok_or_else(out_of_memory)?;
        if total > self.info.memory_bytes {
            return Err(out_of_memory());
        }
        let words = usize::try_from(rounded / 4).map_err(|_| out_of_memory())?;
        Ok(CpuBuffer::new(words, &self.held))
    }

    fn write(&mut self, buffer: &CpuBuffer, offset: u64, bytes: &[u8]) -> Result<(), OpError> {
        let range = word_range(buffer.bytes(), offset, bytes.len() as u64)?;
        let mut words = buffer.words();
        let target: &mut [u8] = bytemuck::cast_slice_mut(&mut words[range]);
        target.copy_from_slice(bytes);
        Ok(())
    }

    fn submit(&mut self) -> Result<(), OpError> {
        Ok(())
    }

    fn read(&mut self, ranges: &[ReadRange<CpuBuffer>], _: Instant) -> Result<Vec<Vec<u8>>, OpError> {
        ranges
            .iter()
            .map(|range| {
                let words = word_range(range.buffer.bytes(), range.offset, range.bytes)?;
                Ok(bytemuck::cast_slice(&range.buffer.words()[words]).to_vec())
            })
            .collect()
    }

    fn embed(&mut self, op: &Embed<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        embed::run(op);
        Ok(())
    }

    fn rms_norm(&mut self, op: &RmsNorm<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        rms_norm::run(op);
        Ok(())
    }

    fn linear(&mut self, op: &Linear<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        linear::run(op);
        Ok(())
    }

    fn gate_up(&mut self, op: &GateUp<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        gate_up::run(op);
        Ok(())
    }

    fn latent_write(&mut self, op: &LatentWrite<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        latent::run(op);
        Ok(())
    }

    fn queries(&mut self, op: &Queries<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        queries::run(op);
        Ok(())
    }

    fn rotate_qkv(&mut self, op: &RotateQkv<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        rotate_qkv::run(op);
        Ok(())
    }

    fn attention(&mut self, op: &Attention<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        attention::run(op);
        Ok(())
    }

    fn expanded_attention(&mut self, op: &ExpandedAttention<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        expanded_attention::run(op);
        Ok(())
    }

    fn values(&mut self, op: &Values<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        values::run(op);
        Ok(())
    }

    fn route(&mut self, op: &Route<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        route::run(op);
        Ok(())
    }

    fn experts(&mut self, op: &Experts<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        experts::run(op);
        Ok(())
    }

    fn combine(&mut self, op: &Combine<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        combine::run(op);
        Ok(())
    }

    fn adjust(&mut self, op: &Adjust<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        adjust::run(op);
        Ok(())
    }

    fn sample(&mut self, op: &Sample<'_, CpuBuffer>) -> Result<(), OpError> {
        op.check()?;
        sample::run(op);
        Ok(())
    }
}
