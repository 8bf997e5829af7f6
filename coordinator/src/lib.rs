//! The coordinator: control plane, gateway and HTTP.

pub mod config;
pub mod control;
pub mod gateway;
pub mod http;
pub mod process;
pub mod raft;
pub mod rpc;
pub mod text;
