//! What raft replicates, as the node sees it.
//!
//! The node knows neither commands nor their results: an entry is bytes, a result is whatever the machine says.

use tramontane_model::ids::CoordinatorId;

/// A deterministic state machine: equal entries in equal order give equal states and equal outcomes on every
/// member, whatever its clock, its machine or its history of restarts.
///
/// Entries after the last checkpoint are applied again when a coordinator starts, on top of the state that the
/// checkpoint restored.
pub trait StateMachine: Sized + Send + 'static {
    /// What an applied entry came to; handed to whoever proposed it, if that was here.
    type Outcome: Send + 'static;
    /// A picture of the state for readers.
    type View: Send + Sync + 'static;
    /// Why bytes are no entry or no state, or a state cannot be written.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Applies one committed entry. What an entry asks for may be refused, in the outcome; an error means that this
    /// version cannot tell what it asks for, and ends the node, because skipping it would make members differ.
    fn apply(&mut self, entry: &[u8]) -> Result<Self::Outcome, Self::Error>;

    /// The whole state as bytes; equal states give equal bytes.
    fn snapshot(&self) -> Result<Vec<u8>, Self::Error>;

    /// The state that [`StateMachine::snapshot`] wrote.
    fn restore(bytes: &[u8]) -> Result<Self, Self::Error>;

    /// What readers see from now on.
    fn view(&self) -> Self::View;

    /// Coordinators beyond the first members that are to take part.
    fn added(&self) -> Vec<CoordinatorId> {
        Vec::new()
    }

    /// Whether a coordinator is to take part no more.
    fn is_removed(&self, _id: CoordinatorId) -> bool {
        false
    }
}
