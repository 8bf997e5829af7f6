//! The node, driven by hand.

mod messages;
mod order;
mod power_cuts;

use std::collections::BTreeMap;

use prost_raft::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, SnapshotMetadata};

use super::*;
use crate::raft::identity::Members;
use crate::raft::sim::Ledger;
use crate::raft::storage::faulty::Disk;
use crate::raft::storage::{Batch, StoreError};

impl<S: StateMachine> Node<S> {
    /// Term and data of the durable entries, by index.
    pub(crate) fn log(&self) -> BTreeMap<u64, (u64, Vec<u8>)> {
        let store = self.raw.store();
        let context = raft::GetEntriesContext::empty(false);
        let entries = store
            .entries(store.first(), store.last() + 1, None, context)
            .unwrap();
        entries
            .into_iter()
            .map(|entry| (entry.index, (entry.term, entry.data)))
            .collect()
    }
}

fn identity(id: u64, size: u64) -> Identity {
    let members = Members::new((1..=size).map(CoordinatorId)).unwrap();
    Identity::new("demo", CoordinatorId(id), members).unwrap()
}

fn store(disk: &Disk, identity: &Identity) -> LogStore {
    LogStore::open_backend(disk.open(), "disk", identity, false).unwrap()
}

fn node(disk: &Disk, id: u64, size: u64) -> Node<Ledger> {
    let identity = identity(id, size);
    let options = NodeOptions {
        checkpoint_entries: 10,
        kept_entries: 2,
        ..NodeOptions::new(&identity)
    };
    Node::new(store(disk, &identity), &identity, options, Ledger::default()).unwrap()
}

fn entry(index: u64, term: u64, number: u64) -> Entry {
    Entry {
        index,
        term,
        data: number.to_le_bytes().to_vec(),
        ..Entry::default()
    }
}

fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    let mut message = Message {
        from,
        to,
        term,
        ..Message::default()
    };
    message.set_msg_type(kind);
    message
}

/// What happened, in order, with the number of syncs of the disk at that moment.
#[derive(Debug, PartialEq)]
enum Event {
    Sent(MessageType),
    Applied(u64),
    Proposed(Ticket, Result<usize, ProposeError>),
    Read(Ticket, Result<u64, ReadError>),
}

struct Recorder {
    disk: Disk,
    events: Vec<(u64, Event)>,
    messages: Vec<Message>,
}

impl Recorder {
    fn new(disk: &Disk) -> Self {
        Self {
            disk: disk.clone(),
            events: Vec::new(),
            messages: Vec::new(),
        }
    }

    fn push(&mut self, event: Event) {
        self.events.push((self.disk.syncs(), event));
    }
}

impl Effects<Ledger> for Recorder {
    fn send(&mut self, message: Outbound) {
        let message = Message::decode(message.bytes.as_slice()).unwrap();
        self.push(Event::Sent(message.get_msg_type()));
        self.messages.push(message);
    }
    fn applied(&mut self, _machine: &Ledger, last: Position) {
        self.push(Event::Applied(last.index));
    }
    fn proposed(&mut self, ticket: Ticket, result: Result<usize, ProposeError>) {
        self.push(Event::Proposed(ticket, result));
    }
    fn read(&mut self, ticket: Ticket, result: Result<u64, ReadError>) {
        self.push(Event::Read(ticket, result));
    }
}

fn ready(node: &mut Node<Ledger>, disk: &Disk) -> Recorder {
    let mut recorder = Recorder::new(disk);
    node.ready(&mut recorder).unwrap();
    recorder
}

fn step(node: &mut Node<Ledger>, message: &Message) -> Result<(), StepError> {
    node.step(CoordinatorId(message.from), &message.encode_to_vec())
}

/// Makes member 1 of 3 the leader of the next term, its first entry committed, by answering in the others' names.
fn elect(node: &mut Node<Ledger>, disk: &Disk) -> Vec<Message> {
    let term = node.status().term + 1;
    while node.status().role == Role::Follower {
        node.tick();
    }
    ready(node, disk);
    let mut sent = Vec::new();
    for kind in [
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgRequestVoteResponse,
    ] {
        step(node, &message(kind, 2, 1, term)).unwrap();
        sent = ready(node, disk).messages;
    }
    assert!(node.is_leader());
    let last = node.status().last_index;
    step(
        node,
        &Message {
            index: last,
            ..message(MessageType::MsgAppendResponse, 2, 1, term)
        },
    )
    .unwrap();
    ready(node, disk);
    assert_eq!(node.status().applied, last);
    sent
}

fn elected(disk: &Disk) -> Node<Ledger> {
    let mut node = node(disk, 1, 3);
    elect(&mut node, disk);
    node
}
