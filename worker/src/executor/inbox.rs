//! The inbox of a device thread: one channel, sorted into queues as it is drained.
//!
//! Every entry holds a place that its sender reserved (see [`super::handle`]), so channel and queues together hold
//! no more than [`CAPACITY`] entries.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::time::Instant;

use tramontane_model::ids::DeviceRef;
use tramontane_proto::ExpertWork;

use super::command::{Command, Control, ControlCommand, StepCommand};
use super::exchange::{
    Answer, ExchangeError, ExchangeEvent, ExpertAnswer, ExpertExchange, ExpertLinks, ExpertRequest,
};
use super::shared::Shared;

/// Steps that may wait on a device.
pub const STEP_PLACES: usize = 64;
/// Requests for experts that may wait on a device: each owner has at most one for each of its groups.
pub const EXPERT_PLACES: usize = 256;
/// Answers that may be outstanding for a device: one for each remote group of its stage.
pub const ANSWER_PLACES: usize = tramontane_model::spec::MAX_EXPERTS as usize;
/// Changes of what a device holds that may wait.
pub const CONTROL_PLACES: usize = 16;
/// Entries of the channel: all places, and one for the order to stop.
pub(super) const CAPACITY: usize = STEP_PLACES + EXPERT_PLACES + ANSWER_PLACES + CONTROL_PLACES + 1;

/// What the thread is to do next.
#[derive(Debug)]
pub(super) enum Next {
    Control(Control),
    Experts(ExpertRequest),
    Step(StepCommand),
    /// Nothing came in time.
    Nothing,
}

/// The receiving side, owned by the device thread.
#[derive(Debug)]
pub(super) struct Inbox {
    receiver: Receiver<Command>,
    controls: VecDeque<ControlCommand>,
    experts: VecDeque<ExpertRequest>,
    steps: VecDeque<StepCommand>,
    answers: VecDeque<Answer>,
}

impl Inbox {
    pub(super) fn new(receiver: Receiver<Command>) -> Self {
        Self {
            receiver,
            controls: VecDeque::new(),
            experts: VecDeque::new(),
            steps: VecDeque::new(),
            answers: VecDeque::new(),
        }
    }

    /// What to do next; waits if there is nothing, but no longer than until `limit`. Others' requests come before own
    /// steps: somebody waits for them in the middle of a step.
    pub(super) fn next(&mut self, limit: Option<Instant>) -> Next {
        loop {
            self.drain();
            // Nothing runs that they could answer.
            self.answers.clear();
            if let Some(command) = self.controls.pop_front() {
                return Next::Control(command.control);
            }
            if let Some(request) = self.experts.pop_front() {
                return Next::Experts(request);
            }
            if let Some(step) = self.steps.pop_front() {
                return Next::Step(step);
            }
            let received = match limit {
                None => self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(limit) => self
                    .receiver
                    .recv_timeout(limit.saturating_duration_since(Instant::now())),
            };
            match received {
                Ok(command) => self.sort(command),
                Err(RecvTimeoutError::Timeout) => return Next::Nothing,
                Err(RecvTimeoutError::Disconnected) => return Next::Control(Control::Stop),
            }
        }
    }

    fn drain(&mut self) {
        loop {
            match self.receiver.try_recv() {
                Ok(command) => self.sort(command),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
    }

    fn sort(&mut self, command: Command) {
        match command {
            Command::Control(command) => self.controls.push_back(command),
            Command::Experts(request) => self.experts.push_back(request),
            Command::Step(step) => self.steps.push_back(step),
            Command::Answer(answer) => self.answers.push_back(answer),
        }
    }
}

/// The exchange of one step: sends over the links, receives through the inbox.
pub(super) struct InboxExchange<'a> {
    inbox: &'a mut Inbox,
    links: &'a dyn ExpertLinks,
    sender: &'a SyncSender<Command>,
    shared: &'a Shared,
    /// Grows over all steps of the thread, so that a late answer is never taken for another.
    next_ticket: &'a mut u64,
    /// The group of each request that has no answer yet.
    open: BTreeMap<u64, u32>,
}

impl<'a> InboxExchange<'a> {
    pub(super) fn new(
        inbox: &'a mut Inbox,
        links: &'a dyn ExpertLinks,
        sender: &'a SyncSender<Command>,
        shared: &'a Shared,
        next_ticket: &'a mut u64,
    ) -> Self {
        Self {
            inbox,
            links,
            sender,
            shared,
            next_ticket,
            open: BTreeMap::new(),
        }
    }
}

impl ExpertExchange for InboxExchange<'_> {
    fn send(&mut self, group: u32, holder: &DeviceRef, work: ExpertWork) -> Result<(), ExchangeError> {
        let place = Arc::clone(&self.shared.places.answers)
            .try_acquire_owned()
            .map_err(|_| ExchangeError::Group {
                group,
                problem: format!("{ANSWER_PLACES} answers are outstanding already"),
            })?;
        let ticket = *self.next_ticket;
        *self.next_ticket += 1;
        self.open.insert(ticket, group);
        let answer = ExpertAnswer::to_inbox(ticket, self.sender.clone(), place);
        self.links.send(holder, work, answer);
        Ok(())
    }

    fn next(&mut self, deadline: Instant) -> Result<ExchangeEvent, ExchangeError> {
        loop {
            self.inbox.drain();
            if !self.inbox.controls.is_empty() {
                return Err(ExchangeError::Interrupted);
            }
            if let Some(request) = self.inbox.experts.pop_front() {
                return Ok(ExchangeEvent::Request(request));
            }
            while let Some(answer) = self.inbox.answers.pop_front() {
                // Answers to requests of earlier steps, which failed meanwhile, are dropped.
                let Some(group) = self.open.remove(&answer.ticket) else {
                    continue;
                };
                return match answer.results {
                    Ok(results) => Ok(ExchangeEvent::Results { group, results }),
                    Err(problem) => Err(ExchangeError::Group { group, problem }),
                };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Whoever waits for others does not hang.
            let work = self.shared.busy.take();
            let received = self.inbox.receiver.recv_timeout(left);
            self.shared.busy.set(work.map(|fence| (fence, Instant::now())));
            match received {
                Ok(command) => self.inbox.sort(command),
                Err(RecvTimeoutError::Timeout) => return Err(ExchangeError::Deadline),
                Err(RecvTimeoutError::Disconnected) => return Err(ExchangeError::Interrupted),
            }
        }
    }
}
