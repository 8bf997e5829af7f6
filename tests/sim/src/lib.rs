//! What simulations share: numbers that replay, disks that lose power, caches that hash, and faults planted on purpose.
//!
//! For tests only. Nothing here is compiled into the program: coordinator and worker name this crate as a development
//! dependency, and behind the feature `deliberate-bugs`, which only tests turn on.

pub mod bugs;
pub mod cache;
pub mod disk;
mod rng;

pub use disk::Disk;
pub use rng::Rng;
