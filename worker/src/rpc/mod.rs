//! The worker on the wire: its membership, the services it offers, and its links to other workers.
//!
//! Everything that computes is behind [`crate::executor`], everything that decides behind [`crate::scheduler`].

pub mod assignments;
pub mod expert;
pub mod head;
pub mod link;
pub mod loading;
mod pipeline;
mod sequences;
pub mod serving;
pub mod session;
pub mod stage;
pub(crate) mod telemetry;
