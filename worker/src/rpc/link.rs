//! Links between stages: how steps, hidden states and results get from one stage to the next.
//!
//! A link is lost, never mended: whoever notices drops its other side too, so that a loss travels along the whole
//! pipeline to the head, which fails what was in flight and opens the pipeline anew.
//!
//! **BQ-1:** every link holds a bounded number of messages; a slow stage holds up its own pipeline only.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use tramontane_model::ids::{Fence, StepId};
use tramontane_model::step::{MAX_STEP_ROWS, StepBatch};
use tramontane_proto::net::MAX_TENSOR_MESSAGE_BYTES;
use tramontane_proto::v1::stage_client::StageClient;
use tramontane_proto::{LinkMessage, RowsChunk, v1 as pb};

/// Messages that a link holds before its sender waits.
pub const LINK_MESSAGES: usize = 32;
/// Hidden states per message, in bytes: one HTTP/2 frame.
const ROWS_CHUNK_BYTES: usize = 1 << 20;

/// Why a link is no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("link lost: {0}")]
pub struct LinkLost(pub String);

/// A future that a link returns.
pub type LinkFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The sending side of a link.
pub trait Link: Send + Sync {
    /// Hands a message over, waiting while the link is full.
    fn send(&mut self, message: LinkMessage) -> LinkFuture<'_, Result<(), LinkLost>>;
    /// Resolves when the other side is gone.
    fn lost(&mut self) -> LinkFuture<'_, LinkLost>;
}

/// A link within one process.
pub struct LocalLink(pub mpsc::Sender<LinkMessage>);

impl Link for LocalLink {
    fn send(&mut self, message: LinkMessage) -> LinkFuture<'_, Result<(), LinkLost>> {
        Box::pin(async { self.0.send(message).await.map_err(|_| self.closed()) })
    }

    fn lost(&mut self) -> LinkFuture<'_, LinkLost> {
        Box::pin(async {
            self.0.closed().await;
            self.closed()
        })
    }
}

impl LocalLink {
    fn closed(&self) -> LinkLost {
        LinkLost("the next stage on this worker closed it".to_owned())
    }
}

/// A link over gRPC.
pub struct GrpcLink {
    fence: Fence,
    peer: String,
    row_bytes: usize,
    messages: mpsc::Sender<pb::StageMessage>,
    lost: watch::Receiver<Option<LinkLost>>,
    _call: AbortOnDropHandle<()>,
}

impl GrpcLink {
    /// Opens a link to a stage; a peer that cannot be reached shows as a lost link. `dim` is the model's width.
    pub fn open(
        channel: Channel,
        peer: String,
        fence: Fence,
        from_stage: u32,
        to_stage: u32,
        dim: u32,
    ) -> Self {
        let (messages, receiver) = mpsc::channel(LINK_MESSAGES);
        let (lost_sender, lost) = watch::channel(None);
        let hello = (fence, LinkMessage::Hello { from_stage, to_stage });
        // The channel is empty and holds several messages: the greeting has room.
        let greeted = messages.try_send(hello.into()).is_ok();
        let mut client = StageClient::new(channel)
            .max_encoding_message_size(MAX_TENSOR_MESSAGE_BYTES)
            .max_decoding_message_size(MAX_TENSOR_MESSAGE_BYTES);
        let call = tokio::spawn(async move {
            let outcome = async {
                let mut answers = client.link(ReceiverStream::new(receiver)).await?.into_inner();
                answers.message().await
            };
            let reason = match outcome.await {
                Ok(Some(closed)) => closed.reason,
                Ok(None) => "the other side closed it".to_owned(),
                Err(status) => status.message().to_owned(),
            };
            lost_sender.send_replace(Some(LinkLost(reason)));
        });
        debug_assert!(greeted, "an empty channel has room");
        Self {
            fence,
            peer,
            row_bytes: dim as usize * 4,
            messages,
            lost,
            _call: AbortOnDropHandle::new(call),
        }
    }

    async fn send_one(&mut self, message: LinkMessage) -> Result<(), LinkLost> {
        let wire = pb::StageMessage::from((self.fence, message));
        let bytes = encoded_bytes(&wire);
        if self.messages.send(wire).await.is_err() {
            return Err(self.reason());
        }
        metrics::counter!("tramontane_link_sent_bytes_total", "peer" => self.peer.clone()).increment(bytes);
        Ok(())
    }

    fn reason(&self) -> LinkLost {
        let told = self.lost.borrow().clone();
        let told = told.unwrap_or_else(|| LinkLost("the connection closed".to_owned()));
        LinkLost(format!("{}: {}", self.peer, told.0))
    }
}

impl Link for GrpcLink {
    fn send(&mut self, message: LinkMessage) -> LinkFuture<'_, Result<(), LinkLost>> {
        Box::pin(async move {
            let LinkMessage::Rows(rows) = message else {
                return self.send_one(message).await;
            };
            let rows_per_chunk = (ROWS_CHUNK_BYTES / self.row_bytes).max(1);
            let chunk_bytes = rows_per_chunk * self.row_bytes;
            let mut first_row = rows.first_row;
            let mut rest = rows.values;
            while !rest.is_empty() {
                let values = rest.split_to(chunk_bytes.min(rest.len()));
                let chunk = RowsChunk {
                    step: rows.step,
                    first_row,
                    values,
                };
                first_row = first_row.saturating_add(rows_per_chunk as u32);
                self.send_one(LinkMessage::Rows(chunk)).await?;
            }
            Ok(())
        })
    }

    fn lost(&mut self) -> LinkFuture<'_, LinkLost> {
        Box::pin(async {
            // An error means that the task is gone, and the link with it.
            let _ = self.lost.wait_for(Option::is_some).await;
            self.reason()
        })
    }
}

fn encoded_bytes(message: &pb::StageMessage) -> u64 {
    use prost::Message as _;
    message.encoded_len() as u64
}

/// Puts steps and their hidden states together as they come in over a link.
pub struct Assembler {
    row_bytes: usize,
    max_rows: usize,
    /// A step, and its rows so far in the order in which they come.
    open: Option<(StepBatch, Vec<u8>)>,
}

/// A message that does not fit what came before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssemblyError {
    /// A second greeting, or a result, where steps are expected.
    #[error("a {0} came where steps and rows are expected")]
    Unexpected(&'static str),
    /// A step before the rows of the last one were complete.
    #[error("step {found} came before all rows of step {open}")]
    Incomplete {
        /// The step that lacks rows.
        open: StepId,
        /// The step that came.
        found: StepId,
    },
    /// A step larger than this worker's buffers.
    #[error(
        "step {step} has {rows} rows, this worker takes {limit} (steps.max_rows must be equal on all workers)"
    )]
    TooLarge {
        /// The step.
        step: StepId,
        /// Its rows.
        rows: usize,
        /// Rows that fit.
        limit: usize,
    },
    /// Rows of no open step, out of order, or of another width.
    #[error("rows from {first_row} of step {step}, {bytes} bytes, do not follow what came before")]
    Rows {
        /// The step named.
        step: StepId,
        /// The first row named.
        first_row: u32,
        /// How many bytes came.
        bytes: usize,
    },
}

impl Assembler {
    /// For steps of at most `max_rows` rows of `dim` values.
    pub fn new(dim: u32, max_rows: u32) -> Self {
        let max_rows = (max_rows as usize).min(MAX_STEP_ROWS);
        Self {
            row_bytes: dim as usize * 4,
            max_rows,
            open: None,
        }
    }

    /// Takes a message; returns a step once all of its rows are there. Rows are f32, `dim` a row.
    pub fn take(&mut self, message: LinkMessage) -> Result<Option<(StepBatch, Bytes)>, AssemblyError> {
        match message {
            LinkMessage::Hello { .. } => Err(AssemblyError::Unexpected("greeting")),
            LinkMessage::Result(_) => Err(AssemblyError::Unexpected("result")),
            LinkMessage::Step(batch) => {
                if let Some((open, _)) = &self.open {
                    return Err(AssemblyError::Incomplete {
                        open: open.step,
                        found: batch.step,
                    });
                }
                let (rows, limit) = (batch.rows(), self.max_rows);
                if rows > limit {
                    return Err(AssemblyError::TooLarge {
                        step: batch.step,
                        rows,
                        limit,
                    });
                }
                if rows == 0 {
                    return Ok(Some((batch, Bytes::new())));
                }
                self.open = Some((batch, Vec::new()));
                Ok(None)
            }
            LinkMessage::Rows(rows) => self.take_rows(rows),
        }
    }

    fn take_rows(&mut self, rows: RowsChunk) -> Result<Option<(StepBatch, Bytes)>, AssemblyError> {
        let misplaced = AssemblyError::Rows {
            step: rows.step,
            first_row: rows.first_row,
            bytes: rows.values.len(),
        };
        let Some((batch, values)) = &mut self.open else {
            return Err(misplaced);
        };
        let expected = batch.rows() * self.row_bytes;
        let follows = rows.step == batch.step
            && rows.first_row as usize * self.row_bytes == values.len()
            && !rows.values.is_empty()
            && rows.values.len().is_multiple_of(self.row_bytes)
            && rows.values.len() <= expected - values.len();
        if !follows {
            return Err(misplaced);
        }
        if rows.values.len() == expected {
            return Ok(self.open.take().map(|(batch, _)| (batch, rows.values)));
        }
        // Each piece is put in its place while the next one is on its way.
        values.reserve_exact(expected - values.len());
        values.extend_from_slice(&rows.values);
        if values.len() < expected {
            return Ok(None);
        }
        Ok(self.open.take().map(|(batch, values)| (batch, values.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tramontane_model::ids::{Generation, ReplicaId, SequenceId};
    use tramontane_model::step::{RowRole, SequenceChunk, StepResult};

    const FENCE: Fence = Fence {
        replica: ReplicaId(1),
        generation: Generation(1),
    };

    fn step(step: u64, rows: usize) -> StepBatch {
        let chunk = SequenceChunk {
            sequence: SequenceId(0),
            open: None,
            first_position: 0,
            tokens: vec![0; rows],
            role: RowRole::Given,
            sample: false,
            scored: vec![],
            block_table: vec![0],
        };
        let chunks = if rows == 0 { vec![] } else { vec![chunk] };
        StepBatch {
            fence: FENCE,
            step: StepId(step),
            chunks,
            closed: vec![],
        }
    }

    fn rows(step: u64, first_row: u32, values: &[u8]) -> LinkMessage {
        LinkMessage::Rows(RowsChunk {
            step: StepId(step),
            first_row,
            values: values.to_vec().into(),
        })
    }

    #[test]
    fn rows_are_put_together_in_order() {
        let mut assembler = Assembler::new(1, 4);
        assert_eq!(assembler.take(LinkMessage::Step(step(7, 3))), Ok(None));
        assert_eq!(assembler.take(rows(7, 0, &[1, 2, 3, 4, 5, 6, 7, 8])), Ok(None));
        let whole = Bytes::from_static(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(
            assembler.take(rows(7, 2, &[9, 10, 11, 12])),
            Ok(Some((step(7, 3), whole)))
        );
        assert_eq!(
            assembler.take(LinkMessage::Step(step(8, 0))),
            Ok(Some((step(8, 0), Bytes::new())))
        );
    }

    #[test]
    fn what_does_not_follow_is_refused() {
        let open = || {
            let mut assembler = Assembler::new(1, 4);
            assembler.take(LinkMessage::Step(step(7, 2))).expect("taken");
            assembler
        };
        let result = StepResult {
            fence: FENCE,
            step: StepId(7),
            tokens: vec![],
            scored: vec![],
            unsampled: vec![],
        };
        for message in [
            LinkMessage::Hello {
                from_stage: 0,
                to_stage: 1,
            },
            LinkMessage::Result(result),
            LinkMessage::Step(step(8, 1)),
            rows(6, 0, &[0; 4]),
            rows(7, 1, &[0; 4]),
            rows(7, 0, &[0; 3]),
            rows(7, 0, &[]),
            rows(7, 0, &[0; 12]),
        ] {
            assert!(open().take(message.clone()).is_err(), "{message:?} was taken");
        }
        assert!(Assembler::new(1, 4).take(rows(7, 0, &[0; 4])).is_err());
        assert!(Assembler::new(1, 4).take(LinkMessage::Step(step(7, 5))).is_err());
    }
}
