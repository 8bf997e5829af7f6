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
