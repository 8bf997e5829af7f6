//! The gRPC services of a coordinator.

pub mod raft;
