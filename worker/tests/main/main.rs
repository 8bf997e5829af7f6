//! Whole workers: real processes' code in one process, real gRPC between them, against recorded answers.

mod cluster;
mod golden;
