//! Expert work between workers: the owner's links to the holders of its groups, and the service that takes the work.
//!
//! Answers come in the order of the requests. A link that breaks fails everything that it had outstanding; the next
//! request opens it anew.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::{Stream, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tramontane_model::ids::{DeviceRef, Fence};
use tramontane_proto::net::MAX_TENSOR_MESSAGE_BYTES;
use tramontane_proto::v1::expert_client::ExpertClient;
use tramontane_proto::v1::expert_server::Expert;
use tramontane_proto::{ExpertResults, ExpertWork, v1 as pb};

use super::stage::STEP_DEADLINE;
use super::telemetry::EXCHANGE_SECONDS;
use crate::executor::{DeviceHandle, ExpertAnswer, ExpertLinks};

/// Requests that a link holds.
const LINK_REQUESTS: usize = 64;

type Outstanding = (ExpertWork, ExpertAnswer);
/// What waits for an answer, and since when.
type Sent = (ExpertAnswer, Instant);

/// An owner's links to the devices of other workers, for one placement.
pub struct PeerExperts {
    runtime: Handle,
    /// Where each holder's worker is.
    channels: BTreeMap<DeviceRef, Channel>,
    links: Mutex<HashMap<DeviceRef, mpsc::Sender<Outstanding>>>,
    stop: CancellationToken,
}

impl PeerExperts {
    /// Links to these holders; each opens when it is first used. Ends with `stop`.
    pub fn new(runtime: Handle, channels: BTreeMap<DeviceRef, Channel>, stop: CancellationToken) -> Self {
        Self {
            runtime,
            channels,
            links: Mutex::default(),
            stop,
        }
    }

    fn link(&self, holder: &DeviceRef) -> Result<mpsc::Sender<Outstanding>, String> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(holder).filter(|link| !link.is_closed()) {
            return Ok(link.clone());
        }
        let channel = self
            .channels
            .get(holder)
            .ok_or_else(|| format!("there is no link to {holder}"))?;
        let (sender, receiver) = mpsc::channel(LINK_REQUESTS);
        let (channel, holder_name, stop) = (channel.clone(), holder.to_string(), self.stop.clone());
        self.runtime.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = exchange(channel, holder_name, receiver) => {}
            }
        });
        links.insert(holder.clone(), sender.clone());
        Ok(sender)
    }
}

impl ExpertLinks for PeerExperts {
    fn send(&self, holder: &DeviceRef, work: ExpertWork, answer: ExpertAnswer) {
        match self.link(holder) {
            Ok(link) => {
                if let Err(refused) = link.try_send((work, answer)) {
                    let (_, answer) = refused.into_inner();
                    answer.deliver(Err(format!("the link to {holder} is full or closed")));
                }
            }
            Err(problem) => answer.deliver(Err(problem)),
        }
    }
}

/// Runs one link. When it ends, what is outstanding is dropped, which tells the owner's device.
async fn exchange(channel: Channel, holder: String, mut requests: mpsc::Receiver<Outstanding>) {
    let sent_bytes = metrics::counter!("tramontane_link_sent_bytes_total", "peer" => holder.clone());
    let seconds = metrics::histogram!(EXCHANGE_SECONDS, "peer" => holder.clone());
    let (sender, stream) = mpsc::channel(LINK_REQUESTS);
    let mut client = ExpertClient::new(channel)
        .max_encoding_message_size(MAX_TENSOR_MESSAGE_BYTES)
        .max_decoding_message_size(MAX_TENSOR_MESSAGE_BYTES);
    let opening = client.exchange(ReceiverStream::new(stream));
    let mut answers = match tokio::time::timeout(STEP_DEADLINE, opening).await {
        Ok(Ok(answers)) => answers.into_inner(),
        Ok(Err(status)) => return fail(&holder, status.message(), &mut requests),
        Err(_) => return fail(&holder, "the link did not open in time", &mut requests),
    };
    let mut outstanding: VecDeque<Sent> = VecDeque::new();
    loop {
        tokio::select! {
            request = requests.recv(), if outstanding.len() < LINK_REQUESTS => {
                let Some((work, answer)) = request else { return };
                sent_bytes.increment(work.rows.len() as u64);
                outstanding.push_back((answer, Instant::now()));
                if sender.send(work.into()).await.is_err() {
                    return fail_all(&holder, "the stream closed", outstanding, &mut requests);
                }
            }
            answer = answers.message() => {
                let results = match answer {
                    Ok(Some(results)) => ExpertResults::try_from(results).map_err(|error| error.to_string()),
                    Ok(None) => Err("the holder closed the link".to_owned()),
                    Err(status) => Err(status.message().to_owned()),
                };
                match (results, outstanding.pop_front()) {
                    (Ok(results), Some((first, sent))) => {
                        seconds.record(sent.elapsed().as_secs_f64());
                        first.deliver(Ok(results));
                    }
                    (Ok(_), None) => return fail(&holder, "an answer came that nobody asked for", &mut requests),
                    (Err(problem), first) => {
                        outstanding.extend(first);
                        return fail_all(&holder, &problem, outstanding, &mut requests);
                    }
                }
            }
        }
    }
}

fn fail_all(
    holder: &str,
    problem: &str,
    outstanding: VecDeque<Sent>,
    requests: &mut mpsc::Receiver<Outstanding>,
) {
    for (answer, _) in outstanding {
        answer.deliver(Err(problem.to_owned()));
    }
    fail(holder, problem, requests);
}

fn fail(holder: &str, problem: &str, requests: &mut mpsc::Receiver<Outstanding>) {
    tracing::warn!(holder, problem, "expert link lost");
    requests.close();
    while let Ok((_, answer)) = requests.try_recv() {
        answer.deliver(Err(problem.to_owned()));
    }
}

/// Which of this worker's devices holds an expert group: (placement, stage, group).
pub type GroupKey = (Fence, u32, u32);

/// The expert groups that this worker's devices hold.
#[derive(Clone, Default)]
pub struct Holdings(Arc<Mutex<HashMap<GroupKey, DeviceHandle>>>);

impl Holdings {
    /// Replaces everything held for a replica, whatever the generation.
    pub fn set(&self, fence: Fence, groups: impl IntoIterator<Item = (GroupKey, DeviceHandle)>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|(other, _, _), _| other.replica != fence.replica);
        held.extend(groups);
    }

    fn device(&self, key: GroupKey) -> Option<DeviceHandle> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned()
    }
}

/// The gRPC service that takes expert work of other workers.
pub struct ExpertServer {
    holdings: Holdings,
    stop: CancellationToken,
}

impl ExpertServer {
    /// Serves what this worker holds until `stop`.
    pub fn new(holdings: Holdings, stop: CancellationToken) -> Self {
        Self { holdings, stop }
    }
}

#[tonic::async_trait]
impl Expert for ExpertServer {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<pb::ExpertResponse, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<pb::ExpertRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let (holdings, stop) = (self.holdings.clone(), self.stop.clone());
        let requests = request.into_inner().take_until(stop.cancelled_owned());
        let answers = requests.then(move |request| {
            let holdings = holdings.clone();
            async move { answer(&holdings, request?).await }
        });
        Ok(Response::new(until_error(answers).boxed()))
    }
}

async fn answer(holdings: &Holdings, request: pb::ExpertRequest) -> Result<pb::ExpertResponse, Status> {
    let work = ExpertWork::try_from(request)?;
    let key = (work.fence, work.stage, work.group);
    let Some(device) = holdings.device(key) else {
        metrics::counter!("tramontane_fenced_messages_total").increment(1);
        let (fence, stage, group) = key;
        let message = format!("{fence} stage {stage} group {group} is not held here");
        return Err(Status::failed_precondition(message));
    };
    let results = device.experts(work, Instant::now() + STEP_DEADLINE).await;
    results
        .map(Into::into)
        .map_err(|error| Status::aborted(error.to_string()))
}

/// Ends a stream after its first error.
fn until_error<T>(stream: impl Stream<Item = Result<T, Status>>) -> impl Stream<Item = Result<T, Status>> {
    stream.scan(false, |failed, item| {
        let over = std::mem::replace(failed, item.is_err());
        std::future::ready((!over).then_some(item))
    })
}
