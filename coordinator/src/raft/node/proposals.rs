//! Proposals of this coordinator that wait for their place in the log to be applied.
//!
//! Bounded in number and bytes. Nothing is proposed from here; a proposal enters once it has an index and a term.

use std::collections::BTreeMap;

use super::Ticket;
use super::error::ProposeError;

/// Most proposals that wait at a time.
pub(super) const MAX_WAITING: usize = 1024;
/// Most bytes of proposals that wait at a time.
pub(super) const MAX_WAITING_BYTES: usize = 16 << 20;

struct Waiting {
    ticket: Ticket,
    term: u64,
    bytes: usize,
    deadline: u64,
}

/// What is known of a waiting proposal once an entry was applied.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The applied entry is the proposal.
    Applied(Ticket),
    /// It failed.
    Failed(Ticket, ProposeError),
}

/// The waiting proposals by their index.
#[derive(Default)]
pub(super) struct Proposals {
    waiting: BTreeMap<u64, Waiting>,
    bytes: usize,
}

impl Proposals {
    /// Whether another proposal of this length may wait.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.waiting.len() < MAX_WAITING && self.bytes + bytes <= MAX_WAITING_BYTES
    }

    /// Waits for entry `index` of `term`. Returns an older proposal whose place it took: raft gave the index out
    /// again, so the older entry is gone.
    pub(super) fn wait(
        &mut self,
        ticket: Ticket,
        (index, term): (u64, u64),
        bytes: usize,
        deadline: u64,
    ) -> Option<Fate> {
        self.bytes += bytes;
        let older = self.waiting.insert(
            index,
            Waiting {
                ticket,
                term,
                bytes,
                deadline,
            },
        )?;
        self.bytes -= older.bytes;
        Some(Fate::Failed(older.ticket, ProposeError::Dropped))
    }

    /// Tells what the application of entry `index` of `term` decides, in the order of the log.
    pub(super) fn applied(&mut self, index: u64, term: u64) -> Vec<Fate> {
        self.take_up_to(index)
            .map(|(at, waiting)| match (at == index, waiting.term == term) {
                (true, true) => Fate::Applied(waiting.ticket),
                (true, false) => Fate::Failed(waiting.ticket, ProposeError::Dropped),
                (false, _) => Fate::Failed(waiting.ticket, ProposeError::Unknown),
            })
            .collect()
    }

    /// Tells what a checkpoint at `index` decides: it says nothing of the entries it holds.
    pub(super) fn leaped(&mut self, index: u64) -> Vec<Fate> {
        self.take_up_to(index)
            .map(|(_, waiting)| Fate::Failed(waiting.ticket, ProposeError::Unknown))
            .collect()
    }

    /// Takes out those whose deadline has passed at `now`.
    pub(super) fn expire(&mut self, now: u64) -> Vec<Fate> {
        let expired: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, w)| w.deadline <= now)
            .map(|(index, _)| *index)
            .collect();
        let taken = expired
            .into_iter()
            .filter_map(|index| self.waiting.remove(&index));
        taken
            .map(|waiting| {
                self.bytes -= waiting.bytes;
                Fate::Failed(waiting.ticket, ProposeError::TimedOut)
            })
            .collect()
    }

    /// Takes out all, because this coordinator goes down.
    pub(super) fn shut_down(&mut self) -> Vec<Fate> {
        let all = self.take_up_to(u64::MAX);
        all.map(|(_, waiting)| Fate::Failed(waiting.ticket, ProposeError::ShuttingDown))
            .collect()
    }

    fn take_up_to(&mut self, index: u64) -> impl Iterator<Item = (u64, Waiting)> + use<> {
        let later = match index.checked_add(1) {
            Some(next) => self.waiting.split_off(&next),
            None => BTreeMap::new(),
        };
        let taken = std::mem::replace(&mut self.waiting, later);
        self.bytes -= taken.values().map(|waiting| waiting.bytes).sum::<usize>();
        taken.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_decides_the_proposal_at_its_place_and_those_before() {
        let mut proposals = Proposals::default();
        for (ticket, index) in [(1, 5), (2, 6), (3, 7)] {
            assert_eq!(proposals.wait(Ticket(ticket), (index, 2), 10, 100), None);
        }
        assert_eq!(proposals.applied(4, 2), []);
        assert_eq!(proposals.applied(5, 2), [Fate::Applied(Ticket(1))]);
        assert_eq!(
            proposals.applied(6, 3),
            [Fate::Failed(Ticket(2), ProposeError::Dropped)]
        );
        assert_eq!(
            proposals.leaped(9),
            [Fate::Failed(Ticket(3), ProposeError::Unknown)]
        );
        assert_eq!(proposals.bytes, 0);
    }

    #[test]
    fn an_index_given_out_again_drops_the_older_proposal() {
        let mut proposals = Proposals::default();
        assert_eq!(proposals.wait(Ticket(1), (5, 2), 10, 100), None);
        let older = proposals.wait(Ticket(2), (5, 4), 30, 100);
        assert_eq!(older, Some(Fate::Failed(Ticket(1), ProposeError::Dropped)));
        assert_eq!(proposals.bytes, 30);
    }

    #[test]
    fn waiting_is_bounded_in_number_bytes_and_time() {
        let mut proposals = Proposals::default();
        assert!(!proposals.has_room(MAX_WAITING_BYTES + 1));
        for index in 0..MAX_WAITING as u64 {
            assert!(proposals.has_room(1));
            proposals.wait(Ticket(index), (index, 1), 1, index);
        }
        assert!(!proposals.has_room(1));
        assert_eq!(proposals.expire(9).len(), 10);
        assert!(proposals.has_room(1));
        assert_eq!(proposals.shut_down().len(), MAX_WAITING - 10);
        assert_eq!(proposals.bytes, 0);
    }
}
