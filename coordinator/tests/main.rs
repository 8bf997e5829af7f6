//! Tests of the coordinator's public face, one module per part.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod text;
