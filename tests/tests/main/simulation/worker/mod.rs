//! A worker in the world: its membership, what it does for each replica, its one device, and the links between stages, as
//! in the program (`worker/src/rpc/{session,assignments,stage}.rs`).

mod membership;
mod steps;

use std::collections::{BTreeMap, BTreeSet};

use tramontane_model::ids::{DeviceIndex, DeviceRef, Fence, ReplicaId, WorkerId};
use tramontane_model::members::{DeviceInfo, WorkerInfo, WorkerReport};
use tramontane_model::placement::Replica;

use super::device::Device;
use super::head::Head;
use super::history;
use super::network::{ConnId, Message, Proc};
use super::scenario::HEARTBEAT_MS;
use super::world::{Happening, World};

/// Longest wait for a coordinator's welcome.
const WELCOME_MS: u64 = 5000;
/// First and longest pause between attempts to find the leader.
const BACKOFF_MS: (u64, u64) = (100, 2000);
/// How often a worker looks at its deadlines.
const LOOK_MS: u64 = 100;

#[derive(Debug)]
pub(super) enum Timer {
    Join,
    Beat(ConnId),
    Look,
    Loaded(u64),
    StepDone,
    Open(Fence),
}

pub(super) struct Worker {
    pub(super) name: WorkerId,
    memory: u64,
    pub(super) incarnation: u64,
    pub(super) epoch: u64,
    pub(super) up: Option<Box<Running>>,
}

enum Session {
    None,
    Joining { conn: ConnId, since: u64 },
    Member { conn: ConnId },
}

pub(super) struct Running {
    session: Session,
    next_coordinator: u64,
    redirected: Option<u64>,
    pause: u64,
    assigned: BTreeMap<ReplicaId, Replica>,
    pub(super) device: Device,
    pub(super) heads: BTreeMap<ReplicaId, Head>,
    /// To other workers: each opening of a pipeline has links of its own, which are never mended.
    links: BTreeMap<(usize, u64), Link>,
    /// Links of others that end here.
    incoming: BTreeMap<ConnId, Pipeline>,
    /// Openings of which a step was refused: the link is lost with it, and what comes after it in it.
    refused: BTreeSet<u64>,
}

/// One opening of a pipeline.
#[derive(Clone, Copy)]
struct Pipeline {
    fence: Fence,
    run: u64,
    /// The worker whose scheduler feeds it.
    head: usize,
}

struct Link {
    pipeline: Pipeline,
    /// None once it broke.
    conn: Option<ConnId>,
}

/// What carries word of a loss: not a part of any pipeline.
const CONTROL: u64 = 0;

impl Worker {
    pub(super) fn new(number: usize, memory: u64) -> Self {
        Self {
            name: WorkerId::new(&format!("w{number}")).expect("a name"),
            memory,
            incarnation: 0,
            epoch: 0,
            up: None,
        }
    }

    fn info(&self) -> WorkerInfo {
        WorkerInfo {
            worker: self.name.clone(),
            incarnation: self.incarnation,
            address: format!("{}:1", self.name),
            pid: 1,
            version: "0".to_owned(),
            model_fingerprint: [7; 32],
            devices: vec![DeviceInfo {
                index: DeviceIndex(0),
                adapter: "hash".to_owned(),
                driver: "1".to_owned(),
                kind: "hash".to_owned(),
                is_cpu: number_of(&self.name).is_multiple_of(2),
                memory_bytes: self.memory,
                max_binding_bytes: 1 << 20,
            }],
        }
    }

    pub(super) fn device(&self) -> DeviceRef {
        DeviceRef {
            worker: self.name.clone(),
            device: DeviceIndex(0),
        }
    }
}

fn number_of(worker: &WorkerId) -> usize {
    worker
        .as_str()
        .trim_start_matches('w')
        .parse()
        .expect("a worker's number")
}

fn uses(replica: &Replica, number: usize) -> bool {
    replica
        .devices()
        .iter()
        .any(|device| number_of(&device.worker) == number)
}

impl Running {
    fn report(&self) -> WorkerReport {
        WorkerReport {
            devices: vec![self.device.report()],
            loads: self.heads.values().map(Head::load).collect(),
            leaving: false,
        }
    }
}

impl World {
    pub(super) fn timer(&mut self, number: usize, milliseconds: u64, timer: Timer) {
        let epoch = self.workers[number].epoch;
        self.after(milliseconds, Happening::Worker { number, epoch, timer });
    }

    pub(super) fn start_worker(&mut self, number: usize) {
        let incarnation = self.rng.next();
        let worker = &mut self.workers[number];
        worker.epoch += 1;
        worker.incarnation = incarnation;
        worker.up = Some(Box::new(Running {
            session: Session::None,
            next_coordinator: number as u64,
            redirected: None,
            pause: BACKOFF_MS.0,
            assigned: BTreeMap::new(),
            device: Device::new(),
            heads: BTreeMap::new(),
            links: BTreeMap::new(),
            incoming: BTreeMap::new(),
            refused: BTreeSet::new(),
        }));
        let now = self.now;
        self.trace.add(now, || format!("worker {number} starts"));
        let soon = 1 + self.rng.below(100);
        self.timer(number, soon, Timer::Join);
        self.timer(number, LOOK_MS, Timer::Look);
    }

    pub(super) fn crash_worker(&mut self, number: usize) {
        let worker = &mut self.workers[number];
        if worker.up.take().is_none() {
            return;
        }
        worker.epoch += 1;
        self.coverage.restarts += 1;
        self.after_crash(Proc::Worker(number));
    }

    fn with_worker(&mut self, number: usize, act: impl FnOnce(&mut Self, &mut Running)) {
        let Some(mut running) = self.workers[number].up.take() else {
            return;
        };
        act(self, &mut running);
        self.workers[number].up = Some(running);
    }

    pub(super) fn worker_timer(&mut self, number: usize, timer: Timer) {
        self.with_worker(number, |world, running| match timer {
            Timer::Join => world.join(number, running),
            Timer::Beat(conn) => {
                if let Session::Member { conn: current } = running.session
                    && current == conn
                {
                    world.send(conn, Proc::Worker(number), Message::Report(running.report()));
                    world.timer(number, HEARTBEAT_MS, Timer::Beat(conn));
                }
            }
            Timer::Look => {
                world.head_elapsed(number, running);
                if let Session::Joining { conn, since } = running.session
                    && world.now >= since + WELCOME_MS
                {
                    world.hang_up(conn, Proc::Worker(number));
                    world.join_again(number, running);
                }
                world.timer(number, LOOK_MS, Timer::Look);
            }
            Timer::Loaded(order) => {
                if let Some(fence) = running.device.loaded(order) {
                    let device = world.workers[number].device();
                    history::with(|history| history.ready.insert((device, fence)));
                    world.report_now(number, running);
                }
            }
            Timer::StepDone => world.step_done(number, running),
            Timer::Open(fence) => world.open_pipeline(number, running, fence),
        });
    }

    fn report_now(&mut self, number: usize, running: &Running) {
        if let Session::Member { conn } = running.session {
            self.send(conn, Proc::Worker(number), Message::Report(running.report()));
        }
    }

    pub(super) fn worker_message(&mut self, number: usize, conn: ConnId, message: Message) {
        self.with_worker(number, |world, running| match message {
            Message::Directive(directive) => world.directed(number, running, conn, directive),
            Message::SessionOver(leader) => {
                world.hang_up(conn, Proc::Worker(number));
                running.redirected = leader;
                world.session_closed(number, running, conn);
            }
            Message::Submit(submission) => world.submitted(number, running, conn, *submission),
            Message::Step(step) => {
                let (fence, run, head) = (step.batch.fence, step.run, step.head);
                running.incoming.insert(conn, Pipeline { fence, run, head });
                world.enqueue_step(number, running, *step);
            }
            Message::Result { run, result } => {
                let (fence, head) = (result.fence, number);
                running.incoming.insert(conn, Pipeline { fence, run, head });
                world.result(number, running, run, result);
            }
            Message::Down { fence, run } => {
                let head = running.heads.get(&fence.replica);
                if head.is_some_and(|head| head.fence == fence && head.run == Some(run)) {
                    world.lose_pipeline(number, running, fence);
                }
            }
            Message::Join(_)
            | Message::Report(_)
            | Message::Accepted
            | Message::Broken(_)
            | Message::Update(_) => unreachable!("not for workers: {message:?}"),
        });
    }

    pub(super) fn worker_closed(&mut self, number: usize, conn: ConnId) {
        self.with_worker(number, |world, running| {
            world.session_closed(number, running, conn);
            world.left(number, running, conn);
            let mut lost = running.incoming.remove(&conn);
            for (&(_, run), link) in &mut running.links {
                if link.conn == Some(conn) {
                    link.conn = None;
                    lost = Some(link.pipeline).filter(|_| run != CONTROL);
                }
            }
            if let Some(Pipeline { fence, run, head }) = lost {
                world.down(number, running, head, fence, run);
            }
        });
    }

    /// A worker's device fails.
    pub(super) fn fail_device(&mut self, number: usize) {
        self.with_worker(number, |world, running| {
            if running.device.fail() {
                let now = world.now;
                world
                    .trace
                    .add(now, || format!("the device of worker {number} fails"));
                world.report_now(number, running);
            }
        });
    }
}
