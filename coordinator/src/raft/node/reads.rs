//! Linearizable reads: each waits until a quorum confirmed the leader after the read was asked for, and until
//! everything committed by then is applied here.
//!
//! raft-rs drops a request silently without a leader, and before a new leader has committed, so requests are
//! repeated under a fresh number. Reads that arrive together share a request.

use super::Ticket;
use super::error::ReadError;
use crate::raft::identity::HEARTBEAT_TICKS;

/// Most reads that wait at a time.
const MAX_WAITING: usize = 4096;
/// Ticks after which a request is repeated: time enough for a heartbeat and its answer.
const REPEAT_TICKS: u64 = 2 * HEARTBEAT_TICKS as u64;

#[derive(Clone, Copy)]
enum Progress {
    /// No request was made since the read arrived.
    New,
    /// The first request made since then has this number; an answer to it or to a later one will do.
    Asked(u64),
    /// Applied here up to this entry, the read may go on.
    Confirmed(u64),
}

struct Waiting {
    ticket: Ticket,
    deadline: u64,
    progress: Progress,
}

/// The waiting reads.
pub(super) struct Reads {
    waiting: Vec<Waiting>,
    /// Which start of this coordinator the numbers belong to: an answer to an earlier one must not confirm.
    start: u64,
    last_number: u64,
    last_asked: u64,
}

impl Reads {
    pub(super) fn new(start: u64) -> Self {
        Self {
            waiting: Vec::new(),
            start,
            last_number: 0,
            last_asked: 0,
        }
    }

    pub(super) fn add(&mut self, ticket: Ticket, deadline: u64) -> Result<(), ReadError> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(ReadError::Busy);
        }
        self.waiting.push(Waiting {
            ticket,
            deadline,
            progress: Progress::New,
        });
        Ok(())
    }

    /// The context of a request that must be made at `now`, if one must.
    pub(super) fn request(&mut self, now: u64) -> Option<Vec<u8>> {
        let overdue = now >= self.last_asked + REPEAT_TICKS;
        let due = self.waiting.iter().any(|waiting| match waiting.progress {
            Progress::New => true,
            Progress::Asked(_) => overdue,
            Progress::Confirmed(_) => false,
        });
        if !due {
            return None;
        }
        self.last_number += 1;
        self.last_asked = now;
        for waiting in &mut self.waiting {
            if let Progress::New = waiting.progress {
                waiting.progress = Progress::Asked(self.last_number);
            }
        }
        Some([self.start.to_le_bytes(), self.last_number.to_le_bytes()].concat())
    }

    /// Takes the answer to the request with this context: entry `index` was committed when it was made.
    pub(super) fn answered(&mut self, context: &[u8], index: u64) {
        let Some((start, number)) = context.split_at_checked(8) else {
            return;
        };
        let (Ok(start), Ok(number)) = (start.try_into(), number.try_into()) else {
            return;
        };
        if u64::from_le_bytes(start) != self.start {
            return;
        }
        let number = u64::from_le_bytes(number);
        for waiting in &mut self.waiting {
            if let Progress::Asked(first) = waiting.progress
                && first <= number
            {
                waiting.progress = Progress::Confirmed(index);
            }
        }
    }

    /// Takes out the reads that may go on now that `applied` is applied.
    pub(super) fn settle(&mut self, applied: u64) -> Vec<Ticket> {
        self.take(|waiting| match waiting.progress {
            Progress::Confirmed(index) => index <= applied,
            Progress::New | Progress::Asked(_) => false,
        })
    }

    /// Takes out the reads whose deadline has passed at `now`.
    pub(super) fn expire(&mut self, now: u64) -> Vec<Ticket> {
        self.take(|waiting| waiting.deadline <= now)
    }

    /// Takes out all.
    pub(super) fn shut_down(&mut self) -> Vec<Ticket> {
        self.take(|_| true)
    }

    fn take(&mut self, which: impl Fn(&Waiting) -> bool) -> Vec<Ticket> {
        self.waiting
            .extract_if(.., |waiting| which(waiting))
            .map(|waiting| waiting.ticket)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(context: &[u8]) -> u64 {
        u64::from_le_bytes(context[8..].try_into().unwrap())
    }

    #[test]
    fn a_read_needs_an_answer_to_a_request_made_after_it_arrived() {
        let mut reads = Reads::new(7);
        reads.add(Ticket(1), 100).unwrap();
        let first = reads.request(0).unwrap();
        assert_eq!(reads.request(1), None, "asked already");
        reads.add(Ticket(2), 100).unwrap();
        let second = reads.request(1).unwrap();
        assert!(number(&second) > number(&first));
        reads.answered(&first, 10);
        assert_eq!(reads.settle(10), [Ticket(1)]);
        reads.answered(&second, 12);
        assert_eq!(reads.settle(11), [], "entry 12 is not applied");
        assert_eq!(reads.settle(12), [Ticket(2)]);
    }

    #[test]
    fn a_request_without_an_answer_is_repeated_and_any_later_answer_will_do() {
        let mut reads = Reads::new(7);
        reads.add(Ticket(1), 100).unwrap();
        let first = reads.request(0).unwrap();
        assert_eq!(reads.request(REPEAT_TICKS - 1), None);
        let second = reads.request(REPEAT_TICKS).unwrap();
        assert_ne!(first, second);
        reads.answered(&second, 3);
        assert_eq!(reads.settle(3), [Ticket(1)]);
    }

    #[test]
    fn answers_to_an_earlier_start_confirm_nothing() {
        let mut before = Reads::new(1);
        before.add(Ticket(1), 100).unwrap();
        let old = before.request(0).unwrap();
        let mut after = Reads::new(2);
        after.add(Ticket(1), 100).unwrap();
        after.request(0).unwrap();
        after.answered(&old, 1);
        after.answered(&[1, 2, 3], 1);
        assert_eq!(after.settle(10), []);
    }

    #[test]
    fn waiting_is_bounded_in_number_and_time() {
        let mut reads = Reads::new(1);
        for ticket in 0..MAX_WAITING as u64 {
            reads.add(Ticket(ticket), ticket).unwrap();
        }
        assert_eq!(reads.add(Ticket(0), 0), Err(ReadError::Busy));
        assert_eq!(reads.expire(4), [0, 1, 2, 3, 4].map(Ticket));
        assert_eq!(reads.shut_down().len(), MAX_WAITING - 5);
    }
}
