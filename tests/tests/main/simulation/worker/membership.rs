//! A worker's session with the leader, and what it is told to hold.

use tramontane_model::ids::ReplicaId;
use tramontane_model::placement::{Replica, Stage};
use tramontane_proto::Directive;

use super::{BACKOFF_MS, Running, Session, Timer, number_of, uses};
use crate::simulation::network::{ConnId, Message, Proc};
use crate::simulation::scenario::HEARTBEAT_MS;
use crate::simulation::world::World;

impl World {
    pub(super) fn join(&mut self, number: usize, running: &mut Running) {
        let coordinators = self.scenario.coordinators;
        let to = running.redirected.take().unwrap_or_else(|| {
            running.next_coordinator += 1;
            1 + running.next_coordinator % coordinators
        });
        let conn = self.connect(Proc::Worker(number), Proc::Coordinator(to));
        running.session = Session::Joining {
            conn,
            since: self.now,
        };
        let info = self.workers[number].info();
        self.send(conn, Proc::Worker(number), Message::Join(info));
    }

    pub(super) fn join_again(&mut self, number: usize, running: &mut Running) {
        running.session = Session::None;
        let pause = running.pause;
        running.pause = (pause * 2).min(BACKOFF_MS.1);
        let pause = if running.redirected.is_some() { 1 } else { pause };
        self.timer(number, pause, Timer::Join);
    }

    pub(super) fn session_closed(&mut self, number: usize, running: &mut Running, closed: ConnId) {
        let current = match running.session {
            Session::None => return,
            Session::Joining { conn, .. } | Session::Member { conn } => conn,
        };
        if current == closed {
            self.join_again(number, running);
        }
    }

    pub(super) fn directed(
        &mut self,
        number: usize,
        running: &mut Running,
        conn: ConnId,
        directive: Directive,
    ) {
        let is_current = match running.session {
            Session::None => false,
            Session::Joining { conn: current, .. } | Session::Member { conn: current } => current == conn,
        };
        if !is_current {
            return;
        }
        match directive {
            Directive::Welcome { .. } => {
                running.session = Session::Member { conn };
                running.pause = BACKOFF_MS.0;
                self.report_now(number, running);
                self.timer(number, HEARTBEAT_MS, Timer::Beat(conn));
            }
            Directive::Assign { replica, .. } => self.assign(number, running, replica),
            Directive::Release(fence) => {
                let held = running.assigned.get(&fence.replica);
                if held.is_some_and(|held| held.generation <= fence.generation) {
                    self.unassign(number, running, fence.replica);
                }
                running.device.release(fence);
                self.report_now(number, running);
            }
            Directive::StandBy(copies) => {
                running.device.copies = copies.values().map(|shares| shares.len() as u64).sum();
                self.report_now(number, running);
            }
            Directive::Leave { .. } => {}
        }
    }

    pub(super) fn assign(&mut self, number: usize, running: &mut Running, replica: Replica) {
        let fence = replica.fence();
        if let Some(current) = running.assigned.get(&replica.id) {
            if current.generation > replica.generation {
                self.coverage.stale_steps += 1;
                return;
            }
            if *current == replica {
                return;
            }
        }
        self.unassign(number, running, replica.id);
        let now = self.now;
        self.trace
            .add(now, || format!("worker {number} is assigned {fence}"));
        if !uses(&replica, number) {
            running.device.release(fence);
            return;
        }
        let own = |stage: &Stage| number_of(&stage.owner.worker) == number;
        let stage = replica.stages.iter().position(own);
        match running.device.assign(&replica, stage) {
            Ok(true) => {
                let order = running.device.order;
                let takes = 50 + self.rng.below(500);
                self.timer(number, takes, Timer::Loaded(order));
            }
            Ok(false) => {}
            // The whole assignment is not followed.
            Err(_) => return,
        }
        if stage == Some(0) {
            self.new_head(number, running, &replica);
        }
        running.assigned.insert(replica.id, replica);
        self.report_now(number, running);
    }

    pub(super) fn unassign(&mut self, number: usize, running: &mut Running, replica: ReplicaId) {
        if running.assigned.remove(&replica).is_some() {
            self.end_head(number, running, replica);
        }
    }
}
