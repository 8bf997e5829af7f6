//! The coordinator: control plane, gateway and HTTP.

pub mod config;
pub mod raft;
pub mod text;
