//! What a node gives out, in which order, and what bounds it.

use super::*;

/// RF-2 on a follower: the promise leaves after the sync, and what is applied was synced before.
#[test]
fn a_follower_syncs_before_it_confirms_and_before_it_applies() {
    let disk = Disk::default();
    let mut node = node(&disk, 2, 3);
    let mut append = message(MessageType::MsgAppend, 1, 2, 1);
    append.entries = vec![entry(1, 1, 7)];
    append.commit = 1;
    step(&mut node, &append).unwrap();
    let before = disk.syncs();
    let events = ready(&mut node, &disk).events;
    let confirmed = events
        .iter()
        .find(|(_, e)| *e == Event::Sent(MessageType::MsgAppendResponse))
        .unwrap();
    let applied = events.iter().find(|(_, e)| *e == Event::Applied(1)).unwrap();
    assert!(confirmed.0 > before, "confirmed before it was on disk");
    assert!(applied.0 > before, "applied before it was on disk");
    assert_eq!(node.machine().0, [7]);
}

/// RF-1 and RF-2 on a leader: it may send before its own sync, but answers only with a majority on disk.
#[test]
fn a_leader_answers_once_a_majority_has_the_entry_on_disk() {
    let disk = Disk::default();
    let mut node = elected(&disk);
    let ticket = node.propose(8_u64.to_le_bytes().to_vec(), 50).unwrap();
    let before = disk.syncs();
    let events = ready(&mut node, &disk).events;
    assert_eq!(
        events[0],
        (before, Event::Sent(MessageType::MsgAppend)),
        "the sync held up the peers"
    );
    assert!(
        events.iter().all(|(_, e)| matches!(e, Event::Sent(_))),
        "answered without a majority: {events:?}"
    );
    assert_eq!(node.log().len(), 2);
    let confirmed = Message {
        index: 2,
        ..message(MessageType::MsgAppendResponse, 3, 1, 1)
    };
    step(&mut node, &confirmed).unwrap();
    let events: Vec<_> = ready(&mut node, &disk)
        .events
        .into_iter()
        .map(|(_, event)| event)
        .collect();
    // The state is there for readers before whoever proposed learns of it.
    let applied = events.iter().position(|e| *e == Event::Applied(2)).unwrap();
    let proposed = events
        .iter()
        .position(|e| *e == Event::Proposed(ticket, Ok(1)))
        .unwrap();
    assert!(applied < proposed);
}

#[test]
fn a_failed_write_promises_and_applies_nothing() {
    for writes in 0..4 {
        let disk = Disk::default();
        let mut node = node(&disk, 2, 3);
        let mut append = message(MessageType::MsgAppend, 1, 2, 1);
        append.entries = vec![entry(1, 1, 7)];
        append.commit = 1;
        step(&mut node, &append).unwrap();
        disk.break_after(writes);
        let mut recorder = Recorder::new(&disk);
        let failed = node.ready(&mut recorder).unwrap_err();
        assert!(
            matches!(failed, NodeError::Store(StoreError::Write { .. })),
            "{failed}"
        );
        assert_eq!(recorder.events, []);
    }
}

#[test]
fn a_full_disk_ends_the_node_with_an_error() {
    let disk = Disk::default();
    let mut node = node(&disk, 1, 1);
    ready(&mut node, &disk);
    disk.set_capacity(Some(disk.len()));
    for _ in 0..100 {
        node.propose(vec![1; 100_000], 50).unwrap();
        let mut recorder = Recorder::new(&disk);
        if let Err(e) = node.ready(&mut recorder) {
            assert!(e.to_string().contains("no space left"), "{e}");
            assert!(
                recorder
                    .events
                    .iter()
                    .all(|(_, e)| !matches!(e, Event::Proposed(..)))
            );
            return;
        }
    }
    panic!("the disk never filled up");
}

#[test]
fn a_single_member_leads_at_once_and_keeps_its_state() {
    let disk = Disk::default();
    let mut node = node(&disk, 1, 1);
    ready(&mut node, &disk);
    assert!(node.is_leader());
    for number in 0..25_u64 {
        let ticket = node.propose(number.to_le_bytes().to_vec(), 50).unwrap();
        let events = ready(&mut node, &disk).events;
        assert!(
            events
                .iter()
                .any(|(_, e)| *e == Event::Proposed(ticket, Ok(number as usize + 1)))
        );
    }
    let status = node.status();
    assert!(
        status.checkpoint_index >= 20 && status.first_index > 10,
        "{status:?}"
    );
    drop(node);
    let mut node = self::node(&disk, 1, 1);
    ready(&mut node, &disk);
    assert_eq!(node.machine().0, (0..25).collect::<Vec<_>>());
    let ticket = node.read(10).unwrap();
    let events = ready(&mut node, &disk).events;
    let applied = node.status().applied;
    assert!(
        events.iter().any(|(_, e)| *e == Event::Read(ticket, Ok(applied))),
        "{events:?}"
    );
}

#[test]
fn proposals_are_bounded_and_only_the_leader_takes_them() {
    let disk = Disk::default();
    let mut follower = node(&disk, 2, 3);
    let refused = follower.propose(vec![1], 10);
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: None }));
    step(&mut follower, &message(MessageType::MsgHeartbeat, 3, 2, 1)).unwrap();
    let refused = follower.propose(vec![1], 10).unwrap_err();
    assert_eq!(
        refused,
        ProposeError::NotLeader {
            leader: Some(CoordinatorId(3))
        }
    );
    assert!(refused.to_string().contains("coordinator 3"));

    let disk = Disk::default();
    let mut leader = elected(&disk);
    assert_eq!(leader.propose(Vec::new(), 10), Err(ProposeError::Empty));
    let refused = leader.propose(vec![0; MAX_PROPOSAL_BYTES + 1], 10);
    assert!(matches!(refused, Err(ProposeError::TooLarge { .. })));
    let mut tickets = Vec::new();
    let busy = loop {
        match leader.propose(vec![1; 9], 10) {
            Ok(ticket) => tickets.push(ticket),
            Err(e) => break e,
        }
    };
    assert_eq!(
        (busy, tickets.len()),
        (ProposeError::Busy, proposals::MAX_WAITING)
    );
    // Nobody confirms, so each is answered when its deadline has passed.
    (0..10).for_each(|_| leader.tick());
    let events = ready(&mut leader, &disk).events;
    for ticket in tickets {
        assert!(
            events
                .iter()
                .any(|(_, e)| *e == Event::Proposed(ticket, Err(ProposeError::TimedOut)))
        );
    }
    assert!(leader.propose(vec![1; 9], 10).is_ok());
}

#[test]
fn going_down_answers_everything_that_waits() {
    let disk = Disk::default();
    let mut leader = elected(&disk);
    let (proposal, read) = (leader.propose(vec![1; 9], 10).unwrap(), leader.read(10).unwrap());
    let mut recorder = Recorder::new(&disk);
    leader.shut_down(&mut recorder);
    let events: Vec<_> = recorder.events.into_iter().map(|(_, event)| event).collect();
    assert_eq!(
        events,
        [
            Event::Proposed(proposal, Err(ProposeError::ShuttingDown)),
            Event::Read(read, Err(ReadError::ShuttingDown))
        ]
    );
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let identity = identity(1, 3);
    let usual = NodeOptions::new(&identity);
    for wrong in [
        NodeOptions {
            election_timeout_ticks: 3,
            ..usual.clone()
        },
        NodeOptions {
            checkpoint_entries: 0,
            ..usual.clone()
        },
        NodeOptions {
            kept_entries: u64::MAX,
            ..usual.clone()
        },
        NodeOptions {
            checkpoint_bytes: 1,
            ..usual
        },
    ] {
        let store = store(&Disk::default(), &identity);
        let refused = Node::new(store, &identity, wrong, Ledger::default())
            .err()
            .expect("taken");
        assert!(
            refused.to_string().contains("needed") || refused.to_string().contains("use 1"),
            "{refused}"
        );
    }
}
