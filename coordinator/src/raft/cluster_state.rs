//! The cluster's state as raft's state machine: entries are proposals, checkpoints are states.

use tramontane_model::ids::CoordinatorId;

use super::node::{MAX_PROPOSAL_BYTES, MAX_STATE_BYTES};
use super::state_machine::StateMachine;
use crate::control::codec::CodecError;
use crate::control::command::{Outcome, Proposal};
use crate::control::limits;
use crate::control::state::ClusterState;

const _: () = assert!(limits::MAX_PROPOSAL_BYTES <= MAX_PROPOSAL_BYTES);
const _: () = assert!(limits::MAX_STATE_BYTES <= MAX_STATE_BYTES);

impl StateMachine for ClusterState {
    type Outcome = Outcome;
    type View = ClusterState;
    type Error = CodecError;

    fn apply(&mut self, entry: &[u8]) -> Result<Outcome, CodecError> {
        Ok(self.apply_proposal(&Proposal::decode(entry)?))
    }

    fn snapshot(&self) -> Result<Vec<u8>, CodecError> {
        self.encode()
    }

    fn restore(bytes: &[u8]) -> Result<Self, CodecError> {
        Self::decode(bytes)
    }

    fn view(&self) -> ClusterState {
        self.clone()
    }

    fn added(&self) -> Vec<CoordinatorId> {
        self.added().map(|(id, _)| id).collect()
    }

    fn is_removed(&self, id: CoordinatorId) -> bool {
        self.is_removed(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::command::Command;
    use crate::control::state::CoordinatorEntry;
    use crate::raft::identity::{Identity, Members};
    use crate::raft::node::{
        Effects, Node, NodeError, NodeOptions, Outbound, ProposeError, ReadError, Ticket,
    };
    use crate::raft::storage::faulty::Disk;
    use crate::raft::storage::{LogStore, Position};

    #[derive(Default)]
    struct Outcomes(Vec<Result<Outcome, ProposeError>>);

    impl Effects<ClusterState> for Outcomes {
        fn send(&mut self, _message: Outbound) {}
        fn applied(&mut self, _machine: &ClusterState, _last: Position) {}
        fn proposed(&mut self, _ticket: Ticket, result: Result<Outcome, ProposeError>) {
            self.0.push(result);
        }
        fn read(&mut self, _ticket: Ticket, _result: Result<u64, ReadError>) {}
    }

    fn node(disk: &Disk) -> Node<ClusterState> {
        let members = Members::new([CoordinatorId(1)]).unwrap();
        let identity = Identity::new("demo", CoordinatorId(1), members).unwrap();
        let store = LogStore::open_backend(disk.open(), "disk", &identity, false).unwrap();
        let options = NodeOptions {
            checkpoint_entries: 3,
            kept_entries: 0,
            ..NodeOptions::new(&identity)
        };
        Node::new(store, &identity, options, ClusterState::default()).unwrap()
    }

    fn started(sequence: u64) -> Vec<u8> {
        let entry = CoordinatorEntry {
            raft_address: "127.0.0.1:7001".to_owned(),
            http_address: format!("127.0.0.1:{sequence}"),
            pid: 1,
            version: "0.1.0".to_owned(),
        };
        let command = Command::CoordinatorStarted {
            coordinator: CoordinatorId(1),
            entry,
        };
        Proposal {
            proposer: 7,
            sequence,
            command,
        }
        .encode()
        .unwrap()
    }

    #[test]
    fn the_clusters_state_survives_checkpoints_and_restarts() {
        let disk = Disk::default();
        let mut node = self::node(&disk);
        let mut outcomes = Outcomes::default();
        node.ready(&mut outcomes).unwrap();
        // The last one a second time, as a client that heard nothing sends it.
        for sequence in [1, 2, 3, 4, 5, 5] {
            node.propose(started(sequence), 100).unwrap();
            node.ready(&mut outcomes).unwrap();
        }
        let duplicate = outcomes.0.pop();
        assert_eq!(duplicate, Some(Ok(Outcome::Duplicate)));
        assert_eq!(outcomes.0, vec![Ok(Outcome::Applied); 5]);
        let before = node.machine().clone();
        assert!(node.status().checkpoint_index > 0 && node.status().checkpoint_index < node.status().applied);
        drop(node);
        let mut node = self::node(&disk);
        node.ready(&mut Outcomes::default()).unwrap();
        assert_eq!(*node.machine(), before);
        assert_eq!(before.coordinators[&CoordinatorId(1)].http_address, "127.0.0.1:5");
    }

    #[test]
    fn an_entry_of_another_version_ends_the_node_and_names_the_format() {
        let disk = Disk::default();
        let mut node = node(&disk);
        node.ready(&mut Outcomes::default()).unwrap();
        node.propose(br#"{"format":9,"body":{}}"#.to_vec(), 100).unwrap();
        let mut outcomes = Outcomes::default();
        let failed = node.ready(&mut outcomes).unwrap_err();
        assert!(matches!(failed, NodeError::Apply { .. }), "{failed}");
        assert!(failed.to_string().contains("format 9"), "{failed}");
        assert_eq!(outcomes.0, []);
    }
}
