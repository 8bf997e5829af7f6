//! Proposals and states as bytes: JSON with a format number in front.
//!
//! Equal states give equal bytes: every map is ordered. A number this build does not know is an error, and whoever reads
//! a log must stop there rather than skip the entry, or members would come to differ.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::command::Proposal;
use super::limits::{MAX_PROPOSAL_BYTES, MAX_STATE_BYTES};
use super::state::ClusterState;

/// The format that this build writes and reads.
pub const FORMAT: u32 = 3;

#[derive(Serialize)]
struct Sealed<'a, T> {
    format: u32,
    body: &'a T,
}

#[derive(Deserialize)]
struct Opened<T> {
    body: T,
}

#[derive(Deserialize)]
struct Header {
    format: u32,
}

/// Why bytes cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Longer than it may be.
    #[error("{what} takes {found} bytes, at most {limit} are allowed")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Its length.
        found: usize,
        /// Its longest length.
        limit: usize,
    },
    /// Of another format.
    #[error("{what} has format {found}, this build reads format {FORMAT}")]
    Format {
        /// What it is.
        what: &'static str,
        /// The format found.
        found: u32,
    },
    /// Not JSON, or not of this shape.
    #[error("{what} cannot be read or written: {error}")]
    Json {
        /// What it is.
        what: &'static str,
        /// Where and why.
        error: serde_json::Error,
    },
}

fn encode<T: Serialize>(what: &'static str, body: &T, limit: usize) -> Result<Vec<u8>, CodecError> {
    let sealed = Sealed { format: FORMAT, body };
    let bytes = serde_json::to_vec(&sealed).map_err(|error| CodecError::Json { what, error })?;
    check_length(what, bytes.len(), limit)?;
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8], limit: usize) -> Result<T, CodecError> {
    check_length(what, bytes.len(), limit)?;
    let json = |error| CodecError::Json { what, error };
    let Header { format: found } = serde_json::from_slice(bytes).map_err(json)?;
    if found != FORMAT {
        return Err(CodecError::Format { what, found });
    }
    let Opened { body } = serde_json::from_slice(bytes).map_err(json)?;
    Ok(body)
}

fn check_length(what: &'static str, found: usize, limit: usize) -> Result<(), CodecError> {
    if found > limit {
        Err(CodecError::TooLong { what, found, limit })
    } else {
        Ok(())
    }
}

impl Proposal {
    /// The proposal as a log entry holds it.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode("proposal", self, MAX_PROPOSAL_BYTES)
    }

    /// Reads a log entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        decode("proposal", bytes, MAX_PROPOSAL_BYTES)
    }
}

impl ClusterState {
    /// The state as a snapshot holds it.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode("cluster state", self, MAX_STATE_BYTES)
    }

    /// Reads a snapshot.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        decode("cluster state", bytes, MAX_STATE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use tramontane_model::ids::{Generation, ReplicaId};
    use tramontane_model::placement::{KvFormat, KvShape, Replica};
    use tramontane_model::step::StepBounds;

    use super::*;
    use crate::control::command::Command;

    #[test]
    fn what_this_build_does_not_know_is_refused() {
        let before = ClusterState::decode(br#"{"format": 2, "body": {}}"#).expect_err("refused");
        let said = before.to_string();
        assert_eq!(said, "cluster state has format 2, this build reads format 3");
        let replica = Replica {
            id: ReplicaId(1),
            generation: Generation(1),
            stages: Vec::new(),
            kv: KvShape {
                block_tokens: 16,
                blocks: 4,
                format: KvFormat::F16,
            },
            steps: StepBounds::default(),
        };
        let proposal = Proposal {
            proposer: 1,
            sequence: 1,
            command: Command::Place {
                replica,
                expected_version: 0,
            },
        };
        let bytes = proposal.encode().expect("short");
        assert_eq!(Proposal::decode(&bytes).expect("known"), proposal);
        let text = String::from_utf8(bytes).expect("JSON");
        for other in [
            text.replace(r#""f16""#, r#""f8""#),
            text.replace(r#","format":"f16""#, ""),
        ] {
            assert_ne!(other, text);
            let said = Proposal::decode(other.as_bytes())
                .expect_err("refused")
                .to_string();
            assert!(said.contains("proposal cannot be read"), "{said}");
        }
    }
}
