//! Raft between the coordinators: one replicated log, one state machine, one leader.

pub mod identity;
mod logger;
mod metrics;
pub mod node;
#[cfg(test)]
pub(crate) mod sim;
pub mod state_machine;
pub mod storage;
