//! Gives out the files of a checkpoint to workers that have none: the same service at coordinators and workers.
//!
//! Bytes come from the mapped files and are copied once. Who reads slowly holds one of few places, and no more memory
//! than a few pieces.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tramontane_model::checkpoint::Checkpoint;

use crate::v1::checkpoint_server::{Checkpoint as Service, CheckpointServer};
use crate::{CheckpointListing, RangeAsked, v1 as pb};

/// Bytes of a piece.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces that wait for a slow reader.
const QUEUED_PIECES: usize = 4;
/// Ranges that are read at once; others are told to come again.
const MAX_READERS: usize = 32;
/// Longest wait for a reader to take a piece.
const PIECE_DEADLINE: Duration = Duration::from_secs(30);

/// The service.
#[derive(Clone, Debug)]
pub struct FileServer {
    checkpoint: Arc<Checkpoint>,
    readers: Arc<Semaphore>,
}

impl FileServer {
    /// Serves the files of a checkpoint that is whole.
    pub fn service(checkpoint: Arc<Checkpoint>) -> CheckpointServer<Self> {
        CheckpointServer::new(Self {
            checkpoint,
            readers: Arc::new(Semaphore::new(MAX_READERS)),
        })
    }
}

#[tonic::async_trait]
impl Service for FileServer {
    type ReadStream = BoxStream<'static, Result<pb::FileBytes, Status>>;

    async fn describe(
        &self,
        _: Request<pb::DescribeCheckpoint>,
    ) -> Result<Response<pb::CheckpointFiles>, Status> {
        let checkpoint = Arc::clone(&self.checkpoint);
        let listing = tokio::task::spawn_blocking(move || {
            let (files, sampled) = checkpoint.heads()?;
            Ok::<_, std::io::Error>(CheckpointListing {
                fingerprint: checkpoint.fingerprint().0,
                files,
                sampled,
            })
        });
        let listing = listing
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        let listing = listing.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(listing.into()))
    }

    async fn read(&self, request: Request<pb::FileRange>) -> Result<Response<Self::ReadStream>, Status> {
        let asked = RangeAsked::try_from(request.into_inner())?;
        if asked.fingerprint != self.checkpoint.fingerprint().0 {
            return Err(Status::failed_precondition("another model is served here"));
        }
        let Ok(place) = Arc::clone(&self.readers).try_acquire_owned() else {
            return Err(Status::resource_exhausted(
                "too many ranges are read already; try again",
            ));
        };
        let (pieces, taken) = mpsc::channel(QUEUED_PIECES);
        let checkpoint = Arc::clone(&self.checkpoint);
        // Pages come from storage while they are copied.
        tokio::task::spawn_blocking(move || send(&checkpoint, &asked, &pieces, place));
        Ok(Response::new(ReceiverStream::new(taken).boxed()))
    }
}

type Pieces = mpsc::Sender<Result<pb::FileBytes, Status>>;

fn send(checkpoint: &Checkpoint, asked: &RangeAsked, pieces: &Pieces, _place: OwnedSemaphorePermit) {
    let runtime = tokio::runtime::Handle::current();
    let mut sent = 0;
    while sent < asked.bytes {
        let length = (asked.bytes - sent).min(PIECE_BYTES);
        let found = checkpoint.file_bytes(&asked.name, asked.offset + sent, length);
        let piece = match found {
            Ok(bytes) => Ok(pb::FileBytes {
                data: Bytes::from(bytes.into_owned()),
            }),
            Err(error) => Err(Status::out_of_range(error.to_string())),
        };
        let failed = piece.is_err();
        let sending = pieces.send_timeout(piece, PIECE_DEADLINE);
        // A reader that has left, or takes nothing, is done with.
        if runtime.block_on(sending).is_err() || failed {
            return;
        }
        sent += length;
    }
}
