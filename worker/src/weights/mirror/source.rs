//! Whoever has the files: asked in turn, each from where the one before broke off.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tonic::Status;
use tonic::transport::Channel;
use tramontane_proto::net::{Identity, MAX_TENSOR_MESSAGE_BYTES, NetError, Traffic, channel};
use tramontane_proto::v1::checkpoint_client::CheckpointClient;
use tramontane_proto::v1::{DescribeCheckpoint, FileRange};
use tramontane_proto::{CheckpointListing, RangeAsked};

use super::MirrorError;
use super::ledger::Part;

/// Longest wait for a listing or a piece.
const PIECE_DEADLINE: Duration = Duration::from_secs(15);
/// How long sources are asked again while none gives anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause after all of them were asked in vain.
const PAUSE: Duration = Duration::from_millis(500);

/// Takes in bytes at a place of the file.
pub(super) type Write<'a> = dyn FnMut(u64, &[u8]) -> Result<(), MirrorError> + Send + 'a;

/// The addresses that are asked.
#[derive(Debug)]
pub(super) struct Sources(Vec<(String, CheckpointClient<Channel>)>);

impl Sources {
    pub(super) fn new(addresses: &[String], identity: &Identity) -> Result<Self, NetError> {
        let client = |address: &String| {
            let channel = channel(address, identity, Traffic::Tensors)?;
            let client = CheckpointClient::new(channel).max_decoding_message_size(MAX_TENSOR_MESSAGE_BYTES);
            Ok((address.clone(), client))
        };
        addresses.iter().map(client).collect::<Result<_, _>>().map(Self)
    }

    pub(super) async fn describe(&self) -> Result<CheckpointListing, MirrorError> {
        let began = Instant::now();
        loop {
            let mut problems = Vec::new();
            for (address, client) in &self.0 {
                let mut client = client.clone();
                let answer = timeout(PIECE_DEADLINE, client.describe(DescribeCheckpoint {})).await;
                let problem = match answer {
                    Ok(Ok(listing)) => match CheckpointListing::try_from(listing.into_inner()) {
                        Ok(listing) => return Ok(listing),
                        Err(error) => error.to_string(),
                    },
                    Ok(Err(status)) => status.message().to_owned(),
                    Err(_) => format!("no answer within {PIECE_DEADLINE:?}"),
                };
                problems.push(format!("{address}: {problem}"));
            }
            if began.elapsed() >= PATIENCE {
                return Err(MirrorError::Sources {
                    what: "what files the model has".to_owned(),
                    problems: problems.join("; "),
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads a part, from one source after the other until it is whole.
    pub(super) async fn read(
        &self,
        fingerprint: &[u8; 32],
        part: &Part,
        write: &mut Write<'_>,
    ) -> Result<(), MirrorError> {
        let mut done = 0;
        let mut last_piece = Instant::now();
        loop {
            // Whoever asked may have given up meanwhile.
            write(part.offset + done, &[])?;
            let mut problems = Vec::new();
            for (address, client) in &self.0 {
                let asked = RangeAsked {
                    fingerprint: *fingerprint,
                    name: part.name.clone(),
                    offset: part.offset + done,
                    bytes: part.bytes - done,
                };
                let before = done;
                match from_one(client.clone(), asked.into(), part, &mut done, write).await? {
                    None => return Ok(()),
                    Some(problem) => problems.push(format!("{address}: {problem}")),
                }
                if done > before {
                    last_piece = Instant::now();
                }
            }
            if last_piece.elapsed() >= PATIENCE {
                return Err(MirrorError::Sources {
                    what: format!(
                        "{} bytes {} on of {}",
                        part.bytes - done,
                        part.offset + done,
                        part.name
                    ),
                    problems: problems.join("; "),
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Reads from one source as far as it gives; what is wrong with it if that was not all.
async fn from_one(
    mut client: CheckpointClient<Channel>,
    asked: FileRange,
    part: &Part,
    done: &mut u64,
    write: &mut Write<'_>,
) -> Result<Option<String>, MirrorError> {
    let late = || format!("nothing came for {PIECE_DEADLINE:?}");
    let said = |status: Status| status.message().to_owned();
    let mut pieces = match timeout(PIECE_DEADLINE, client.read(asked)).await {
        Ok(Ok(pieces)) => pieces.into_inner(),
        Ok(Err(status)) => return Ok(Some(said(status))),
        Err(_) => return Ok(Some(late())),
    };
    while *done < part.bytes {
        let piece = match timeout(PIECE_DEADLINE, pieces.message()).await {
            Ok(Ok(Some(piece))) => piece.data,
            Ok(Ok(None)) => return Ok(Some("it ended early".to_owned())),
            Ok(Err(status)) => return Ok(Some(said(status))),
            Err(_) => return Ok(Some(late())),
        };
        if piece.is_empty() || piece.len() as u64 > part.bytes - *done {
            return Ok(Some(format!("a piece of {} bytes came", piece.len())));
        }
        write(part.offset + *done, &piece)?;
        *done += piece.len() as u64;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_load_that_was_given_up_waits_for_no_source() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = nobody.local_addr().expect("an address").to_string();
        drop(nobody);
        let sources = Sources::new(&[address], &Identity::Loopback).expect("an address");
        let part = Part {
            name: "a.safetensors".to_owned(),
            offset: 0,
            bytes: 8,
        };
        let mut asked = 0;
        let mut write = |_: u64, bytes: &[u8]| {
            assert!(bytes.is_empty(), "nobody gives anything");
            asked += 1;
            match asked {
                1 => Ok(()),
                _ => Err(MirrorError::Cancelled),
            }
        };
        let read = timeout(PATIENCE / 2, sources.read(&[0; 32], &part, &mut write)).await;
        let error = read.expect("it gives up at once").expect_err("given up");
        assert!(matches!(error, MirrorError::Cancelled), "{error}");
    }
}
