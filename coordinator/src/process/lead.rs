//! The task that owns the controller: turns what happens into events, and effects into what is done.
//!
//! One task, one loop; nothing it waits for can hold it up: proposals and asks are answered when they are.
//!
//! **Invariant BQ-1:** asks that wait are bounded by the desk's queue, proposals by the controller.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, poll};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tramontane_model::ids::{CoordinatorId, Fence, WorkerId};
use tramontane_model::members::SchedulerLoad;
use tramontane_model::time::Tick;
use tramontane_proto::Directive;

use super::members;
use super::routes::routes;
use crate::control::command::{Command, Proposal};
use crate::control::controller::{AskId, Controller, Effect, Event, ProposalResult, SessionId};
use crate::control::state::ClusterState;
use crate::gateway::{GatewayError, Routes};
use crate::raft::{self, AppliedState, ProposeError, RaftHandle, RaftStatus, ReadError, Role};
use crate::rpc::desk::{Ask, AskError, Inbox, Session, SessionEvent};
use crate::rpc::redirect::Directory;

/// How often the controller is told that time has passed.
const TICK: Duration = Duration::from_millis(50);
/// A worker hears from the leader so often in each lease, so that it finds the next leader in time.
const SIGNS_PER_LEASE: u32 = 8;
/// Longest wait for a proposal.
const PROPOSAL_DEADLINE: Duration = Duration::from_secs(5);
/// Most replans, and most changes, that wait for their answer.
const MAX_WAITING: usize = 64;
/// Most asks for the status that wait for a majority to confirm that this coordinator leads, and how long they do.
const MAX_STATUSES: usize = 256;
const STATUS_DEADLINE: Duration = Duration::from_secs(3);
const NO_MAJORITY: &str = "no majority of the coordinators can be reached: requests go on, and whatever would change or \
                           confirm the placement waits until enough of them are back";

/// The term that this coordinator leads, or who else does.
type Leading = (Option<u64>, Option<CoordinatorId>);
type StatusAnswer = oneshot::Sender<Result<Bytes, AskError>>;
type Confirming = Pin<Box<dyn Future<Output = (StatusAnswer, Result<(), AskError>)> + Send>>;
type Proposing = Pin<Box<dyn Future<Output = (u64, ProposalResult)> + Send>>;

/// The controller and everything it acts through.
pub(super) struct Lead {
    controller: Controller,
    raft: RaftHandle<ClusterState>,
    directory: Directory,
    inbox: Option<Inbox>,
    routes: watch::Sender<Arc<Routes>>,
    proposer: u64,
    started: Instant,
    sessions: BTreeMap<SessionId, Visitor>,
    replans: BTreeMap<AskId, oneshot::Sender<Result<Fence, AskError>>>,
    changes: BTreeMap<AskId, oneshot::Sender<Result<(), AskError>>>,
    next_ask: u64,
    proposals: FuturesUnordered<Proposing>,
    statuses: FuturesUnordered<Confirming>,
}

/// A worker's session, and who waits to hear whether it is let in.
struct Visitor {
    session: Session,
    worker: WorkerId,
    answer: Option<oneshot::Sender<Result<(), AskError>>>,
    /// Said when it was let in, and again and again after that.
    welcome: Option<Sign>,
}

/// What tells a worker that its leader is there.
struct Sign {
    welcome: Directive,
    every: Duration,
    last: Instant,
}

impl Lead {
    /// Fails only without randomness.
    pub(super) fn new(
        controller: Controller,
        raft: RaftHandle<ClusterState>,
        directory: Directory,
        inbox: Inbox,
        routes: watch::Sender<Arc<Routes>>,
    ) -> Result<Self, GatewayError> {
        let mut proposer = [0; 8];
        getrandom::fill(&mut proposer).map_err(|error| GatewayError::Random {
            detail: error.to_string(),
        })?;
        Ok(Self {
            controller,
            raft,
            directory,
            inbox: Some(inbox),
            routes,
            proposer: u64::from_le_bytes(proposer),
            started: Instant::now(),
            sessions: BTreeMap::new(),
            replans: BTreeMap::new(),
            changes: BTreeMap::new(),
            next_ask: 1,
            proposals: FuturesUnordered::new(),
            statuses: FuturesUnordered::new(),
        })
    }

    /// Runs until `stop`, or until raft or the desk has ended.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let Some(mut inbox) = self.inbox.take() else {
            return;
        };
        let (mut statuses, mut states) = (self.raft.watch_status(), self.raft.watch_state());
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = None;
        let status = statuses.borrow_and_update().clone();
        self.follow(&status, &mut known).await;
        let state = states.borrow_and_update().clone();
        self.publish(&state);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = statuses.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let status = statuses.borrow_and_update().clone();
                    self.follow(&status, &mut known).await;
                }
                changed = states.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let state = states.borrow_and_update().clone();
                    self.take(Event::StateChanged).await;
                    self.publish(&state);
                }
                event = inbox.sessions.recv() => match event {
                    Some(event) => self.session(event).await,
                    None => break,
                },
                ask = inbox.asks.recv() => match ask {
                    Some(ask) => self.ask(ask).await,
                    None => break,
                },
                Some((sequence, result)) = self.proposals.next() => {
                    self.take(Event::Proposed { sequence, result }).await;
                }
                Some((answer, confirmed)) = self.statuses.next() => {
                    // Whoever asked may be gone.
                    let _ = answer.send(confirmed.and_then(|()| self.status()));
                }
                _ = ticks.tick() => {
                    self.take(Event::Elapsed).await;
                    if self.controller.leads() {
                        let state = self.raft.state();
                        self.publish(&state);
                        self.give_signs();
                    }
                }
            }
        }
    }

    /// Tells the controller who leads, if that has changed.
    async fn follow(&mut self, status: &RaftStatus, known: &mut Option<Leading>) {
        let (leads, leader) = match status.role {
            Role::Leader => (Some(status.term), None),
            Role::Follower | Role::Candidate | Role::PreCandidate => {
                (None, status.leader.filter(|leader| *leader != status.id))
            }
        };
        if known.replace((leads, leader)) == Some((leads, leader)) {
            return;
        }
        self.take(match leads {
            Some(term) => Event::Leads { term },
            None => Event::Follows { leader },
        })
        .await;
    }

    fn publish(&self, state: &AppliedState<ClusterState>) {
        let routes = routes(&state.view, &self.controller.progress(&state.view));
        self.routes.send_if_modified(|published| {
            let changed = *published != routes;
            *published = routes;
            changed
        });
    }

    async fn session(&mut self, event: SessionEvent) {
        let event = match event {
            SessionEvent::Joined {
                info,
                session,
                answer,
            } => {
                let id = session.id();
                let visitor = Visitor {
                    session,
                    worker: info.worker.clone(),
                    answer: Some(answer),
                    welcome: None,
                };
                self.sessions.insert(id, visitor);
                Event::Joined { session: id, info }
            }
            SessionEvent::Reported {
                session,
                worker,
                report,
            } => Event::Reported {
                session,
                worker,
                report,
            },
            SessionEvent::Ended { session, worker } => {
                self.sessions.remove(&session);
                Event::Ended { session, worker }
            }
            SessionEvent::Gone { worker, incarnation } => Event::Gone { worker, incarnation },
        };
        self.take(event).await;
    }

    async fn ask(&mut self, ask: Ask) {
        match ask {
            Ask::Status { id, entry, answer } => {
                self.take(Event::CoordinatorSeen { id, entry }).await;
                self.confirm(answer);
            }
            Ask::Loads { answer } => {
                // Whoever asked may be gone.
                let _ = answer.send(self.loads());
            }
            Ask::Replan { answer } if self.replans.len() >= MAX_WAITING => {
                let _ = answer.send(Err(AskError::Unavailable("too many replans wait; try again")));
            }
            Ask::Replan { answer } => {
                let ask = self.next_ask();
                self.replans.insert(ask, answer);
                self.take(Event::Replan { ask }).await;
            }
            Ask::Change { answer, .. } if self.changes.len() >= MAX_WAITING => {
                let _ = answer.send(Err(AskError::Unavailable("too many changes wait; try again")));
            }
            Ask::Change { change, answer } => {
                if let Err(why) = members::check(&self.raft.status(), &self.raft.state().view, &change)
                    && self.controller.leads()
                {
                    let _ = answer.send(Err(AskError::Refused(why)));
                    return;
                }
                let ask = self.next_ask();
                self.changes.insert(ask, answer);
                self.take(Event::Change { ask, change }).await;
            }
        }
    }

    fn next_ask(&mut self) -> AskId {
        let ask = AskId(self.next_ask);
        self.next_ask += 1;
        ask
    }

    /// Answers once a majority has confirmed the lead: one that was paused may believe in it long after another was
    /// elected.
    fn confirm(&self, answer: StatusAnswer) {
        if !self.controller.leads() || self.statuses.len() >= MAX_STATUSES {
            let refused = match self.controller.leads() {
                true => Err(AskError::Unavailable("too many ask for the status; try again")),
                false => self.status(),
            };
            // Whoever asked may be gone.
            let _ = answer.send(refused);
            return;
        }
        let raft = self.raft.clone();
        let confirming = async move {
            let read = raft.read(Instant::now() + STATUS_DEADLINE).await;
            let confirmed = read.map(|_| ()).map_err(|error| match error {
                ReadError::TimedOut => AskError::Unavailable(NO_MAJORITY),
                ReadError::Busy => AskError::Unavailable("too many reads wait; try again"),
                ReadError::ShuttingDown => AskError::Unavailable("this coordinator is shutting down"),
            });
            (answer, confirmed)
        };
        self.statuses.push(confirming.boxed());
    }

    fn status(&self) -> Result<Bytes, AskError> {
        if !self.controller.leads() {
            let leader = self.raft.status().leader;
            return Err(AskError::NotLeader { leader });
        }
        let mut view = self.controller.status(&self.raft.state().view);
        let status = self.raft.status();
        view.members = members::views(&status, &self.raft.state().view, &self.directory);
        let silent: BTreeSet<String> = status
            .peers
            .into_iter()
            .filter(|peer| !peer.recently_active)
            .map(|peer| raft::Identity::certificate_name(peer.id))
            .collect();
        for node in view.nodes.iter_mut().filter(|node| silent.contains(&node.id)) {
            node.state = "silent";
        }
        serde_json::to_vec(&view)
            .map(Bytes::from)
            .map_err(|error| AskError::Refused(format!("the status cannot be written: {error}")))
    }

    fn loads(&self) -> Result<Vec<SchedulerLoad>, AskError> {
        if !self.controller.leads() {
            let leader = self.raft.status().leader;
            return Err(AskError::NotLeader { leader });
        }
        Ok(self.controller.loads(&self.raft.state().view))
    }

    /// Hands an event to the controller and does what it asks for, until nothing more follows.
    async fn take(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut effects = Vec::new();
        while let Some(event) = events.pop_front() {
            let now = Tick(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
            let state = self.raft.state();
            self.controller.step(now, &state.view, event, &mut effects);
            for effect in effects.drain(..) {
                events.extend(self.apply(effect).await);
            }
        }
    }

    /// Does one thing; what follows from it at once comes back as an event.
    async fn apply(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Propose { sequence, command } => self.propose(sequence, command).await,
            Effect::Admit { session } => self.admit(session),
            Effect::Refuse { session, error } => {
                let visitor = self.sessions.remove(&session)?;
                // Whoever waited may be gone.
                let _ = visitor.answer?.send(Err(error));
                None
            }
            Effect::Direct { session, directive } => {
                let visitor = self.sessions.get_mut(&session)?;
                if let Directive::Welcome { lease_ms, .. } = directive {
                    visitor.welcome = Some(Sign {
                        welcome: directive.clone(),
                        every: Duration::from_millis(lease_ms.into()) / SIGNS_PER_LEASE,
                        last: Instant::now(),
                    });
                }
                if visitor.session.send(directive).is_err() {
                    let why = "the worker does not take what it is told";
                    visitor
                        .session
                        .end(self.directory.status(AskError::Unavailable(why)));
                }
                None
            }
            Effect::EndSession { session, why } => {
                let visitor = self.sessions.remove(&session)?;
                visitor.session.end(self.directory.status(why));
                None
            }
            Effect::Answer { ask, result } => {
                // Whoever asked may be gone.
                let _ = self.replans.remove(&ask)?.send(result);
                None
            }
            Effect::Changed { ask, result } => {
                let _ = self.changes.remove(&ask)?.send(result);
                None
            }
        }
    }

    /// Tells workers that their leader is there.
    fn give_signs(&mut self) {
        let now = Instant::now();
        for visitor in self.sessions.values_mut() {
            let Some(sign) = &mut visitor.welcome else {
                continue;
            };
            if now - sign.last >= sign.every {
                sign.last = now;
                // One that takes nothing does not report either: its lease runs out.
                let _ = visitor.session.send(sign.welcome.clone());
            }
        }
    }

    fn admit(&mut self, session: SessionId) -> Option<Event> {
        let visitor = self.sessions.get_mut(&session)?;
        let answer = visitor.answer.take()?;
        if answer.send(Ok(())).is_ok() {
            return None;
        }
        // Nobody waits any more: the session never began.
        let worker = visitor.worker.clone();
        self.sessions.remove(&session);
        Some(Event::Ended { session, worker })
    }

    /// Puts a proposal into raft's queue now, so that proposals stay in order; its answer comes later.
    async fn propose(&mut self, sequence: u64, command: Command) -> Option<Event> {
        let proposal = Proposal {
            proposer: self.proposer,
            sequence,
            command,
        };
        tracing::debug!(sequence, command = ?proposal.command, "proposing");
        let entry = match proposal.encode() {
            Ok(entry) => entry,
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(sequence, reason, "a proposal cannot be written");
                let result = ProposalResult::Dropped { reason };
                return Some(Event::Proposed { sequence, result });
            }
        };
        let raft = self.raft.clone();
        let deadline = Instant::now() + PROPOSAL_DEADLINE;
        let mut proposing: Proposing =
            async move { (sequence, result(raft.propose(entry, deadline).await)) }.boxed();
        match poll!(&mut proposing) {
            Poll::Ready((sequence, result)) => Some(Event::Proposed { sequence, result }),
            Poll::Pending => {
                self.proposals.push(proposing);
                None
            }
        }
    }
}

fn result(proposed: Result<crate::control::command::Outcome, ProposeError>) -> ProposalResult {
    match proposed {
        Ok(outcome) => ProposalResult::Committed(outcome),
        Err(
            error @ (ProposeError::NotLeader { .. }
            | ProposeError::Empty
            | ProposeError::TooLarge { .. }
            | ProposeError::Busy
            | ProposeError::Dropped),
        ) => ProposalResult::Dropped {
            reason: error.to_string(),
        },
        Err(ProposeError::TimedOut | ProposeError::Unknown | ProposeError::ShuttingDown) => {
            ProposalResult::Unknown
        }
    }
}
