//! The key-value cache of one layer: `[blocks, block_tokens, width]` values of f32 or f16, in one buffer.
//!
//! A token's `width` values are its keys, head after head, then its values. Where the values are the first part of the
//! keys, as in latent attention, they are not stored again. Which block belongs to which sequence is the scheduler's
//! business; here are only shapes.
//!
//! Values of f16 are two to a word, the lower half first. They are rounded as [`KvFormat::F16`] says, on every device alike.

use tramontane_model::placement::KvFormat;

use super::matrix::COLS_ALIGN;
use super::rows::check_width;
use super::{DeviceBuffer, OpError};

/// Shape of a layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCacheShape {
    /// Blocks.
    pub blocks: u32,
    /// Tokens per block, a power of two.
    pub block_tokens: u32,
    /// Heads of keys and values; query heads share them evenly.
    pub heads: u32,
    /// Width of a head's key.
    pub key: u32,
    /// Width of a head's value.
    pub value: u32,
    /// Whether a head's value is the first part of its key.
    pub value_in_key: bool,
    /// How values are stored.
    pub format: KvFormat,
}

impl KvCacheShape {
    /// One head for all queries: a normed latent, which is key and value, and the key's rotated part.
    pub fn latent(blocks: u32, block_tokens: u32, latent: u32, rope: u32, format: KvFormat) -> Self {
        Self {
            blocks,
            block_tokens,
            heads: 1,
            key: latent.saturating_add(rope),
            value: latent,
            value_in_key: true,
            format,
        }
    }

    /// Keys and values of several heads, all of one width.
    pub fn grouped(blocks: u32, block_tokens: u32, heads: u32, head_dim: u32, format: KvFormat) -> Self {
        Self {
            blocks,
            block_tokens,
            heads,
            key: head_dim,
            value: head_dim,
            value_in_key: false,
            format,
        }
    }

    /// Where a token's values begin among its `width` values.
    pub fn first_value(&self) -> u32 {
        match self.value_in_key {
            true => 0,
            false => self.heads.saturating_mul(self.key),
        }
    }

    /// Values per token.
    pub fn width(&self) -> u32 {
        let keys = self.heads.saturating_mul(self.key);
        match self.value_in_key {
            true => keys,
            false => keys.saturating_add(self.heads.saturating_mul(self.value)),
        }
    }

    /// Slots for tokens.
    pub fn slots(&self) -> u32 {
        self.blocks.saturating_mul(self.block_tokens)
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.block_tokens) * u64::from(self.width()) * self.format.value_bytes()
    }

    /// Bytes of the whole cache.
    pub fn bytes(&self) -> u64 {
        self.block_bytes().saturating_mul(u64::from(self.blocks))
    }
}

/// A layer's cache. Made by [`KvCache::new`], which checks it.
#[derive(Clone, Debug)]
pub struct KvCache<B> {
    shape: KvCacheShape,
    buffer: B,
}

impl<B: DeviceBuffer> KvCache<B> {
    /// Checks the shape and that the buffer holds it.
    pub fn new(shape: KvCacheShape, buffer: B) -> Result<Self, OpError> {
        const OP: &str = "kv cache";
        check_width(OP, "heads", shape.heads, 1)?;
        check_width(OP, "key", shape.key, COLS_ALIGN)?;
        check_width(OP, "value", shape.value, COLS_ALIGN)?;
        if shape.value_in_key && (shape.value > shape.key || shape.heads != 1) {
            return Err(OpError::shape(
                OP,
                format!("{shape:?}: no value is part of a key"),
            ));
        }
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
    pub fn shape(&self) -> &KvCacheShape {
        &self.shape
    }

    /// Where it is.
    pub fn buffer(&self) -> &B {
        &self.buffer
    }
}
