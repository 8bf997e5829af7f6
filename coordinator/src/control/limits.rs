//! Bounds on everything that is replicated.
//!
//! They keep sums of bytes within 64 bits and a snapshot within one message; none is a target.

/// Most coordinators in one cluster.
pub const MAX_COORDINATORS: usize = 9;
/// Most coordinators that are added or removed in the life of a cluster.
pub const MAX_PARTS: usize = 1024;
/// Most workers in one cluster.
pub const MAX_WORKERS: usize = 512;
/// Most replicas of a model.
pub const MAX_REPLICAS: usize = 64;
/// Most copies of shares of a model that all standbys together keep.
pub const MAX_SHARES: usize = 4096;
/// Most proposers remembered for deduplication; the one applied longest ago is forgotten first.
pub const MAX_PROPOSERS: usize = 64;

/// Most layers of a model.
pub const MAX_LAYERS: usize = 1024;
/// Most routed experts of a layer.
pub const MAX_EXPERTS: u32 = 4096;
/// Most bytes of a layer without its routed experts, of the embedding, of the head, and of a device's scratch.
pub const MAX_PART_BYTES: u64 = 1 << 48;
/// Most bytes of one routed expert.
pub const MAX_EXPERT_BYTES: u64 = 1 << 38;
/// Most bytes of keys and values of one token in one layer.
pub const MAX_KV_TOKEN_BYTES: u64 = 1 << 24;
/// Most tokens in a KV cache.
pub const MAX_KV_TOKENS: u64 = 1 << 36;
/// Most memory of one device.
pub const MAX_DEVICE_BYTES: u64 = 1 << 52;

/// Longest encoded proposal.
pub const MAX_PROPOSAL_BYTES: usize = 4 << 20;
/// Longest encoded state.
pub const MAX_STATE_BYTES: usize = 64 << 20;

/// The worst sum of a device's weights stays within 64 bits.
const _: () = {
    let layers = (MAX_LAYERS as u128) * (MAX_PART_BYTES as u128);
    let experts = (MAX_LAYERS as u128) * (MAX_EXPERTS as u128) * (MAX_EXPERT_BYTES as u128);
    assert!(layers + experts + 4 * (MAX_PART_BYTES as u128) < u64::MAX as u128);
};
