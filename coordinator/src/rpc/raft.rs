//! Takes raft's messages from peers.
//!
//! **Invariant SEC-1:** a message reaches the node only in the name that its sender's certificate gives, and only if
//! both coordinators belong to the same cluster with the same first members, and it was not removed.

#[cfg(test)]
mod tests;

use tonic::{Request, Response, Status, Streaming};
use tramontane_model::ids::CoordinatorId;
use tramontane_proto::net::Peer;
use tramontane_proto::v1::raft_server::{Raft, RaftServer};
use tramontane_proto::v1::{RaftDelivered, RaftEnvelope};

use crate::raft::node::MAX_MESSAGE_BYTES;
use crate::raft::{Identity, RaftHandle, StateMachine};

/// What an envelope adds to its message, with room to spare.
const MAX_ENVELOPE_BYTES: usize = MAX_MESSAGE_BYTES + (4 << 10);

/// The service.
pub struct RaftService<S: StateMachine> {
    identity: Identity,
    tag: String,
    handle: RaftHandle<S>,
    is_removed: Box<dyn Fn(CoordinatorId) -> bool + Send + Sync>,
}

impl<S: StateMachine> RaftService<S> {
    /// The service of the coordinator with this identity, ready to be added to a server; `is_removed` says who takes
    /// part no more.
    pub fn server(
        identity: Identity,
        handle: RaftHandle<S>,
        is_removed: impl Fn(CoordinatorId) -> bool + Send + Sync + 'static,
    ) -> RaftServer<Self> {
        let tag = identity.tag();
        RaftServer::new(Self {
            identity,
            tag,
            handle,
            is_removed: Box::new(is_removed),
        })
        .max_decoding_message_size(MAX_ENVELOPE_BYTES)
    }

    /// Makes sure that an envelope comes from a member that may send it.
    fn check(&self, peer: &Peer, envelope: &RaftEnvelope) -> Result<CoordinatorId, Status> {
        if envelope.cluster != self.tag {
            // Cut, because a stranger chose it.
            let found: String = envelope.cluster.chars().take(200).collect();
            return Err(Status::failed_precondition(format!(
                "this coordinator belongs to cluster {:?}, the sender to {found:?}; all need the same cluster and initial_members",
                self.tag
            )));
        }
        let (from, id) = (CoordinatorId(envelope.from), self.identity.id());
        if envelope.to != id.0 {
            return Err(Status::failed_precondition(format!(
                "this is coordinator {id}, the message is for {}; compare the addresses in initial_members",
                envelope.to
            )));
        }
        if (self.is_removed)(from) {
            return Err(Status::permission_denied(format!(
                "coordinator {from} was removed from this cluster; stop it"
            )));
        }
        // Anybody else of this cluster may be a member: this coordinator may be behind.
        if from == id {
            return Err(Status::permission_denied(format!(
                "coordinator {from} is no peer of {id}"
            )));
        }
        let name = Identity::certificate_name(from);
        if !peer.may_act_as(&name) {
            return Err(Status::permission_denied(format!(
                "the sender's certificate has the DNS names {:?}, a message from coordinator {from} needs {name:?}",
                peer.names.as_deref().unwrap_or_default()
            )));
        }
        Ok(from)
    }
}

fn shutting_down() -> Status {
    Status::unavailable("this coordinator is shutting down")
}

#[tonic::async_trait]
impl<S: StateMachine> Raft for RaftService<S> {
    async fn deliver(
        &self,
        request: Request<Streaming<RaftEnvelope>>,
    ) -> Result<Response<RaftDelivered>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("the connection does not say who is there"))?;
        let mut envelopes = request.into_inner();
        let mut messages = 0;
        let mut ended = std::pin::pin!(self.handle.ended());
        loop {
            let envelope = tokio::select! {
                envelope = envelopes.message() => envelope?,
                // Otherwise an idle stream would hold up the server's end.
                () = &mut ended => return Err(shutting_down()),
            };
            let Some(envelope) = envelope else { break };
            let from = self.check(&peer, &envelope)?;
            if !self.handle.deliver(from, envelope.message.into()) {
                return Err(shutting_down());
            }
            messages += 1;
        }
        Ok(Response::new(RaftDelivered { messages }))
    }
}
