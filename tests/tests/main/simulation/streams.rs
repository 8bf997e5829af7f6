//! Attempts between gateways and heads.
//!
//! In this world what a head still says to an attempt that was given up may come in the stream of the next one: the
//! gateway must drop it (ST-1).

use std::collections::BTreeMap;

use tramontane_coordinator::gateway::HeadError;
use tramontane_model::ids::RequestId;
use tramontane_proto::Progress;

use super::answers::unavailable;
use super::clients::Mark;
use super::heads::{Answer, Outgoing, Updates, updates};
use super::network::{ConnId, Message, Proc};
use super::world::World;

struct Stream {
    coordinator: u64,
    request: RequestId,
    key: u64,
    answer: Option<Answer>,
    updates: Option<Updates>,
}

#[derive(Default)]
pub(super) struct Streams {
    open: BTreeMap<ConnId, Stream>,
    by_key: BTreeMap<u64, ConnId>,
    /// Attempts that were given up, and what is still on its way to them.
    given_up: BTreeMap<ConnId, (u64, RequestId)>,
}

impl World {
    pub(super) fn outgoing(&mut self, outgoing: Outgoing) {
        match outgoing {
            Outgoing::Submit {
                from: (id, epoch),
                key,
                address,
                submission,
                answer,
            } => {
                if self.coordinators[&id].epoch != epoch {
                    return;
                }
                let worker = address.trim_start_matches('w').trim_end_matches(":1").parse();
                let to = Proc::Worker(worker.expect("a worker's address"));
                let conn = self.connect(Proc::Coordinator(id), to);
                self.coverage.resubmitted += u64::from(submission.attempt > 1);
                let stream = Stream {
                    coordinator: id,
                    request: submission.request,
                    key,
                    answer: Some(answer),
                    updates: None,
                };
                self.streams.open.insert(conn, stream);
                self.streams.by_key.insert(key, conn);
                self.send(conn, Proc::Coordinator(id), Message::Submit(submission));
            }
            Outgoing::Leave { key } => {
                let Some(conn) = self.streams.by_key.remove(&key) else {
                    return;
                };
                if let Some(stream) = self.streams.open.remove(&conn) {
                    self.streams
                        .given_up
                        .insert(conn, (stream.coordinator, stream.request));
                    self.hang_up(conn, Proc::Coordinator(stream.coordinator));
                }
            }
        }
    }

    pub(super) fn stream_message(&mut self, conn: ConnId, message: Message) {
        let Some(stream) = self.streams.open.get_mut(&conn) else {
            return;
        };
        let over = match message {
            Message::Accepted => {
                let (sender, stream_of_updates) = updates();
                stream.updates = Some(sender);
                let answer = stream.answer.take();
                // Whoever asked may have gone; then its guard tells.
                let _ = answer.map(|answer| answer.send(Ok(stream_of_updates)));
                false
            }
            Message::Update(update) => {
                let _ = stream.updates.as_ref().map(|updates| updates.send(Ok(update)));
                false
            }
            Message::Broken(error) => {
                stream.fail(error);
                true
            }
            Message::Join(_)
            | Message::Report(_)
            | Message::Directive(_)
            | Message::SessionOver(_)
            | Message::Submit(_)
            | Message::Step(_)
            | Message::Result { .. }
            | Message::Down { .. } => false,
        };
        if over {
            let coordinator = stream.coordinator;
            self.streams.remove(conn);
            self.hang_up(conn, Proc::Coordinator(coordinator));
        }
    }

    pub(super) fn stream_closed(&mut self, conn: ConnId) {
        if let Some(mut stream) = self.streams.remove(conn) {
            self.streams
                .given_up
                .insert(conn, (stream.coordinator, stream.request));
            stream.fail(unavailable("the connection broke"));
        }
    }

    /// The attempts of a client's latest try, for whoever wonders why it waits.
    pub(super) fn stream_of(&self, client: usize, tries: u64) -> String {
        let request = RequestId((client as u128) << 64 | u128::from(tries));
        let streams = self.streams.open.iter();
        let own = streams.filter(|(_, stream)| stream.request == request);
        let each = own.map(|(&conn, stream)| {
            let ends = [self.net.is_open(conn, 0), self.net.is_open(conn, 1)];
            format!("{conn:?} open {ends:?} taken {}", stream.updates.is_some())
        });
        each.collect::<Vec<_>>().join(", ")
    }

    pub(super) fn forget_streams(&mut self, coordinator: u64) {
        self.streams
            .open
            .retain(|_, stream| stream.coordinator != coordinator);
        self.streams.given_up.retain(|_, (id, _)| *id != coordinator);
    }

    /// What arrives at an end that is closed: it may reach the request's next attempt.
    pub(super) fn late_update(&mut self, conn: ConnId, message: Message) {
        let Some(&(coordinator, request)) = self.streams.given_up.get(&conn) else {
            return;
        };
        let Message::Update(mut update) = message else {
            return;
        };
        let mut streams = self.streams.open.values().rev();
        let next = streams.find(|stream| stream.coordinator == coordinator && stream.request == request);
        let Some(updates) = next.and_then(|stream| stream.updates.as_ref()) else {
            return;
        };
        if let Progress::Token { token, .. } = &mut update.progress {
            Mark::make_stale(token);
            self.coverage.stale_tokens += 1;
            let _ = updates.send(Ok(update));
        }
    }
}

impl Streams {
    /// Whose gateway it comes from.
    pub(super) fn sender(&self, outgoing: &Outgoing) -> Option<u64> {
        match outgoing {
            Outgoing::Submit { from: (id, _), .. } => Some(*id),
            Outgoing::Leave { key } => {
                let stream = self.open.get(self.by_key.get(key)?)?;
                Some(stream.coordinator)
            }
        }
    }

    fn remove(&mut self, conn: ConnId) -> Option<Stream> {
        let stream = self.open.remove(&conn)?;
        self.by_key.remove(&stream.key);
        Some(stream)
    }
}

impl Stream {
    fn fail(&mut self, error: HeadError) {
        // Whoever waits may have gone.
        match (self.answer.take(), &self.updates) {
            (Some(answer), _) => drop(answer.send(Err(error))),
            (None, Some(updates)) => drop(updates.send(Err(error))),
            (None, None) => {}
        }
    }
}
