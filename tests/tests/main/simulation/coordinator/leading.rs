//! The controller and what it asks for: proposals, sessions with workers.

use std::collections::VecDeque;
use std::sync::Arc;

use tramontane_coordinator::control::command::{Command, Proposal};
use tramontane_coordinator::control::controller::{AskId, AskRefusal, Effect, Event, SessionId};
use tramontane_coordinator::process::routes::routes;
use tramontane_model::members::SchedulerLoad;
use tramontane_model::time::Tick;
use tramontane_proto::Directive;

use super::raft::result;
use super::{Running, Session};
use crate::simulation::history;
use crate::simulation::invariants::lease;
use crate::simulation::network::{ConnId, Message, Proc};
use crate::simulation::scenario::LEASE_MS;
use crate::simulation::world::World;

/// Ticks that a proposal may take: 5 s.
const PROPOSAL_TICKS: u64 = 100;

impl World {
    /// An operator asks the leader to plan everything anew.
    pub(in super::super) fn replan(&mut self) {
        let Some(leader) = self
            .leader()
            .filter(|id| !self.frozen.contains_key(&Proc::Coordinator(*id)))
        else {
            return;
        };
        history::with(|history| history.asked = true);
        self.with_coordinator(leader, |_, running| {
            running.next_session += 1;
            let ask = AskId(running.next_session);
            vec![Event::Replan { ask }]
        });
    }

    /// The leader gives its lead away, as one that is stopped in good order does.
    pub(in super::super) fn hand_over(&mut self) {
        let Some(leader) = self
            .leader()
            .filter(|id| !self.frozen.contains_key(&Proc::Coordinator(*id)))
        else {
            return;
        };
        self.with_coordinator(leader, |_, running| {
            running.node.hand_over();
            Vec::new()
        });
    }

    pub(super) fn control(
        &mut self,
        id: u64,
        running: &mut Running,
        event: Event,
        events: &mut VecDeque<Event>,
    ) {
        let now = Tick(self.now - running.started);
        let mut effects = Vec::new();
        let state = &running.node.machine().0;
        running.controller.step(now, state, event, &mut effects);
        for effect in effects {
            match effect {
                Effect::Propose { sequence, command } => {
                    self.check_proposal(running, &command);
                    let now = self.now;
                    self.trace
                        .add(now, || format!("coordinator {id} proposes {}", short(&command)));
                    let proposal = Proposal {
                        proposer: running.proposer,
                        sequence,
                        command,
                    };
                    let entry = proposal.encode().expect("a proposal within its limits");
                    match running.node.propose(entry, PROPOSAL_TICKS) {
                        Ok(ticket) => drop(running.tickets.insert(ticket, sequence)),
                        Err(error) => events.push_back(Event::Proposed {
                            sequence,
                            result: result(Err(error)),
                        }),
                    }
                }
                Effect::Admit { session } => {
                    let now = self.now;
                    if let Some(session) = running.sessions.get_mut(&session) {
                        session.heard.since = now;
                        running.heard.insert(session.worker.clone(), session.heard);
                    }
                }
                Effect::Direct { session, directive } => self.direct(id, running, session, directive),
                Effect::Refuse { session, error: why } | Effect::EndSession { session, why } => {
                    self.end_session(id, running, session, &why);
                }
                Effect::Answer { .. } | Effect::Changed { .. } => {}
            }
        }
    }

    pub(super) fn direct(&mut self, id: u64, running: &Running, session: SessionId, directive: Directive) {
        let Some(session) = running.sessions.get(&session) else {
            return;
        };
        self.send(session.conn, Proc::Coordinator(id), Message::Directive(directive));
    }

    pub(super) fn end_session(
        &mut self,
        id: u64,
        running: &mut Running,
        session: SessionId,
        why: &AskRefusal,
    ) {
        let Some(session) = running.sessions.remove(&session) else {
            return;
        };
        running.by_conn.remove(&session.conn);
        let leader = match why {
            AskRefusal::NotLeader { leader } => leader.map(|leader| leader.0),
            AskRefusal::Refused(_) | AskRefusal::Unavailable(_) => None,
        };
        self.send(session.conn, Proc::Coordinator(id), Message::SessionOver(leader));
    }

    /// A leader may give up only workers that it has not heard of for long enough.
    pub(super) fn check_proposal(&mut self, running: &Running, command: &Command) {
        if let Command::WorkerLost { worker, .. } = command {
            let heard = running.heard.get(worker).copied().unwrap_or_default();
            let leads = running.leads_since;
            self.check(lease::check(worker.as_str(), self.now, leads, heard, LEASE_MS));
            self.coverage.workers_lost += 1;
        }
        if let Command::Place { .. } = command {
            self.coverage.placements += 1;
        }
    }

    /// What the leader says that the schedulers do, if it can be asked.
    pub(super) fn loads_for(&self, id: u64) -> Vec<SchedulerLoad> {
        let Some(leader) = self.leader() else {
            return Vec::new();
        };
        let (own, other) = (Proc::Coordinator(id), Proc::Coordinator(leader));
        if self.net.is_parted(own, other) || self.frozen.contains_key(&other) {
            return Vec::new();
        }
        let running = self.coordinators[&leader].up.as_ref();
        running.map_or_else(Vec::new, |running| {
            running.controller.loads(&running.node.machine().0)
        })
    }

    pub(in super::super) fn coordinator_message(&mut self, id: u64, conn: ConnId, message: Message) {
        match message {
            Message::Join(info) => self.with_coordinator(id, |world, running| {
                let session = SessionId(running.next_session);
                running.next_session += 1;
                let heard = lease::Heard {
                    since: world.now,
                    ..lease::Heard::default()
                };
                let worker = info.worker.clone();
                running.sessions.insert(session, Session { conn, worker, heard });
                running.by_conn.insert(conn, session);
                vec![Event::Joined { session, info }]
            }),
            Message::Report(report) => self.with_coordinator(id, |world, running| {
                let Some(&session) = running.by_conn.get(&conn) else {
                    return Vec::new();
                };
                let Some(one) = running.sessions.get_mut(&session) else {
                    return Vec::new();
                };
                one.heard.report = world.now;
                let worker = one.worker.clone();
                running.heard.insert(worker.clone(), one.heard);
                vec![Event::Reported {
                    session,
                    worker,
                    report,
                }]
            }),
            Message::Accepted | Message::Broken(_) | Message::Update(_) => {
                self.stream_message(conn, message);
            }
            Message::Directive(_)
            | Message::SessionOver(_)
            | Message::Submit(_)
            | Message::Step(_)
            | Message::Result { .. }
            | Message::Down { .. } => unreachable!("not for coordinators: {message:?}"),
        }
    }

    pub(in super::super) fn coordinator_closed(&mut self, id: u64, conn: ConnId) {
        self.stream_closed(conn);
        self.with_coordinator(id, |world, running| {
            let Some(session) = running.by_conn.remove(&conn) else {
                return Vec::new();
            };
            let Some(one) = running.sessions.remove(&session) else {
                return Vec::new();
            };
            let worker = one.worker.clone();
            let newest = running.sessions.values().all(|other| other.worker != worker);
            if let Some(heard) = running.heard.get_mut(&worker).filter(|_| newest) {
                heard.ended = Some(world.now);
            }
            let mut events = vec![Event::Ended {
                session,
                worker: worker.clone(),
            }];
            let process = world.workers.iter().find(|one| one.name == worker);
            let down = process.filter(|one| one.up.is_none()).map(|one| one.incarnation);
            // Nobody listens where it did.
            if let Some(incarnation) = down.filter(|_| world.rng.chance(50)) {
                events.push(Event::Gone { worker, incarnation });
            }
            events
        });
    }
}

pub(super) fn publish(running: &mut Running) {
    let state = &running.node.machine().0;
    let routes = routes(state, &running.controller.progress(state));
    if running.published == routes {
        return;
    }
    running.published = routes;
    for follower in &running.routes {
        follower.send_replace(Arc::clone(&running.published));
    }
}

fn short(command: &Command) -> String {
    let mut text = format!("{command:?}");
    text.truncate(text.floor_char_boundary(160));
    text
}
