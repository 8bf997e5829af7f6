//! The gRPC services of a coordinator.
//!
//! Services decide nothing about the cluster: they check who asks and what, and pass it to the one task that owns the
//! controller, through [`desk`], or to raft.

pub mod admin;
pub mod desk;
pub mod membership;
pub mod raft;
pub mod redirect;
