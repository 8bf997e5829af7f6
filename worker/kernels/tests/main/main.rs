//! Ops on a Vulkan adapter against their twins, and the program that measures them.

mod bench;
mod ops;
