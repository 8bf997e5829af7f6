//! The whole cluster in one thread: the raft node and its log, the controller and the planner, the gateway and the
//! scheduler as they are in the program, in a world that loses, repeats, delays and parts, whose disks tear, and whose
//! processes stop and start again.
//!
//! What is modelled here is what joins these parts: connections, the worker's tasks, and devices that hash rows instead
//! of computing them. `SIM_SEED=n` runs one seed; a failure prints its seed and what happened last. See docs/testing.md.

mod answers;
mod asking;
mod bugs;
mod clients;
mod coordinator;
mod coverage;
mod device;
mod faults;
mod head;
mod heads;
mod history;
mod invariants;
mod network;
mod runs;
mod sampler;
mod scenario;
mod streams;
mod trace;
mod wires;
mod worker;
mod world;

use runs::{run_seeds, seeds, seeds_from_environment};

/// Every rule of [`invariants`] holds at every moment, and all comes to rest after the last fault.
#[test]
fn simulation_of_500_seeds() {
    let coverage = run_seeds(seeds(0..500));
    println!("{coverage:?}");
    if !seeds_from_environment() {
        coverage.check_reached(500);
    }
}

/// What a failure prints is worth something only if it happens again.
#[test]
fn equal_seeds_of_the_simulation_give_equal_runs() {
    for seed in 1000..1040 {
        let [first, second] = [runs::run(seed), runs::run(seed)].map(|ran| ran.ok());
        assert!(
            first.is_some() && first == second,
            "seed {seed}: {first:?}, then {second:?}"
        );
    }
}

#[test]
#[ignore = "minutes: make soak"]
fn soak_simulation_of_20000_seeds() {
    let coverage = run_seeds(seeds(0..20_000));
    println!("{coverage:?}");
}
