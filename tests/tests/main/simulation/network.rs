//! The network: single messages that are lost, repeated, late and overtaken, and connections that keep their order until
//! they break.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tramontane_coordinator::gateway::HeadError;
use tramontane_model::ids::Fence;
use tramontane_model::members::{WorkerInfo, WorkerReport};
use tramontane_model::step::{StepBatch, StepResult};
use tramontane_proto::{Directive, GenerateSubmission, GenerateUpdate};
use tramontane_sim::Rng;

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Proc {
    Coordinator(u64),
    Worker(usize),
}

/// What goes over connections.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Join(WorkerInfo),
    Report(WorkerReport),
    Directive(Directive),
    /// The session is over; who leads, if somebody else does.
    SessionOver(Option<u64>),
    Submit(Box<GenerateSubmission>),
    Accepted,
    /// The attempt was refused, or broke off.
    Broken(HeadError),
    Update(GenerateUpdate),
    Step(Box<Step>),
    Result {
        run: u64,
        result: StepResult,
    },
    /// The pipeline of this run cannot go on.
    Down {
        fence: Fence,
        run: u64,
    },
}

/// A step on its way through the stages of one opening of a pipeline.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) run: u64,
    /// The worker whose scheduler made it.
    pub(super) head: usize,
    pub(super) stage: usize,
    pub(super) batch: StepBatch,
    /// What the stages so far read for each chunk.
    pub(super) states: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConnId(pub(super) u64);

#[derive(Debug)]
struct Conn {
    ends: [Proc; 2],
    /// Whether each end still has it open.
    open: [bool; 2],
    /// Nothing that is sent from now on arrives at an end before this.
    not_before: [u64; 2],
    /// What has arrived at an end waits until then, because something before it does.
    held: [u64; 2],
    /// What is on its way to each end, in the order in which it was sent.
    sent: [VecDeque<Message>; 2],
}

/// How bad it is, in percent of messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub(super) lost: u64,
    pub(super) repeated: u64,
    pub(super) late: u64,
}

impl Weather {
    pub(super) const FAIR: Self = Self {
        lost: 0,
        repeated: 0,
        late: 0,
    };
    pub(super) const FOUL: Self = Self {
        lost: 8,
        repeated: 8,
        late: 8,
    };
}

pub(super) struct Network {
    pub(super) weather: Weather,
    cut: BTreeSet<(Proc, Proc)>,
    conns: BTreeMap<ConnId, Conn>,
    next_conn: u64,
}

impl Network {
    pub(super) fn new(weather: Weather) -> Self {
        Self {
            weather,
            cut: BTreeSet::new(),
            conns: BTreeMap::new(),
            next_conn: 0,
        }
    }

    /// Lets nothing through in one direction.
    pub(super) fn cut(&mut self, from: Proc, to: Proc) {
        self.cut.insert((from, to));
    }

    pub(super) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(super) fn is_cut(&self, from: Proc, to: Proc) -> bool {
        self.cut.contains(&(from, to))
    }

    /// Whether anything is cut in either direction.
    pub(super) fn is_parted(&self, one: Proc, other: Proc) -> bool {
        self.is_cut(one, other) || self.is_cut(other, one)
    }

    fn delay(&self, rng: &mut Rng) -> u64 {
        if rng.chance(self.weather.late) {
            1 + rng.below(250)
        } else {
            1 + rng.below(4)
        }
    }

    /// When the copies of a single message arrive.
    pub(super) fn datagram(&self, now: u64, rng: &mut Rng) -> Vec<u64> {
        if rng.chance(self.weather.lost) {
            return Vec::new();
        }
        let copies = 1 + u64::from(rng.chance(self.weather.repeated));
        (0..copies).map(|_| now + self.delay(rng)).collect()
    }

    pub(super) fn connect(&mut self, from: Proc, to: Proc) -> ConnId {
        self.next_conn += 1;
        let conn = Conn {
            ends: [from, to],
            open: [true, true],
            not_before: [0, 0],
            held: [0, 0],
            sent: [VecDeque::new(), VecDeque::new()],
        };
        self.conns.insert(ConnId(self.next_conn), conn);
        ConnId(self.next_conn)
    }

    /// When something arrives because of what `from` sends now, and at which end; nothing if it has the connection no
    /// longer.
    pub(super) fn send(
        &mut self,
        id: ConnId,
        from: Proc,
        message: Message,
        now: u64,
        rng: &mut Rng,
    ) -> Option<(usize, u64)> {
        let delay = self.delay(rng);
        let conn = self.conns.get_mut(&id)?;
        let own = usize::from(conn.ends[0] != from);
        if !conn.open[own] {
            return None;
        }
        let at = (now + delay).max(conn.not_before[1 - own]);
        conn.not_before[1 - own] = at;
        conn.sent[1 - own].push_back(message);
        Some((1 - own, at))
    }

    /// What arrives at an end: the first of what is on its way, whatever made it arrive.
    pub(super) fn receive(&mut self, id: ConnId, end: usize) -> Option<Message> {
        self.conns.get_mut(&id)?.sent[end].pop_front()
    }

    /// Until when what arrives at an end now must wait.
    pub(super) fn hold(&mut self, id: ConnId, end: usize, now: u64) -> Option<u64> {
        let conn = self.conns.get(&id)?;
        let parted = self.is_cut(conn.ends[1 - end], conn.ends[end]);
        let conn = self.conns.get_mut(&id)?;
        if parted && conn.held[end] <= now {
            conn.held[end] = now + 50;
            conn.not_before[end] = conn.not_before[end].max(now + 50);
        }
        Some(conn.held[end]).filter(|until| *until > now)
    }

    pub(super) fn end(&self, id: ConnId, end: usize) -> Option<Proc> {
        Some(self.conns.get(&id)?.ends[end])
    }

    pub(super) fn is_open(&self, id: ConnId, end: usize) -> bool {
        self.conns.get(&id).is_some_and(|conn| conn.open[end])
    }

    /// Closes one end. Gives the other, and who is there, if it is open still.
    pub(super) fn close(&mut self, id: ConnId, end: usize) -> Option<(usize, Proc)> {
        let conn = self.conns.get_mut(&id)?;
        conn.open[end] = false;
        let other = conn.open[1 - end].then(|| (1 - end, conn.ends[1 - end]));
        if other.is_none() {
            self.conns.remove(&id);
        }
        other
    }

    /// The end that a process has of a connection.
    pub(super) fn own_end(&self, id: ConnId, own: Proc) -> Option<usize> {
        let conn = self.conns.get(&id)?;
        Some(usize::from(conn.ends[0] != own))
    }

    /// Connections with an open end at the process, and that end.
    pub(super) fn of(&self, own: Proc) -> Vec<(ConnId, usize)> {
        let mut found = Vec::new();
        for (&id, conn) in &self.conns {
            for end in 0..2 {
                if conn.ends[end] == own && conn.open[end] {
                    found.push((id, end));
                }
            }
        }
        found
    }

    /// Connections over which something is cut.
    pub(super) fn parted(&self) -> Vec<ConnId> {
        let parted = |conn: &Conn| self.is_parted(conn.ends[0], conn.ends[1]);
        let conns = self.conns.iter().filter(|(_, conn)| parted(conn));
        conns.map(|(&id, _)| id).collect()
    }
}
