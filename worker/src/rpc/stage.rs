//! A stage on its owner's worker: takes steps from its upstream link, runs them, hands them downstream.
//!
//! One runner per owned stage. At any time it serves one upstream link; a new one replaces the old, since the
//! upstream opens a new one only after it lost the old. No decision is made here: steps run in the order they come.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tramontane_model::ids::{Fence, StepId};
use tramontane_model::step::StepBatch;
use tramontane_proto::v1::stage_server::Stage as StageService;
use tramontane_proto::{LinkMessage, RowsChunk, v1 as pb};

use super::link::{Assembler, LINK_MESSAGES, Link, LinkFuture, LinkLost};
use super::sequences::OpenSequences;
use crate::executor::{DeviceHandle, StageInput, StageOutput};

/// Upstream links that wait for a runner.
const MAX_WAITING_LINKS: usize = 2;
/// Longest time that a device may load before a pipeline through it is given up.
const LOAD_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// Longest time that a step may take on one stage.
pub const STEP_DEADLINE: Duration = Duration::from_secs(60);

/// Where a link ends: a stage, or one past the last stage, which is the head that takes the results.
pub type LinkEnd = (Fence, u32);

/// The ends of links on this worker that others may connect to.
#[derive(Clone, Default)]
pub struct LinkEnds(Arc<Mutex<HashMap<LinkEnd, mpsc::Sender<mpsc::Receiver<LinkMessage>>>>>);

impl LinkEnds {
    /// Opens an end: each link that reaches it comes through the receiver. Closed by dropping the receiver.
    pub fn open(&self, end: LinkEnd) -> mpsc::Receiver<mpsc::Receiver<LinkMessage>> {
        let (sender, receiver) = mpsc::channel(MAX_WAITING_LINKS);
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ends.retain(|_, sender| !sender.is_closed());
        ends.insert(end, sender);
        receiver
    }

    /// Connects to an end of this worker.
    pub fn connect(&self, (fence, stage): LinkEnd) -> Result<mpsc::Sender<LinkMessage>, LinkLost> {
        let ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (sender, receiver) = mpsc::channel(LINK_MESSAGES);
        let end = ends
            .get(&(fence, stage))
            .ok_or_else(|| LinkLost(format!("{fence} has no stage {stage} on this worker")))?;
        end.try_send(receiver)
            .map_err(|_| LinkLost(format!("{fence} stage {stage} takes no more links")))?;
        Ok(sender)
    }
}

/// Opens the link to the next stage, or to the head.
pub trait OpenLink: Send + 'static {
    /// Resolves with a link; that the peer is there shows only when messages arrive.
    fn open(&mut self) -> LinkFuture<'_, Result<Box<dyn Link>, LinkLost>>;
}

/// Runs one stage.
pub struct StageRunner {
    /// Whose stage.
    pub fence: Fence,
    /// Which stage.
    pub stage: u32,
    /// Width of a hidden state.
    pub dim: u32,
    /// Most rows of a step.
    pub max_rows: u32,
    /// The owner.
    pub device: DeviceHandle,
    /// Links from the stage before, or from the head.
    pub upstream: mpsc::Receiver<mpsc::Receiver<LinkMessage>>,
    /// To the stage after, or to the head.
    pub downstream: Box<dyn OpenLink>,
}

impl StageRunner {
    /// Serves one upstream link after the other until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut replaced = None;
        loop {
            let link = match replaced.take() {
                Some(link) => link,
                None => tokio::select! {
                    () = stop.cancelled() => return,
                    link = self.upstream.recv() => match link {
                        Some(link) => link,
                        None => return,
                    },
                },
            };
            let mut downstream = match self.downstream.open().await {
                Ok(downstream) => downstream,
                Err(lost) => {
                    tracing::warn!(fence = %self.fence, stage = self.stage, %lost, "no link downstream");
                    continue;
                }
            };
            let (device, fence) = (self.device.clone(), self.fence);
            let ready = device.ready(fence, Instant::now() + LOAD_DEADLINE);
            let ready = tokio::select! {
                () = stop.cancelled() => return,
                ready = ready => ready,
            };
            if let Err(error) = ready {
                tracing::warn!(fence = %fence, stage = self.stage, %error, "the device takes no steps");
                continue;
            }
            let assembler = Assembler::new(self.dim, self.max_rows);
            let serving = serve(fence, self.stage, &device, link, downstream.as_mut(), assembler);
            tokio::select! {
                () = stop.cancelled() => return,
                lost = serving => {
                    tracing::warn!(fence = %fence, stage = self.stage, %lost, "pipeline lost");
                }
                newer = self.upstream.recv() => match newer {
                    Some(link) => replaced = Some(link),
                    None => return,
                },
            }
        }
    }
}

async fn serve(
    fence: Fence,
    stage: u32,
    device: &DeviceHandle,
    mut upstream: mpsc::Receiver<LinkMessage>,
    downstream: &mut dyn Link,
    mut assembler: Assembler,
) -> LinkLost {
    let mut sequences = OpenSequences::new(fence, stage);
    loop {
        let message = tokio::select! {
            message = upstream.recv() => message,
            lost = downstream.lost() => return lost,
        };
        let Some(message) = message else {
            return LinkLost("the stage before closed its link".to_owned());
        };
        let assembled = if stage == 0 {
            embedded(message)
        } else {
            rows(&mut assembler, message)
        };
        let (batch, hidden) = match assembled {
            Ok(Some(assembled)) => assembled,
            Ok(None) => continue,
            Err(lost) => return lost,
        };
        if batch.fence != fence {
            metrics::counter!("tramontane_fenced_messages_total").increment(1);
            return LinkLost(format!("a step of {} came to {fence}", batch.fence));
        }
        let started = Instant::now();
        if let Err(lost) = sequences.begin(&batch, started) {
            return lost;
        }
        let (step, forward) = (batch.step, batch.clone());
        let input = hidden.map_or(StageInput::Embed, StageInput::Hidden);
        let output = match device.step(batch, input, started + STEP_DEADLINE).await {
            Ok(output) => output,
            Err(error) => return LinkLost(format!("stage {stage}, step {step}: {error}")),
        };
        sequences.end(&forward, started, Instant::now());
        let sent = match output {
            StageOutput::Hidden(values) => forward_rows(downstream, forward, step, values).await,
            StageOutput::Sampled(result) => downstream.send(LinkMessage::Result(result)).await,
        };
        if let Err(lost) = sent {
            return lost;
        }
    }
}

async fn forward_rows(
    downstream: &mut dyn Link,
    batch: StepBatch,
    step: StepId,
    values: Bytes,
) -> Result<(), LinkLost> {
    downstream.send(LinkMessage::Step(batch)).await?;
    if values.is_empty() {
        return Ok(());
    }
    downstream
        .send(LinkMessage::Rows(RowsChunk {
            step,
            first_row: 0,
            values,
        }))
        .await
}

/// The first stage embeds tokens itself: its steps come without rows.
fn embedded(message: LinkMessage) -> Result<Option<(StepBatch, Option<Bytes>)>, LinkLost> {
    match message {
        LinkMessage::Step(batch) => Ok(Some((batch, None))),
        LinkMessage::Hello { .. } | LinkMessage::Rows(_) | LinkMessage::Result(_) => {
            Err(LinkLost("the head sent something else than steps".to_owned()))
        }
    }
}

fn rows(
    assembler: &mut Assembler,
    message: LinkMessage,
) -> Result<Option<(StepBatch, Option<Bytes>)>, LinkLost> {
    let taken = assembler
        .take(message)
        .map_err(|error| LinkLost(error.to_string()))?;
    Ok(taken.map(|(batch, values)| (batch, Some(values))))
}

/// The gRPC service that takes links from other workers.
pub struct StageServer {
    ends: LinkEnds,
    stop: CancellationToken,
}

impl StageServer {
    /// Serves the ends of this worker until `stop`.
    pub fn new(ends: LinkEnds, stop: CancellationToken) -> Self {
        Self { ends, stop }
    }
}

#[tonic::async_trait]
impl StageService for StageServer {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<pb::LinkClosed, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<pb::StageMessage>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let mut stream = request.into_inner();
        let first = stream
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("the link is empty"))?;
        let (fence, hello) = <(Fence, LinkMessage)>::try_from(first)?;
        let LinkMessage::Hello { to_stage, .. } = hello else {
            return Err(Status::invalid_argument("a link must begin with hello"));
        };
        let end = self.ends.connect((fence, to_stage)).map_err(|lost| {
            metrics::counter!("tramontane_fenced_messages_total").increment(1);
            Status::failed_precondition(lost.0)
        })?;
        let stop = self.stop.clone();
        let answer = futures_util::stream::once(async move {
            tokio::select! {
                () = stop.cancelled() => Err(Status::unavailable("the worker is stopping")),
                reason = receive(stream, fence, end) => reason.map(|reason| pb::LinkClosed { reason }),
            }
        });
        Ok(Response::new(answer.boxed()))
    }
}

/// Passes messages on until either side ends; a link that the runner dropped ends at once.
async fn receive(
    mut stream: Streaming<pb::StageMessage>,
    fence: Fence,
    end: mpsc::Sender<LinkMessage>,
) -> Result<String, Status> {
    loop {
        let message = tokio::select! {
            message = stream.message() => message?,
            () = end.closed() => return Err(Status::aborted("the stage dropped the link")),
        };
        let Some(message) = message else {
            return Ok("the stage before closed it".to_owned());
        };
        let (found, message) = <(Fence, LinkMessage)>::try_from(message)?;
        if found != fence {
            metrics::counter!("tramontane_fenced_messages_total").increment(1);
            return Err(Status::failed_precondition(format!(
                "a message of {found} came over a link of {fence}"
            )));
        }
        if end.send(message).await.is_err() {
            return Err(Status::aborted("the stage dropped the link"));
        }
    }
}
