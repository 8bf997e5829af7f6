//! What operators and coordinators ask of the leader: the cluster's status, and a new plan.
//!
//! Any coordinator takes an operator's request and passes it on; a request that was passed on is answered by the leader
//! alone, so that none goes in circles.
//!
//! **Invariant SEC-1:** beyond loopback, only coordinators and whoever holds a certificate named [`OPERATOR_NAME`] ask.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tramontane_model::ids::{CoordinatorId, Fence, Generation, ReplicaId};
use tramontane_model::members::{MAX_TEXT_BYTES, SchedulerLoad};
use tramontane_proto::net::{Identity, MAX_CONTROL_MESSAGE_BYTES, Peer, Traffic, channel};
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::admin_client::AdminClient;
use tramontane_proto::v1::admin_server::{Admin, AdminServer};

use super::desk::{AskError, Desk};
use super::redirect::{Directory, is_redirect};
use crate::control::limits::MAX_REPLICAS;
use crate::control::state::CoordinatorEntry;
use crate::raft;

/// The DNS name of an operator's certificate.
pub const OPERATOR_NAME: &str = "operator";
/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest request, in bytes.
const MAX_REQUEST_BYTES: usize = 16 << 10;

/// Finds the leader, here or elsewhere, and asks it. Clones are the same.
#[derive(Clone)]
pub struct Leader(Arc<Inner>);

struct Inner {
    id: CoordinatorId,
    entry: CoordinatorEntry,
    identity: Identity,
    directory: Directory,
    desk: Desk,
    leader: Box<dyn Fn() -> Option<CoordinatorId> + Send + Sync>,
    channels: Mutex<BTreeMap<CoordinatorId, Channel>>,
}

impl Leader {
    /// Asks on behalf of the coordinator `id`, which says `entry` of itself whenever it asks; `leader` says who leads,
    /// as far as is known at that moment.
    pub fn new(
        id: CoordinatorId,
        entry: CoordinatorEntry,
        identity: Identity,
        directory: Directory,
        desk: Desk,
        leader: impl Fn() -> Option<CoordinatorId> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            id,
            entry,
            identity,
            directory,
            desk,
            leader: Box::new(leader),
            channels: Mutex::default(),
        }))
    }

    /// The cluster as the leader sees it, as JSON. Asks once more where the lead has gone to another meanwhile.
    pub async fn status(&self) -> Result<Bytes, AskError> {
        match self.status_once().await {
            Err(AskError::NotLeader { .. }) if (self.0.leader)().is_some() => self.status_once().await,
            answer => answer,
        }
    }

    async fn status_once(&self) -> Result<Bytes, AskError> {
        let from = (self.0.id, self.0.entry.clone());
        let here = |desk: Desk, (id, entry)| async move { desk.status(id, entry, DEADLINE).await };
        self.ask(from, here, |mut client, (id, entry)| {
            Box::pin(async move {
                let from = Some(pb::Coordinator {
                    id: id.0,
                    raft_address: entry.raft_address,
                    http_address: entry.http_address,
                    pid: entry.pid,
                    version: entry.version,
                });
                let answer = client.status(pb::StatusRequest { from }).await?;
                Ok(answer.into_inner().status)
            })
        })
        .await
    }

    /// What the schedulers of replicas that serve are doing.
    pub async fn loads(&self) -> Result<Vec<SchedulerLoad>, AskError> {
        let here = |desk: Desk, ()| async move { desk.loads(DEADLINE).await };
        self.ask((), here, |mut client, ()| {
            Box::pin(async move {
                let answer = client.loads(pb::LoadsRequest {}).await?;
                let loads = answer.into_inner().loads;
                if loads.len() > MAX_REPLICAS {
                    return Err(Status::internal(
                        "the leader told of more replicas than there may be",
                    ));
                }
                let loads = loads.into_iter().map(SchedulerLoad::try_from);
                Ok(loads.collect::<Result<_, _>>()?)
            })
        })
        .await
    }

    /// Plans anew; the replica and its new generation.
    pub async fn replan(&self) -> Result<Fence, AskError> {
        let here = |desk: Desk, ()| async move { desk.replan(DEADLINE).await };
        self.ask((), here, |mut client, ()| {
            Box::pin(async move {
                let answer = client.replan(pb::ReplanRequest { forwarded: true }).await?;
                let pb::ReplanResponse { replica, generation } = answer.into_inner();
                Ok(Fence {
                    replica: ReplicaId(replica),
                    generation: Generation(generation),
                })
            })
        })
        .await
    }

    async fn ask<A, T, F: Future<Output = Result<T, AskError>>>(
        &self,
        ask: A,
        here: impl FnOnce(Desk, A) -> F,
        there: impl FnOnce(AdminClient<Channel>, A) -> BoxFuture<'static, Result<T, Status>>,
    ) -> Result<T, AskError> {
        let leader = (self.0.leader)().ok_or(AskError::NotLeader { leader: None })?;
        if leader == self.0.id {
            return here(self.0.desk.clone(), ask).await;
        }
        let client = AdminClient::new(self.channel(leader)?)
            .max_decoding_message_size(MAX_CONTROL_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_REQUEST_BYTES);
        match timeout(DEADLINE, there(client, ask)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) if is_redirect(&status) => Err(AskError::NotLeader { leader: None }),
            Ok(Err(status)) => Err(refusal(leader, &status)),
            Err(_) => Err(AskError::Unavailable("the leader did not answer in time")),
        }
    }

    fn channel(&self, leader: CoordinatorId) -> Result<Channel, AskError> {
        // Nothing panics while the lock is held.
        let mut channels = self.0.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = channels.get(&leader) {
            return Ok(known.clone());
        }
        let address = self.0.directory.address(leader);
        let address = address.ok_or(AskError::Unavailable("the leader is not among initial_members"))?;
        let made = channel(address, &self.0.identity, Traffic::Control);
        let made = made.map_err(|error| AskError::Refused(error.to_string()))?;
        channels.insert(leader, made.clone());
        Ok(made)
    }
}

fn refusal(leader: CoordinatorId, status: &Status) -> AskError {
    if status.code() == tonic::Code::Aborted {
        return AskError::Refused(status.message().to_owned());
    }
    tracing::debug!(%leader, code = %status.code(), "asking the leader failed: {}", status.message());
    AskError::Unavailable("the leader cannot be reached")
}

/// The service.
pub struct AdminService {
    leader: Leader,
}

impl AdminService {
    /// The service, ready to be added to a server.
    pub fn server(leader: Leader) -> AdminServer<Self> {
        AdminServer::new(Self { leader }).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    /// Refuses anybody but coordinators and operators; `as_coordinator` must be that coordinator.
    fn check<T>(&self, request: &Request<T>, as_coordinator: Option<CoordinatorId>) -> Result<(), Status> {
        let peer = request.extensions().get::<Peer>();
        let peer = peer.ok_or_else(|| Status::unauthenticated("the connection does not say who is there"))?;
        let directory = &self.leader.0.directory;
        let allowed = match as_coordinator {
            Some(id) => directory.address(id).is_some() && is_coordinator(peer, id),
            None => peer.may_act_as(OPERATOR_NAME) || directory.ids().any(|id| is_coordinator(peer, id)),
        };
        if allowed {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "the certificate has the DNS names {:?}; only coordinators and {OPERATOR_NAME:?} may ask this",
            peer.names.as_deref().unwrap_or_default()
        )))
    }
}

fn is_coordinator(peer: &Peer, id: CoordinatorId) -> bool {
    peer.may_act_as(&raft::Identity::certificate_name(id))
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let Leader(inner) = &self.leader;
        let from = request.get_ref().from.as_ref().map(|from| CoordinatorId(from.id));
        self.check(&request, from)?;
        let answer = match request.into_inner().from {
            Some(from) => {
                let (id, entry) = coordinator(from)?;
                inner.desk.status(id, entry, DEADLINE).await
            }
            None => self.leader.status().await,
        };
        let status = answer.map_err(|error| inner.directory.status(error))?;
        Ok(Response::new(pb::StatusResponse { status }))
    }

    async fn loads(&self, request: Request<pb::LoadsRequest>) -> Result<Response<pb::LoadsResponse>, Status> {
        let Leader(inner) = &self.leader;
        self.check(&request, None)?;
        let loads = inner.desk.loads(DEADLINE).await;
        let loads = loads.map_err(|error| inner.directory.status(error))?;
        let loads = loads.into_iter().map(Into::into).collect();
        Ok(Response::new(pb::LoadsResponse { loads }))
    }

    async fn replan(
        &self,
        request: Request<pb::ReplanRequest>,
    ) -> Result<Response<pb::ReplanResponse>, Status> {
        let Leader(inner) = &self.leader;
        self.check(&request, None)?;
        let answer = if request.into_inner().forwarded {
            inner.desk.replan(DEADLINE).await
        } else {
            self.leader.replan().await
        };
        let fence = answer.map_err(|error| inner.directory.status(error))?;
        Ok(Response::new(pb::ReplanResponse {
            replica: fence.replica.0,
            generation: fence.generation.0,
        }))
    }
}

fn coordinator(wire: pb::Coordinator) -> Result<(CoordinatorId, CoordinatorEntry), Status> {
    for (field, text) in [
        ("from.raft_address", &wire.raft_address),
        ("from.http_address", &wire.http_address),
        ("from.version", &wire.version),
    ] {
        if text.len() > MAX_TEXT_BYTES {
            let found = text.len();
            return Err(Status::invalid_argument(format!(
                "field {field} has {found} bytes, at most {MAX_TEXT_BYTES} are allowed"
            )));
        }
    }
    let entry = CoordinatorEntry {
        raft_address: wire.raft_address,
        http_address: wire.http_address,
        pid: wire.pid,
        version: wire.version,
    };
    Ok((CoordinatorId(wire.id), entry))
}
