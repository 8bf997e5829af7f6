//! Raft between the coordinators: one replicated log, one state machine, one leader.
//!
//! [`node`] is pure and knows neither time nor network; [`driver`] gives it a thread, [`transport`] carries its
//! messages, [`handle`] is what the rest of the coordinator sees. The state machine is `control`'s.
//!
//! **Invariant RF-1:** an acknowledged change survives the loss of any minority.
//! **Invariant RF-2:** nothing is applied before it is durable.

mod budget;
mod cluster_state;
pub mod driver;
pub mod handle;
pub mod identity;
mod logger;
mod metrics;
pub mod node;
#[cfg(test)]
pub(crate) mod sim;
pub mod state_machine;
pub mod storage;
pub mod transport;

pub use driver::{Driver, OnFailure, RaftFailure, RaftThread, TICK, end_process};
pub use handle::{Applied, AppliedState, HandOver, RaftHandle};
pub use identity::{Identity, IdentityError, Members};
pub use node::{Node, NodeError, NodeOptions, ProposeError, RaftStatus, ReadError, Role};
pub use state_machine::StateMachine;
pub use storage::{LogStore, StoreError};
