//! A state machine that remembers everything it was given, in order.

use tramontane_model::ids::CoordinatorId;

use crate::raft::state_machine::StateMachine;

/// The numbers applied so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger(pub(crate) Vec<u64>);

/// Numbers with these bits add the coordinator of their last byte, or remove it.
pub(crate) const ADDED: u64 = 1 << 60;
pub(crate) const REMOVED: u64 = 1 << 61;

impl Ledger {
    fn marked(&self, mark: u64) -> impl Iterator<Item = u64> + '_ {
        let marked = self.0.iter().filter(move |&&number| number & mark != 0);
        marked.map(|number| number & 0xff)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a ledger has a multiple of 8 bytes and an entry at least 8, found {0}")]
pub(crate) struct Ragged(usize);

impl StateMachine for Ledger {
    /// The number's place.
    type Outcome = usize;
    type View = Vec<u64>;
    type Error = Ragged;

    fn apply(&mut self, entry: &[u8]) -> Result<usize, Ragged> {
        let number = entry.first_chunk().ok_or(Ragged(entry.len()))?;
        self.0.push(u64::from_le_bytes(*number));
        Ok(self.0.len())
    }

    fn snapshot(&self) -> Result<Vec<u8>, Ragged> {
        Ok(self.0.iter().flat_map(|number| number.to_le_bytes()).collect())
    }

    fn restore(bytes: &[u8]) -> Result<Self, Ragged> {
        let (numbers, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(Ragged(bytes.len()));
        }
        Ok(Self(
            numbers.iter().map(|number| u64::from_le_bytes(*number)).collect(),
        ))
    }

    fn view(&self) -> Vec<u64> {
        self.0.clone()
    }

    fn added(&self) -> Vec<CoordinatorId> {
        self.marked(ADDED).map(CoordinatorId).collect()
    }

    fn is_removed(&self, id: CoordinatorId) -> bool {
        self.marked(REMOVED).any(|removed| removed == id.0)
    }
}
