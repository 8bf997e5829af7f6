//! Ten faults planted on purpose, in the program's own code: each is found, and for what it is.

use prost_raft::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType, Message, MessageType};
use tramontane_coordinator::raft::node::{Effects, Outbound, Ticket};
use tramontane_coordinator::raft::storage::Position;
use tramontane_coordinator::raft::{
    Identity, LogStore, Members, Node, NodeError, NodeOptions, ProposeError, ReadError,
};
use tramontane_model::ids::CoordinatorId;
use tramontane_sim::Disk;
use tramontane_sim::bugs::{Bug, plant};

use super::history::Machine;
use super::runs::run;

/// Seeds within which a planted fault must show.
const SEEDS: u64 = 600;

/// The rule that a planted fault breaks in the simulated world; none if that world does not reach it.
fn broken_rule(bug: Bug) -> Option<&'static str> {
    match bug {
        Bug::ApplyBeforeDurable => Some("RF-2"),
        Bug::MissingGenerationCheck => Some("PL-3"),
        Bug::DoubleFree => Some("KV-2"),
        Bug::JournalOffByOne | Bug::LostAttemptFencing => Some("ST-1"),
        Bug::PrefillKernelsForEmittedRows | Bug::SamplerCounterReset => Some("DET-1"),
        Bug::OverfilledDevice => Some("PL-2"),
        Bug::StaleLease => Some("lease"),
        // Members do not change in the world: see below.
        Bug::ConfChangeDropped => None,
    }
}

/// Seeds until the fault is found, and what was found.
fn find(bug: Bug) -> (u64, String) {
    let rule = broken_rule(bug).expect("a fault of the world");
    let _planted = plant(bug);
    // A panic is a find as well, but does not say of what.
    let failures = (0..SEEDS).filter_map(|seed| run(seed).err());
    let found = failures
        .into_iter()
        .find(|failure| failure.violation.rule != "panic");
    let failure = found.unwrap_or_else(|| panic!("{bug:?} was not found within {SEEDS} seeds"));
    assert_eq!(failure.violation.rule, rule, "{bug:?}: {:?}", failure.violation);
    (failure.seed + 1, failure.violation.what)
}

#[test]
fn planted_faults_are_found_by_the_simulation() {
    let bugs = Bug::ALL.into_iter().filter(|bug| broken_rule(*bug).is_some());
    std::thread::scope(|scope| {
        let found: Vec<_> = bugs.map(|bug| (bug, scope.spawn(move || find(bug)))).collect();
        for (bug, thread) in found {
            match thread.join() {
                Ok((seeds, what)) => println!("{bug:?} after {seeds} seeds: {what}"),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
}

struct Nothing;

impl Effects<Machine> for Nothing {
    fn send(&mut self, _message: Outbound) {}
    fn applied(&mut self, _machine: &Machine, _last: Position) {}
    fn proposed(
        &mut self,
        _ticket: Ticket,
        _result: Result<tramontane_coordinator::control::command::Outcome, ProposeError>,
    ) {
    }
    fn read(&mut self, _ticket: Ticket, _result: Result<u64, ReadError>) {}
}

/// A member takes a committed change of members from its leader: whom it counts then.
fn take_change() -> Result<Vec<CoordinatorId>, NodeError> {
    let members = Members::new([1, 2, 3].map(CoordinatorId)).expect("three members");
    let identity = Identity::new("sim", CoordinatorId(2), members).expect("a member");
    let store = LogStore::open_backend(Disk::default().open(), "sim", &identity, false).expect("a new log");
    let options = NodeOptions::new(&identity);
    let mut node = Node::new(store, &identity, options, Machine::default()).expect("a node");
    let mut learner = ConfChangeSingle {
        node_id: 4,
        ..ConfChangeSingle::default()
    };
    learner.set_change_type(ConfChangeType::AddLearnerNode);
    let change = ConfChangeV2 {
        changes: vec![learner],
        ..ConfChangeV2::default()
    };
    let mut entry = Entry {
        index: 1,
        term: 1,
        data: change.encode_to_vec(),
        ..Entry::default()
    };
    entry.set_entry_type(EntryType::EntryConfChangeV2);
    let mut append = Message {
        from: 1,
        to: 2,
        term: 1,
        commit: 1,
        entries: vec![entry],
        ..Message::default()
    };
    append.set_msg_type(MessageType::MsgAppend);
    let step = node.step(CoordinatorId(1), &append.encode_to_vec());
    assert!(step.is_ok(), "{step:?}");
    node.ready(&mut Nothing)?;
    Ok(node.status().members)
}

/// A member that passes over a change of members would count another majority than the others.
#[test]
fn a_change_of_members_is_not_passed_over() {
    let four = [1, 2, 3, 4].map(CoordinatorId);
    assert_eq!(take_change().expect("it goes on"), four);
    let _planted = plant(Bug::ConfChangeDropped);
    let passed_over = take_change().expect("it goes on");
    assert_eq!(passed_over, four[..3], "the planted fault does nothing");
}

/// Features of tests must not find their way into what users run.
#[test]
fn the_program_has_no_planted_faults() {
    let program = std::fs::read(tramontane_tests::process::program()).expect("the program");
    let has = |name: &[u8]| program.windows(name.len()).any(|found| found == name);
    assert!(has(b"tramontane_coordinator"), "its names cannot be read");
    assert!(
        !has(b"tramontane_sim"),
        "it was built with the feature deliberate-bugs"
    );
}
