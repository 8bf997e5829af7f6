//! The worker's side of its membership: join the leader, report, hear directives; over and over.
//!
//! No device is touched here: reports come in through a watch, directives go out through a bounded channel. A worker
//! that hears no coordinator goes on serving what it holds. One whose leader has gone silent, as a process does that is
//! stopped or cut off, looks for another within half a lease: the next leader waits a whole one for it.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};
use tramontane_model::members::{WorkerInfo, WorkerReport};
use tramontane_proto::net::{Identity, MAX_CONTROL_MESSAGE_BYTES, NetError, Traffic, channel};
use tramontane_proto::v1::membership_client::MembershipClient;
use tramontane_proto::{Directive, Joining, WireError, WorkerUpdate, v1 as pb};

/// How a follower names the leader's address.
const LEADER_ADDRESS_KEY: &str = "tramontane-leader-address";
/// Longest wait for a coordinator's welcome.
const WELCOME_DEADLINE: Duration = Duration::from_secs(5);
/// The same, of a coordinator that was silent of late.
const SILENT_DEADLINE: Duration = Duration::from_millis(500);
/// A coordinator that was silent is believed to be so for this long, whoever says that it leads.
const SILENT_FOR: Duration = Duration::from_secs(2);
/// Bounds of the lease that a coordinator tells, in milliseconds.
const LEASE_MS: std::ops::RangeInclusive<u32> = 30..=600_000;
/// First and longest pause between attempts to find the leader.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Reports that may wait for a slow connection.
const MAX_QUEUED_REPORTS: usize = 8;
/// Bounds of what a coordinator may ask for as heartbeat, in milliseconds.
const HEARTBEAT_MS: std::ops::RangeInclusive<u32> = 10..=60_000;

/// A worker's membership.
pub struct Session {
    /// What the worker says of itself.
    pub info: WorkerInfo,
    /// What lets it in.
    pub join_token: Vec<u8>,
    /// Where coordinators are, `host:port`.
    pub coordinators: Vec<String>,
    /// Who the worker is on the wire.
    pub identity: Identity,
    /// Its devices' state, as of now.
    pub report: watch::Receiver<WorkerReport>,
    /// Where directives go.
    pub directives: mpsc::Sender<Directive>,
}

/// Why a worker will not be let in, however often it asks.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A coordinator refused it.
    #[error("coordinator {address} refuses this worker: {problem}")]
    Refused {
        /// Which coordinator.
        address: String,
        /// What it said.
        problem: String,
    },
    /// An address cannot be used.
    #[error(transparent)]
    Net(#[from] NetError),
}

/// Why one attempt ended.
enum Ended {
    Stopped,
    /// Another coordinator leads, maybe at this address.
    Redirected(Option<String>),
    /// The stream broke, or never came up.
    Lost(String),
    /// It is open and nothing comes.
    Silent(String),
    /// The worker is not wanted as it is.
    Refused(String),
}

impl Session {
    /// Keeps up the membership until `stop`; returns an error if the cluster will not have this worker.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), SessionError> {
        let mut next = 0;
        let mut redirected = None;
        let mut silent = Silent::default();
        let mut pause = BACKOFF.0;
        loop {
            let address = redirected.take().unwrap_or_else(|| {
                let in_turn = (0..self.coordinators.len()).map(|after| next + after);
                let speaks = |at: &usize| !silent.is(&self.coordinators[at % self.coordinators.len()]);
                let at = in_turn.clone().find(speaks).unwrap_or(next);
                next = at + 1;
                self.coordinators[at % self.coordinators.len()].clone()
            });
            let mut welcomed = false;
            let within = match silent.is(&address) {
                true => SILENT_DEADLINE,
                false => WELCOME_DEADLINE,
            };
            match self.attempt(&address, within, &stop, &mut welcomed).await? {
                Ended::Stopped => return Ok(()),
                Ended::Refused(problem) => return Err(SessionError::Refused { address, problem }),
                Ended::Redirected(leader) => {
                    redirected = leader.filter(|leader| *leader != address && !silent.is(leader));
                }
                Ended::Silent(reason) => {
                    tracing::warn!(coordinator = address, reason, "the coordinator has gone silent");
                    silent.note(address);
                }
                Ended::Lost(reason) => {
                    tracing::warn!(
                        coordinator = address,
                        reason,
                        "session with the coordinator ended"
                    );
                }
            }
            pause = if welcomed {
                BACKOFF.0
            } else {
                (pause * 2).min(BACKOFF.1)
            };
            if redirected.is_none() {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }

    async fn attempt(
        &mut self,
        address: &str,
        within: Duration,
        stop: &CancellationToken,
        welcomed: &mut bool,
    ) -> Result<Ended, SessionError> {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED_REPORTS);
        let joining = Joining {
            token: self.join_token.clone().into(),
            info: self.info.clone(),
        };
        if sender.try_send(WorkerUpdate::Join(joining).into()).is_err() {
            return Ok(Ended::Lost("the stream closed at once".to_owned()));
        }
        let mut client = MembershipClient::new(channel(address, &self.identity, Traffic::Control)?)
            .max_decoding_message_size(MAX_CONTROL_MESSAGE_BYTES);
        let opening = tokio::time::timeout(within, async {
            let mut directives = client.session(ReceiverStream::new(receiver)).await?.into_inner();
            let first = directives.message().await?;
            Ok::<_, Status>((directives, first))
        });
        let (directives, first) = tokio::select! {
            () = stop.cancelled() => return Ok(Ended::Stopped),
            opened = opening => match opened {
                Ok(Ok(opened)) => opened,
                Ok(Err(status)) => return Ok(ended_by(&status)),
                Err(_) => return Ok(Ended::Silent(format!("no welcome within {within:?}"))),
            }
        };
        let welcome = first.map(Directive::try_from);
        let Some(Ok(Directive::Welcome {
            coordinator,
            term,
            heartbeat_ms,
            lease_ms,
        })) = welcome
        else {
            return Ok(Ended::Lost("the first message was no welcome".to_owned()));
        };
        tracing::info!(coordinator = %coordinator, address, term, "joined");
        *welcomed = true;
        let heartbeat_ms = heartbeat_ms.clamp(*HEARTBEAT_MS.start(), *HEARTBEAT_MS.end());
        let heartbeat = Duration::from_millis(heartbeat_ms.into());
        let lease_ms = lease_ms.clamp(*LEASE_MS.start(), *LEASE_MS.end());
        let silence = Duration::from_millis(lease_ms.into()) / 2;
        tokio::select! {
            () = stop.cancelled() => Ok(Ended::Stopped),
            ended = report(self.report.clone(), sender, heartbeat) => Ok(ended),
            ended = listen(directives, &self.directives, silence) => Ok(ended),
        }
    }
}

/// Sends a report every heartbeat and at each change.
async fn report(
    mut report: watch::Receiver<WorkerReport>,
    sender: mpsc::Sender<pb::WorkerMessage>,
    heartbeat: Duration,
) -> Ended {
    let mut ticks = tokio::time::interval(heartbeat);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = report.changed() => if changed.is_err() { return Ended::Stopped },
        }
        let update = WorkerUpdate::Report(report.borrow_and_update().clone());
        match tokio::time::timeout(heartbeat * 4, sender.send(update.into())).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ended::Lost("the stream closed".to_owned()),
            Err(_) => return Ended::Lost("reports are not taken".to_owned()),
        }
    }
}

/// The coordinators that were silent of late.
#[derive(Debug, Default)]
struct Silent(Vec<(String, Instant)>);

impl Silent {
    fn note(&mut self, address: String) {
        self.0
            .retain(|(other, since)| *other != address && since.elapsed() < SILENT_FOR);
        self.0.push((address, Instant::now()));
    }

    fn is(&self, address: &str) -> bool {
        let mut noted = self.0.iter();
        noted.any(|(other, since)| other == address && since.elapsed() < SILENT_FOR)
    }
}

/// Passes directives on. The leader says its welcome again and again: nothing for `silence` means that it is not there.
async fn listen(
    mut stream: Streaming<pb::CoordinatorMessage>,
    directives: &mpsc::Sender<Directive>,
    silence: Duration,
) -> Ended {
    let mut is_late = false;
    loop {
        let message = match tokio::time::timeout(silence / 2, stream.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return Ended::Lost("the coordinator closed it".to_owned()),
            Ok(Err(status)) => return ended_by(&status),
            Err(_) if is_late => return Ended::Silent(format!("nothing came for {silence:?}")),
            Err(_) => {
                // Once more: after a pause of this process what came meanwhile is yet to be read.
                is_late = true;
                continue;
            }
        };
        is_late = false;
        match Directive::try_from(message) {
            Ok(Directive::Welcome { .. }) => {}
            Ok(directive) => {
                if directives.send(directive).await.is_err() {
                    return Ended::Stopped;
                }
            }
            Err(error) => return Ended::Lost(wrong(&error)),
        }
    }
}

fn wrong(error: &WireError) -> String {
    format!("a directive makes no sense: {error}")
}

fn ended_by(status: &Status) -> Ended {
    let leader = status
        .metadata()
        .get(LEADER_ADDRESS_KEY)
        .and_then(|value| value.to_str().ok());
    let problem = || status.message().to_owned();
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "tonic's codes, not ours: all others mean a lost stream"
    )]
    match status.code() {
        Code::FailedPrecondition if status.metadata().contains_key(LEADER_ADDRESS_KEY) => {
            Ended::Redirected(leader.filter(|address| !address.is_empty()).map(str::to_owned))
        }
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => {
            Ended::Refused(problem())
        }
        _ => Ended::Lost(problem()),
    }
}
