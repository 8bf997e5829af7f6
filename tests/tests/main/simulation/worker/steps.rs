//! Steps on their way through the stages, over links that are lost and never mended.

use tramontane_model::ids::Fence;

use super::{CONTROL, Link, Pipeline, Running, Timer, number_of};
use crate::simulation::device::{Done, Refused};
use crate::simulation::network::{Message, Proc, Step};
use crate::simulation::world::World;

impl World {
    /// Sends over a pipeline's link to another worker; what is lost with a link stays lost.
    pub(super) fn link(
        &mut self,
        number: usize,
        running: &mut Running,
        to: usize,
        pipeline: Pipeline,
        message: Message,
    ) {
        let (own, other) = (Proc::Worker(number), Proc::Worker(to));
        let conn = match running.links.get(&(to, pipeline.run)) {
            Some(link) if link.conn.is_some() || pipeline.run != CONTROL => link.conn,
            Some(_) | None => Some(self.connect(own, other)),
        };
        running.links.insert((to, pipeline.run), Link { pipeline, conn });
        if let Some(conn) = conn {
            self.send(conn, own, message);
        }
    }

    /// A step reaches the device of one of its stages.
    pub(in super::super) fn enqueue_step(&mut self, number: usize, running: &mut Running, step: Step) {
        running.device.steps.push_back(step);
        self.next_step(number, running);
    }

    pub(super) fn next_step(&mut self, number: usize, running: &mut Running) {
        while !running.device.is_busy {
            let Some(step) = running.device.steps.pop_front() else {
                return;
            };
            let (fence, run, head) = (step.batch.fence, step.run, step.head);
            if running.refused.contains(&run) {
                self.coverage.stale_steps += 1;
                continue;
            }
            match running.device.run(step) {
                Ok(Some(done)) => {
                    running.device.is_busy = true;
                    running.device.running = Some(done);
                    let slow = !self.healed && self.rng.chance(1);
                    let takes = if slow { 300 } else { 2 + self.rng.below(30) };
                    self.timer(number, takes, Timer::StepDone);
                }
                Ok(None) => self.coverage.stale_steps += 1,
                Err(Refused::Violation(violation)) => self.check(Err(violation)),
                Err(Refused::Fenced) => {
                    self.coverage.stale_steps += 1;
                    running.refused.insert(run);
                    self.down(number, running, head, fence, run);
                }
            }
        }
    }

    pub(super) fn down(&mut self, number: usize, running: &mut Running, head: usize, fence: Fence, run: u64) {
        if head != number {
            let pipeline = Pipeline {
                fence,
                run: CONTROL,
                head,
            };
            return self.link(number, running, head, pipeline, Message::Down { fence, run });
        }
        let own = running.heads.get(&fence.replica);
        if own.is_some_and(|own| own.fence == fence && own.run == Some(run)) {
            self.lose_pipeline(number, running, fence);
        }
    }

    pub(super) fn step_done(&mut self, number: usize, running: &mut Running) {
        running.device.is_busy = false;
        match running.device.running.take() {
            Some(Done::Sampled { run, head, result }) if head == number => {
                self.result(number, running, run, result);
            }
            Some(Done::Sampled { run, head, result }) => {
                let fence = result.fence;
                let pipeline = Pipeline { fence, run, head };
                self.link(number, running, head, pipeline, Message::Result { run, result });
            }
            Some(Done::Forward(step)) => self.forward(number, running, *step),
            None => {}
        }
        self.next_step(number, running);
    }

    pub(super) fn forward(&mut self, number: usize, running: &mut Running, step: Step) {
        let replica = running.assigned.get(&step.batch.fence.replica);
        let replica = replica.filter(|replica| replica.fence() == step.batch.fence);
        let Some(next) = replica.and_then(|replica| replica.stages.get(step.stage)) else {
            // The placement is gone: so are its links.
            let (fence, run, head) = (step.batch.fence, step.run, step.head);
            return self.down(number, running, head, fence, run);
        };
        let to = number_of(&next.owner.worker);
        let pipeline = Pipeline {
            fence: step.batch.fence,
            run: step.run,
            head: step.head,
        };
        self.link(number, running, to, pipeline, Message::Step(Box::new(step)));
    }
}
