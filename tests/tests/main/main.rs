//! Clusters of real processes, end to end: what a client, an operator and a power cut see.
//!
//! One file per theme. Few tests, as starting a cluster takes seconds; each holds the machine while it has one.

mod answers;
mod bad_checkpoint;
mod bad_config;
mod bad_requests;
mod bench;
mod chaos;
mod checkpoints;
mod clients;
mod coordinators;
mod demo;
mod every_field;
mod failover;
mod family;
mod fetching;
mod golden;
mod hosts;
mod kv_format;
mod load;
mod members;
mod observability;
mod pauses;
mod placements;
mod plans;
mod prompts;
mod real_size;
mod replicas;
mod rolling;
mod schemathesis;
mod simulation;
mod standbys;
mod workers;
