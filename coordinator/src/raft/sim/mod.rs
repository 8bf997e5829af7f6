//! Clusters of the pure node in memory: a network that misbehaves, disks that lose power, a clock that is counted.
//!
//! `SIM_SEED=n` replays one seed; a failing run prints its own.

mod cluster;
mod ledger;
mod network;
mod tests;

pub(crate) use self::ledger::Ledger;
pub(crate) use tramontane_sim::Rng;
