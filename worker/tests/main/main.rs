//! Whole workers: real processes' code in one process, real gRPC
//! between them, against recorded answers.

mod batch;
mod choosing;
mod cluster;
mod constrained;
mod copies;
mod expanded;
mod family;
mod formats;
mod golden;
mod prefix_cache;
