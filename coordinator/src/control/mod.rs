//! Control: members, leases, planner and placement.
//!
//! No tokio, clock or randomness here: an event goes in, effects come out, and time is an argument. What must be the
//! same on every coordinator is [`state::ClusterState`], changed by [`command::Command`]s alone; what only the leader
//! knows (leases, reports, waits) is in [`controller`] and is built anew by each new leader.

pub mod apply;
pub mod codec;
pub mod command;
pub mod controller;
pub mod footprint;
pub mod limits;
pub mod needs;
pub mod planner;
pub mod standby;
pub mod state;
