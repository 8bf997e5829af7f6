//! What it costs to get from one worker to another: hops between stages and exchanges of experts, over gRPC on this machine.
//!
//! `cargo bench --profile release -p tramontane-worker --bench links` prints the least and the median time of each, with
//! nothing computed at either end: the program's own links and services, but for the experts, whose holder answers at once.
//! A hop ends when the next stage has all rows of the step; an exchange when the owner has the results.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tramontane_model::ids::{
    DeviceIndex, DeviceRef, Fence, Generation, ReplicaId, SequenceId, StepId, WorkerId,
};
use tramontane_model::step::{RowRole, SequenceChunk, StepBatch};
use tramontane_proto::net::{Identity, Listener, MAX_TENSOR_MESSAGE_BYTES, Traffic, channel, server};
use tramontane_proto::v1::expert_server::{Expert, ExpertServer};
use tramontane_proto::v1::stage_server::StageServer as StageService;
use tramontane_proto::{ExpertWork, LinkMessage, RowsChunk, v1 as pb};
use tramontane_worker::executor::{ExpertAnswer, ExpertLinks};
use tramontane_worker::rpc::expert::PeerExperts;
use tramontane_worker::rpc::link::{Assembler, GrpcLink, Link};
use tramontane_worker::rpc::stage::{LinkEnds, StageServer};

/// Width of a hidden state of Mistral Large 3.
const DIM: u32 = 7168;
/// Experts of a row that another device has, of the four that it chooses: with two groups.
const CHOSEN: usize = 2;
const ROWS: [usize; 4] = [1, 8, 64, 512];
const FENCE: Fence = Fence {
    replica: ReplicaId(1),
    generation: Generation(1),
};

/// Answers with results of the right size at once.
struct AtOnce;

#[tonic::async_trait]
impl Expert for AtOnce {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<pb::ExpertResponse, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<pb::ExpertRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let results = Bytes::from(vec![0; ROWS[3] * CHOSEN * DIM as usize * 4]);
        let answers = request.into_inner().map(move |request| {
            let work = ExpertWork::try_from(request?)?;
            Ok(pb::ExpertResponse {
                fence: Some(FENCE.into()),
                step: work.step.0,
                layer: work.layer,
                results: results.slice(..work.assigned.len() * DIM as usize * 4),
            })
        });
        Ok(Response::new(answers.boxed()))
    }
}

/// A runtime like that of a worker's process.
fn runtime() -> Result<Runtime, std::io::Error> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// The other worker: where it listens, and the steps that come to its stage.
async fn other_worker(
    stop: CancellationToken,
) -> Result<(SocketAddr, mpsc::Receiver<Instant>), Box<dyn Error>> {
    let identity = Identity::from_config(None)?;
    let listener = Listener::bind("127.0.0.1:0".parse()?, &identity).await?;
    let address = listener.address();
    let ends = LinkEnds::default();
    let mut links = ends.open((FENCE, 1));
    let (arrived, arrivals) = mpsc::channel();
    tokio::spawn(async move {
        while let Some(mut link) = links.recv().await {
            let mut assembler = Assembler::new(DIM, ROWS[3] as u32);
            while let Some(message) = link.recv().await {
                if let Ok(Some(_)) = assembler.take(message) {
                    let _ = arrived.send(Instant::now());
                }
            }
        }
    });
    let stage = StageService::new(StageServer::new(ends, stop.clone()))
        .max_decoding_message_size(MAX_TENSOR_MESSAGE_BYTES);
    let experts = ExpertServer::new(AtOnce)
        .max_decoding_message_size(MAX_TENSOR_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_TENSOR_MESSAGE_BYTES);
    let services = server(Traffic::Tensors).add_service(stage).add_service(experts);
    tokio::spawn(services.serve_with_incoming_shutdown(listener.into_stream(), stop.cancelled_owned()));
    Ok((address, arrivals))
}

fn step(number: u64, rows: usize) -> StepBatch {
    StepBatch {
        fence: FENCE,
        step: StepId(number),
        chunks: vec![SequenceChunk {
            sequence: SequenceId(0),
            open: None,
            first_position: 0,
            tokens: vec![0; rows],
            role: RowRole::Given,
            sample: false,
            scored: vec![],
            block_table: vec![0; rows.div_ceil(16)],
        }],
        closed: vec![],
    }
}

fn print(what: &str, rows: usize, bytes: usize, mut times: Vec<Duration>) {
    times.sort();
    let (least, median) = (times[0], times[times.len() / 2]);
    let rate = bytes as f64 / median.as_secs_f64() / 1e9;
    println!("{what}, {rows} rows, {bytes} bytes: least {least:?}, median {median:?}, {rate:.2} GB/s");
}

fn repeats(rows: usize) -> usize {
    (20_000 / rows).clamp(100, 2000)
}

fn main() -> Result<(), Box<dyn Error>> {
    let stop = CancellationToken::new();
    let (own, other) = (runtime()?, runtime()?);
    let (address, arrivals) = other.block_on(other_worker(stop.clone()))?;
    let identity = Identity::from_config(None)?;
    let _guard = own.enter();
    let channel = channel(&address.to_string(), &identity, Traffic::Tensors)?;

    let mut link = GrpcLink::open(channel.clone(), "other".to_owned(), FENCE, 0, 1, DIM);
    let mut number = 0;
    for rows in ROWS {
        let values = Bytes::from(vec![0; rows * DIM as usize * 4]);
        let mut times = Vec::new();
        for _ in 0..repeats(rows) {
            number += 1;
            let (batch, chunk) = (
                step(number, rows),
                RowsChunk {
                    step: StepId(number),
                    first_row: 0,
                    values: values.clone(),
                },
            );
            let began = Instant::now();
            own.block_on(async {
                link.send(LinkMessage::Step(batch)).await?;
                link.send(LinkMessage::Rows(chunk)).await
            })?;
            times.push(
                arrivals
                    .recv_timeout(Duration::from_secs(10))?
                    .duration_since(began),
            );
        }
        print("hop", rows, values.len(), times);
    }

    let holder = DeviceRef {
        worker: WorkerId::new("other")?,
        device: DeviceIndex(0),
    };
    let channels = BTreeMap::from([(holder.clone(), channel)]);
    let peers = PeerExperts::new(Handle::current(), channels, stop.clone());
    for rows in ROWS {
        let values = Bytes::from(vec![0; rows * DIM as usize * 4]);
        let assigned: Vec<(u32, u32)> = (0..rows * CHOSEN)
            .map(|pair| ((pair / CHOSEN) as u32, (pair % CHOSEN) as u32))
            .collect();
        let mut times = Vec::new();
        for _ in 0..repeats(rows) {
            number += 1;
            let work = ExpertWork {
                fence: FENCE,
                stage: 0,
                group: 1,
                step: StepId(number),
                layer: 1,
                given_rows: 0,
                rows: values.clone(),
                assigned: assigned.clone(),
            };
            let (answered, answers) = mpsc::sync_channel(1);
            let answer = ExpertAnswer::new(move |results| drop(answered.try_send(results)));
            let began = Instant::now();
            peers.send(&holder, work, answer);
            answers.recv_timeout(Duration::from_secs(10))??;
            times.push(began.elapsed());
        }
        print("exchange", rows, values.len() * (1 + CHOSEN), times);
    }
    stop.cancel();
    Ok(())
}
