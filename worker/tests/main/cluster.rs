//! A leader that follows a script, and workers on the best Vulkan adapter there is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tramontane_kernels::gpu::DeviceConfig;
use tramontane_model::ids::{
    CoordinatorId, DeviceIndex, DeviceRef, Fence, Generation, Origin, ReplicaId, RequestId, WorkerId,
};
use tramontane_model::members::{DeviceState, WorkerReport};
use tramontane_model::placement::{ExpertGroup, ExpertRange, KvFormat, KvShape, LayerRange, Replica, Stage};
use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_model::step::StepBounds;
use tramontane_proto::net::{Identity, Listener, Traffic, channel, server};
use tramontane_proto::v1::membership_server::{Membership, MembershipServer};
use tramontane_proto::v1::serving_client::ServingClient;
use tramontane_proto::{
    Directive, Ended, GenerateSubmission, GenerateUpdate, Progress, WorkerUpdate, v1 as pb,
};
use tramontane_worker::config::WorkerConfig;
use tramontane_worker::process::{self, OpenDevice};

const TOKEN: &[u8] = b"a token for tests";
const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

type Sessions = Arc<Mutex<Vec<mpsc::Sender<Result<pb::CoordinatorMessage, Status>>>>>;
type Reports = BTreeMap<WorkerId, (String, WorkerReport)>;

/// Welcomes every worker with the right token and keeps what they report.
#[derive(Clone)]
struct Leader {
    reports: watch::Sender<Reports>,
    sessions: Sessions,
}

#[tonic::async_trait]
impl Membership for Leader {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<pb::CoordinatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut stream = request.into_inner();
        let first = stream
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("nothing came"))?;
        let WorkerUpdate::Join(joining) = first.try_into()? else {
            return Err(Status::invalid_argument("no join"));
        };
        if joining.token != TOKEN {
            return Err(Status::unauthenticated("the join token is wrong"));
        }
        let (sender, receiver) = mpsc::channel(16);
        let welcome = Directive::Welcome {
            coordinator: CoordinatorId(1),
            term: 1,
            heartbeat_ms: 50,
            lease_ms: 2000,
        };
        sender
            .send(Ok(welcome.clone().into()))
            .await
            .map_err(|_| Status::aborted("gone"))?;
        self.sessions.lock().await.push(sender.clone());
        let reports = self.reports.clone();
        tokio::spawn(async move {
            let info = joining.info;
            while let Ok(Some(message)) = stream.message().await {
                let Ok(WorkerUpdate::Report(report)) = WorkerUpdate::try_from(message) else {
                    return;
                };
                // A leader that says nothing is left; a worker that takes nothing has other troubles.
                let _ = sender.try_send(Ok(welcome.clone().into()));
                reports.send_modify(|all| {
                    all.insert(info.worker.clone(), (info.address.clone(), report));
                });
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }
}

/// A leader and its workers; they end with it.
pub(crate) struct Cluster {
    leader: Leader,
    reports: watch::Receiver<Reports>,
    stop: CancellationToken,
    next_request: u128,
    fence: Option<(Fence, WorkerId)>,
    /// Of every replica that is assigned from now on; without a prefix cache at first, so that what is compared is
    /// computed.
    pub(crate) steps: StepBounds,
    /// Of every request from now on; those of the miniature at first.
    pub(crate) stop_tokens: Vec<u32>,
    /// How much of its prompt the last request found in the prefix cache.
    pub(crate) cached_prompt_tokens: Option<u32>,
    /// What the last request was told of its prompt's tokens.
    pub(crate) prompt_scores: Vec<SampledToken>,
}

/// Layers of a stage, its owner, and its expert groups' ends with their holders.
pub(crate) type StagePlan<'a> = (u32, u32, &'a str, &'a [(u32, &'a str)]);

/// `"w1/0"`, as in the status.
pub(crate) fn device(name: &str) -> DeviceRef {
    let (worker, index) = name.split_once('/').expect("worker/device");
    let device = DeviceIndex(index.parse().expect("an index"));
    DeviceRef {
        worker: WorkerId::new(worker).expect("a valid name"),
        device,
    }
}

pub(crate) fn replica(generation: u64, stages: &[StagePlan<'_>]) -> Replica {
    let stage = |(start, end, owner, groups): &StagePlan<'_>| {
        let mut first = 0;
        let groups = groups.iter().map(|(last, holder)| {
            let experts = ExpertRange::new(std::mem::replace(&mut first, *last), *last).expect("not empty");
            ExpertGroup {
                experts,
                holder: device(holder),
            }
        });
        let groups = groups.collect();
        Stage {
            layers: LayerRange::new(*start, *end).expect("not empty"),
            owner: device(owner),
            groups,
        }
    };
    Replica {
        id: ReplicaId(1),
        generation: Generation(generation),
        stages: stages.iter().map(stage).collect(),
        kv: KvShape {
            block_tokens: 16,
            blocks: 256,
            format: KvFormat::F32,
        },
        steps: StepBounds::default(),
    }
}

impl Cluster {
    /// Workers of the miniature on the best adapter, with so many devices each.
    pub(crate) async fn start(workers: &[(&str, usize)], max_prefill_rows: u32) -> Self {
        let mini = repository().join("cli/assets/mini-large-3");
        Self::start_with(&mini, workers, max_prefill_rows, process::spawn_gpu).await
    }

    /// Workers of a checkpoint, with so many devices each, which `open` opens.
    pub(crate) async fn start_with(
        model_dir: &Path,
        workers: &[(&str, usize)],
        max_prefill_rows: u32,
        open: impl OpenDevice + Clone + Send + Sync + 'static,
    ) -> Self {
        let (sender, reports) = watch::channel(Reports::new());
        let leader = Leader {
            reports: sender,
            sessions: Arc::default(),
        };
        let stop = CancellationToken::new();
        let any = "127.0.0.1:0".parse().expect("an address");
        let listener = Listener::bind(any, &Identity::Loopback).await.expect("binds");
        let coordinator = listener.address();
        let service = server(Traffic::Control).add_service(MembershipServer::new(leader.clone()));
        tokio::spawn(
            service.serve_with_incoming_shutdown(listener.into_stream(), stop.clone().cancelled_owned()),
        );
        for (name, devices) in workers {
            let config = worker_config(model_dir, name, *devices, coordinator);
            let (stop, open) = (stop.clone(), open.clone());
            tokio::spawn(async move {
                process::run(config, CancellationToken::new(), stop, open, |_| {})
                    .await
                    .expect("the worker runs");
            });
        }
        let mut cluster = Self {
            leader,
            reports,
            stop,
            next_request: 1,
            fence: None,
            stop_tokens: vec![2],
            cached_prompt_tokens: None,
            prompt_scores: Vec::new(),
            steps: StepBounds {
                max_rows: 128,
                max_prefill_rows,
                max_sequences: 32,
                max_waiting: 64,
                prefix_cache: false,
                ..StepBounds::default()
            },
        };
        let count = workers.len();
        cluster.wait(move |reports| reports.len() == count).await;
        cluster
    }

    async fn wait(&mut self, condition: impl FnMut(&Reports) -> bool) {
        let met = tokio::time::timeout(DEADLINE, self.reports.wait_for(condition)).await;
        assert!(
            met.is_ok_and(|met| met.is_ok()),
            "waited in vain: {:?}",
            self.leader.reports.borrow()
        );
    }

    /// Assigns a replica to everybody and waits until all its devices are ready.
    pub(crate) async fn assign(&mut self, replica: &Replica) {
        let replica = Replica {
            steps: self.steps,
            ..replica.clone()
        };
        let addresses = self.reports.borrow().clone();
        let peers = addresses
            .into_iter()
            .map(|(worker, (address, _))| (worker, address));
        let directive = Directive::Assign {
            replica: replica.clone(),
            peers: peers.collect(),
        };
        for session in self.leader.sessions.lock().await.iter() {
            session
                .send(Ok(directive.clone().into()))
                .await
                .expect("the worker listens");
        }
        let fence = replica.fence();
        let devices: Vec<DeviceRef> = replica.devices().into_iter().cloned().collect();
        self.wait(move |reports| {
            devices.iter().all(|device| {
                let report = reports.get(&device.worker).map(|(_, report)| report);
                let state = report.and_then(|report| report.devices.get(device.device.0 as usize));
                if let Some(DeviceState::Failed { reason, .. }) = state.map(|device| &device.state) {
                    panic!("{device} failed: {reason}");
                }
                state.is_some_and(|device| device.state == DeviceState::Ready { fence })
            })
        })
        .await;
        self.fence = Some((fence, replica.head().expect("a head").worker.clone()));
    }

    /// Generates, trying again while the pipeline opens.
    pub(crate) async fn generate(
        &mut self,
        prompt: &[u32],
        emitted: &[u32],
        sampling: SamplingParams,
        max_tokens: u32,
    ) -> (Vec<SampledToken>, Ended) {
        self.next_request += 1;
        let (fence, head) = self.fence.clone().expect("a replica is assigned");
        let address = self
            .reports
            .borrow()
            .get(&head)
            .expect("the head reports")
            .0
            .clone();
        let channel = channel(&address, &Identity::Loopback, Traffic::Tensors).expect("an address");
        let request = GenerateSubmission {
            fence,
            request: RequestId(self.next_request),
            attempt: 1,
            prompt: prompt.to_vec(),
            emitted: emitted.to_vec(),
            sampling,
            max_tokens,
            stop_tokens: self.stop_tokens.clone(),
            ignore_eos: false,
            timeout_ms: 100_000,
            priority: 0,
            cache_salt: vec![],
            trace: Origin::NOBODY.trace,
        };
        let answer = async {
            loop {
                let mut client = ServingClient::new(channel.clone());
                match collect(&mut client, request.clone().into()).await {
                    Err(status) if status.code() == tonic::Code::Unavailable => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    other => return other.expect("the request is served"),
                }
            }
        };
        let (tokens, ended, (cached, scored)) = tokio::time::timeout(DEADLINE, answer)
            .await
            .expect("an answer in time");
        self.cached_prompt_tokens = cached;
        self.prompt_scores = scored;
        (tokens, ended)
    }

    /// The blocks that the head's scheduler holds, as it reports them.
    pub(crate) async fn until_idle(&mut self) {
        self.wait(|reports| {
            let mut loads = reports
                .values()
                .flat_map(|(_, report)| report.loads.iter().copied());
            loads.all(|load| load.running == 0 && load.waiting == 0 && load.kv_blocks_used == 0)
        })
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn collect(
    client: &mut ServingClient<tonic::transport::Channel>,
    request: pb::GenerateRequest,
) -> Result<(Vec<SampledToken>, Ended, (Option<u32>, Vec<SampledToken>)), Status> {
    let already = request.emitted.len();
    let mut stream = client.generate(request).await?.into_inner();
    let mut tokens = Vec::new();
    let mut cached = None;
    let mut scored = Vec::new();
    while let Some(event) = stream.message().await? {
        match GenerateUpdate::try_from(event)?.progress {
            Progress::Token {
                index,
                token,
                cached_prompt_tokens,
                queued_us,
            } => {
                assert_eq!(cached_prompt_tokens.is_some(), tokens.is_empty(), "told once");
                assert_eq!(queued_us.is_some(), tokens.is_empty(), "told once");
                cached = cached.or(cached_prompt_tokens);
                assert_eq!(index as usize, already + tokens.len(), "ST-1");
                tokens.push(token);
            }
            Progress::Prompt { first, tokens: piece } => {
                assert!(tokens.is_empty(), "the prompt after a token");
                assert_eq!(first as usize, 1 + scored.len());
                scored.extend(piece);
            }
            Progress::Ended(ended) => return Ok((tokens, ended, (cached, scored))),
        }
    }
    Err(Status::internal("the stream ended without an end"))
}

fn worker_config(model_dir: &Path, name: &str, devices: usize, coordinator: SocketAddr) -> WorkerConfig {
    WorkerConfig {
        device_timeout: Duration::from_secs(60),
        name: WorkerId::new(name).expect("a valid name"),
        coordinators: vec![coordinator.to_string()],
        join_token: TOKEN.to_vec(),
        listen: "127.0.0.1:0".parse().expect("an address"),
        advertise: None,
        metrics_listen: None,
        tls: None,
        model_dir: model_dir.to_owned(),
        model_sources: Vec::new(),
        devices: vec![
            DeviceConfig {
                memory_bytes: Some(1 << 30),
                ..DeviceConfig::default()
            };
            devices
        ],
        cache_dir: None,
        drain_grace: Duration::ZERO,
    }
}
