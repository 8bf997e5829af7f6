//! Layers as ops: what one holds, the buffers between its ops, and how its forward pass is recorded.
//!
//! The forward pass of Mistral Large 3 and its family, over any [`crate::ops::Backend`].

mod attention;
mod buffers;
mod pass;
mod weights;

pub use buffers::{HeadBuffers, HolderBuffers, OwnerBuffers, caches, expert_scratch};
pub use pass::LayerPass;
pub use weights::{
    FeedForward, GroupedAttention, Head, LatentAttention, LayerAttention, LayerFeedForward, OwnerLayer,
    TensorSource,
};
