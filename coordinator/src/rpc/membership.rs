//! Workers' sessions: who is let in, reports up, directives down.
//!
//! Nothing about placement is decided here: what a worker says goes to the [`Desk`], what it is told comes from there.
//!
//! **Invariant SEC-1:** nothing of a worker reaches the desk before its token and its certificate's name were checked.
//! **Invariant BQ-1:** sessions are bounded in number, and so are the directives that wait for each.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use subtle::ConstantTimeEq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tramontane_model::members::WorkerInfo;
use tramontane_proto::net::{Identity, Peer, is_refused};
use tramontane_proto::v1::membership_server::{Membership, MembershipServer};
use tramontane_proto::{Joining, WorkerUpdate, v1 as pb};

use super::desk::{AskError, Desk, Session, SessionEvent, SessionId};
use super::redirect::Directory;
use crate::control::limits::MAX_WORKERS;

/// Most sessions at once: every worker there may be, and some that are being replaced.
const MAX_SESSIONS: usize = MAX_WORKERS + 64;
/// Longest wait for a worker's first message, and for the answer to it.
const JOIN_DEADLINE: Duration = Duration::from_secs(5);
/// When it is looked whether a worker whose session is over is gone, in milliseconds after that: a process that is killed
/// closes one socket after the other. All within the heartbeat that it is waited for at least.
const LOOKS_MS: [u64; 4] = [0, 10, 30, 80];
/// Longest wait for the answer of one look.
const LOOK_DEADLINE: Duration = Duration::from_millis(100);
/// Longest message of a worker, in bytes: above a worker with as many devices, and texts as long, as may be.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// What a coordinator asks of workers.
#[derive(Clone)]
pub struct Door {
    /// What workers must show.
    pub join_token: Vec<u8>,
    /// Fingerprint of this coordinator's checkpoint.
    pub fingerprint: [u8; 32],
    /// Where the members are.
    pub directory: Directory,
    /// Who this coordinator is on the wire.
    pub identity: Identity,
}

/// The service.
pub struct MembershipService {
    door: Door,
    desk: Desk,
    room: Arc<Semaphore>,
    sessions: AtomicU64,
}

impl MembershipService {
    /// The service, ready to be added to a server.
    pub fn server(door: Door, desk: Desk) -> MembershipServer<Self> {
        MembershipServer::new(Self {
            door,
            desk,
            room: Arc::new(Semaphore::new(MAX_SESSIONS)),
            sessions: AtomicU64::new(1),
        })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Asks for the worker to be let in.
    async fn let_in(&self, info: WorkerInfo, session: Session) -> Result<(), Status> {
        let refused = |error| self.door.directory.status(error);
        let (answer, answered) = oneshot::channel();
        let joined = SessionEvent::Joined {
            info,
            session: session.clone(),
            answer,
        };
        self.desk.tell(joined).await.map_err(refused)?;
        match timeout(JOIN_DEADLINE, answered).await {
            Ok(Ok(answer)) => answer.map_err(refused),
            Ok(Err(_)) | Err(_) => Err(refused(AskError::Unavailable(
                "the leader did not answer in time",
            ))),
        }
    }
}

impl Door {
    /// Checks the first message of a session.
    fn check(&self, peer: &Peer, first: pb::WorkerMessage) -> Result<WorkerInfo, Status> {
        let WorkerUpdate::Join(Joining { token, info }) = WorkerUpdate::try_from(first)? else {
            return Err(Status::invalid_argument(
                "the first message of a session must be join, this is a report",
            ));
        };
        if !bool::from(self.join_token.ct_eq(&token)) {
            return Err(Status::unauthenticated(
                "the join token is wrong: it must be the one in the coordinators' join_token_file",
            ));
        }
        let name = info.worker.as_str();
        if !peer.may_act_as(name) {
            return Err(Status::permission_denied(format!(
                "the certificate has the DNS names {:?}, a worker named {name:?} needs that name in it",
                peer.names.as_deref().unwrap_or_default()
            )));
        }
        if info.model_fingerprint != self.fingerprint {
            return Err(Status::failed_precondition(format!(
                "worker {name} has a checkpoint with fingerprint {}, this coordinator one with {}: all must have the same model",
                Hex(&info.model_fingerprint),
                Hex(&self.fingerprint)
            )));
        }
        Ok(info)
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[tonic::async_trait]
impl Membership for MembershipService {
    type SessionStream = ReceiverStream<Result<pb::CoordinatorMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("the connection does not say who is there"))?;
        let permit = self.room.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "this coordinator has {MAX_SESSIONS} sessions, which is the most there may be"
            ))
        })?;
        let mut messages = request.into_inner();
        let first = timeout(JOIN_DEADLINE, messages.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no join came within 5 s"))??;
        let first = first.ok_or_else(|| Status::invalid_argument("the stream ended before a join came"))?;
        let info = self.door.check(&peer, first).inspect_err(|refusal| {
            tracing::warn!(?peer, "a worker was refused: {}", refusal.message());
        })?;
        let worker = info.clone();
        let id = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        let (session, heard) = Session::new(id);
        self.let_in(info, session.clone()).await?;
        let reader = Reader {
            worker,
            session,
            desk: self.desk.clone(),
            identity: self.door.identity.clone(),
            _permit: permit,
        };
        tokio::spawn(reader.run(messages));
        Ok(Response::new(ReceiverStream::new(heard)))
    }
}

/// Passes a worker's reports on until either side ends the session.
struct Reader {
    worker: WorkerInfo,
    session: Session,
    desk: Desk,
    identity: Identity,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    async fn run(self, mut messages: Streaming<pb::WorkerMessage>) {
        let why = tokio::select! {
            why = self.read(&mut messages) => why,
            () = self.session.over() => "it was ended".to_owned(),
        };
        let (session, worker) = (self.session.id(), self.worker.worker.clone());
        tracing::info!(%worker, "a worker's session ended: {why}");
        let ended = SessionEvent::Ended {
            session,
            worker: worker.clone(),
        };
        let told = self.desk.tell(ended).await.is_ok();
        if !told || (self.is_gone().await && !self.tell_gone().await) {
            tracing::debug!(%worker, "the end of a session was not told: its lease runs out");
        }
    }

    /// Whether nobody listens any more where the worker did.
    async fn is_gone(&self) -> bool {
        let mut waited = 0;
        for at in LOOKS_MS {
            tokio::time::sleep(Duration::from_millis(at - waited)).await;
            waited = at;
            if is_refused(&self.worker.address, &self.identity, LOOK_DEADLINE).await {
                return true;
            }
        }
        false
    }

    async fn tell_gone(&self) -> bool {
        let (worker, incarnation) = (self.worker.worker.clone(), self.worker.incarnation);
        tracing::info!(%worker, address = self.worker.address, "nobody listens where the worker did: it is gone");
        let gone = SessionEvent::Gone { worker, incarnation };
        self.desk.tell(gone).await.is_ok()
    }

    async fn read(&self, messages: &mut Streaming<pb::WorkerMessage>) -> String {
        loop {
            let message = match messages.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return "the worker closed it".to_owned(),
                Err(status) => return format!("the stream broke: {}", status.message()),
            };
            let report = match WorkerUpdate::try_from(message) {
                Ok(WorkerUpdate::Report(report)) => report,
                Ok(WorkerUpdate::Join(_)) => {
                    let why = "a second join came on one session";
                    self.session.end(Status::invalid_argument(why));
                    return why.to_owned();
                }
                Err(error) => {
                    let why = error.to_string();
                    self.session.end(error.into());
                    return why;
                }
            };
            let reported = SessionEvent::Reported {
                session: self.session.id(),
                worker: self.worker.worker.clone(),
                report,
            };
            if let Err(error) = self.desk.tell(reported).await {
                self.session.end(Status::unavailable(error.to_string()));
                return error.to_string();
            }
        }
    }
}
