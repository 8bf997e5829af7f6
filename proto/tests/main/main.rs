//! The wire from outside: conversions there and back, and who may talk to whom.

mod conversions;
mod transport;
