//! Ops on a Vulkan adapter against their twins.

mod ops;
