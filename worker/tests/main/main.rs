//! Ops on a Vulkan adapter against their twins; and whole workers: real processes' code in one process, real gRPC
//! between them, against recorded answers.

mod batch;
mod choosing;
mod cluster;
mod constrained;
mod copies;
mod family;
mod formats;
mod golden;
mod ops;
mod prefix_cache;
