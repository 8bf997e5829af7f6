//! The latent cache of one layer: `[blocks, block_tokens, latent + rope]` f32, in one buffer.
//!
//! Which block belongs to which sequence is the scheduler's business; here are only shapes.

use super::matrix::COLS_ALIGN;
use super::rows::check_width;
use super::{DeviceBuffer, OpError};

/// Shape of a layer's latent cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentCacheShape {
    /// Blocks.
    pub blocks: u32,
    /// Tokens per block, a power of two.
    pub block_tokens: u32,
    /// Width of the normed latent.
    pub latent: u32,
    /// Width of the rotated key.
    pub rope: u32,
}

impl LatentCacheShape {
    /// Values per token.
    pub fn width(&self) -> u32 {
        self.latent.saturating_add(self.rope)
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.block_tokens) * u64::from(self.width()) * 4
    }

    /// Bytes of the whole cache.
    pub fn bytes(&self) -> u64 {
        self.block_bytes().saturating_mul(u64::from(self.blocks))
    }

    /// Most blocks of this shape that fit in one binding of `limit` bytes.
    pub fn max_blocks(&self, limit: u64) -> u32 {
        u32::try_from(limit / self.block_bytes().max(1)).unwrap_or(u32::MAX)
    }
}

/// A layer's latent cache. Made by [`LatentCache::new`], which checks it.
#[derive(Clone, Debug)]
pub struct LatentCache<B> {
    shape: LatentCacheShape,
    buffer: B,
}

impl<B: DeviceBuffer> LatentCache<B> {
    /// Checks the shape and that the buffer holds it.
    pub fn new(shape: LatentCacheShape, buffer: B) -> Result<Self, OpError> {
        const OP: &str = "latent cache";
        check_width(OP, "latent", shape.latent, COLS_ALIGN)?;
        check_width(OP, "rope", shape.rope, COLS_ALIGN)?;
        if !shape.block_tokens.is_power_of_two() || shape.blocks == 0 {
            let detail = format!(
                "{} blocks of {} tokens: blocks must exist and hold a power of two",
                shape.blocks, shape.block_tokens
            );
            return Err(OpError::shape(OP, detail));
        }
        let needed = shape.bytes();
        if buffer.bytes() < needed {
            return Err(OpError::TooSmall {
                op: OP,
                operand: "cache",
                found: buffer.bytes(),
                needed,
            });
        }
        Ok(Self { shape, buffer })
    }

    /// Its shape.
    pub fn shape(&self) -> &LatentCacheShape {
        &self.shape
    }

    /// Where it is.
    pub fn buffer(&self) -> &B {
        &self.buffer
    }
}
