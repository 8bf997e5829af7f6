//! Messages and logs that no correct member makes, and those that look like it.

use proptest::prelude::*;

use super::*;

/// The next entry for a peer stays after what the peer confirmed, even when a rejection arrives a second time
/// after the peer was found and lost again (upstream issue 555, fixed after 0.7).
#[test]
fn a_late_rejection_does_not_make_a_leader_send_what_was_confirmed() {
    let disk = Disk::default();
    let mut store = store(&disk, &identity(1, 3));
    let entries: Vec<_> = (1..=4).map(|index| entry(index, 1, index)).collect();
    let hard_state = raft::eraftpb::HardState {
        term: 1,
        vote: 0,
        commit: 0,
    };
    store
        .persist(&Batch {
            entries: &entries,
            hard_state: Some(&hard_state),
            snapshot: None,
        })
        .unwrap();
    drop(store);
    let mut leader = node(&disk, 1, 3);
    let sent = elect(&mut leader, &disk);
    assert!(
        sent.iter().any(|m| m.to == 3 && m.index == 4),
        "the leader probes after entry 4: {sent:?}"
    );
    // Member 3 has nothing and says so, then confirms what it is sent, up to entry 4.
    let answer = message(MessageType::MsgAppendResponse, 3, 1, 2);
    let rejection = Message {
        index: 4,
        reject: true,
        ..answer.clone()
    };
    step(&mut leader, &rejection).unwrap();
    let sent = ready(&mut leader, &disk).messages;
    assert!(
        sent.iter()
            .any(|m| m.to == 3 && m.index == 0 && m.entries.len() == 5),
        "{sent:?}"
    );
    step(&mut leader, &Message { index: 4, ..answer }).unwrap();
    ready(&mut leader, &disk);
    // The same words again; then words of a longer probe, which only a lost checkpoint could have led to.
    for (next, late) in [
        (5, rejection.clone()),
        (
            6,
            Message {
                index: 5,
                ..rejection
            },
        ),
    ] {
        leader.report_unreachable(CoordinatorId(3));
        leader.raw.raft.mut_prs().get_mut(3).unwrap().next_idx = next;
        step(&mut leader, &late).unwrap();
        step(&mut leader, &message(MessageType::MsgHeartbeatResponse, 3, 1, 2)).unwrap();
        let sent = ready(&mut leader, &disk).messages;
        let appends: Vec<_> = sent
            .iter()
            .filter(|m| m.to == 3 && m.get_msg_type() == MessageType::MsgAppend)
            .collect();
        assert!(!appends.is_empty(), "nothing was sent: {sent:?}");
        for append in appends {
            assert!(
                append.index >= 4,
                "sends entry {} again, 4 is confirmed",
                append.index + 1
            );
        }
    }
}

#[test]
fn a_member_whose_log_was_emptied_ends_instead_of_voting_twice() {
    let disk = Disk::default();
    let mut node = node(&disk, 2, 3);
    let heartbeat = Message {
        commit: 9,
        ..message(MessageType::MsgHeartbeat, 1, 2, 4)
    };
    let Err(StepError::Fatal(e)) = step(&mut node, &heartbeat) else {
        panic!("went on")
    };
    assert!(
        matches!(
            e,
            NodeError::LogLost {
                confirmed: 9,
                last: 0,
                ..
            }
        ),
        "{e}"
    );
    assert!(
        e.to_string().contains("coordinator 1") || e.to_string().contains("leader 1"),
        "{e}"
    );
}

#[test]
fn a_checkpoint_that_is_no_state_is_refused_before_it_is_kept() {
    let disk = Disk::default();
    let mut node = node(&disk, 2, 3);
    step(&mut node, &checkpoint(&[1, 2, 3])).unwrap();
    let failed = node.ready(&mut Recorder::new(&disk)).unwrap_err();
    assert!(failed.to_string().contains("multiple of 8"), "{failed}");
    drop(node);
    assert_eq!(self::node(&disk, 2, 3).status().checkpoint_index, 0);
}

fn checkpoint(data: &[u8]) -> Message {
    let mut message = message(MessageType::MsgSnapshot, 1, 2, 3);
    let members = ConfState {
        voters: vec![1, 2, 3],
        ..ConfState::default()
    };
    let metadata = SnapshotMetadata {
        conf_state: Some(members),
        index: 40,
        term: 2,
    };
    message.snapshot = Some(Snapshot {
        data: data.to_vec(),
        metadata: Some(metadata),
    });
    message
}

#[test]
fn a_checkpoint_from_the_leader_becomes_the_state() {
    let disk = Disk::default();
    let mut node = node(&disk, 2, 3);
    step(&mut node, &checkpoint(&[7, 0, 0, 0, 0, 0, 0, 0])).unwrap();
    let events = ready(&mut node, &disk).events;
    assert!(events.iter().any(|(_, e)| *e == Event::Applied(40)), "{events:?}");
    drop(node);
    let node = self::node(&disk, 2, 3);
    assert_eq!(
        (node.machine().0.as_slice(), node.status().applied),
        (&[7][..], 40)
    );
}

#[test]
fn a_change_of_members_of_another_version_ends_the_node() {
    let disk = Disk::default();
    let identity = identity(1, 1);
    let mut store = store(&disk, &identity);
    let mut change = entry(1, 1, 0);
    change.set_entry_type(EntryType::EntryConfChange);
    let hard_state = raft::eraftpb::HardState {
        term: 1,
        vote: 1,
        commit: 1,
    };
    let entries = [change];
    store
        .persist(&Batch {
            entries: &entries,
            hard_state: Some(&hard_state),
            snapshot: None,
        })
        .unwrap();
    drop(store);
    // raft-rs does not campaign over a change that is not applied yet.
    let mut node = node(&disk, 1, 1);
    let failed = node.ready(&mut Recorder::new(&disk)).unwrap_err();
    assert!(
        matches!(failed, NodeError::UnknownEntry { index: 1, .. }),
        "{failed}"
    );
}

#[test]
fn messages_that_no_member_may_send_are_refused() {
    let disk = Disk::default();
    let mut node = elected(&disk);
    let before = node.status();
    let append = |index, log_term, entries: Vec<Entry>| Message {
        index,
        log_term,
        entries,
        ..message(MessageType::MsgAppend, 2, 1, 1)
    };
    let mut unknown_kind = message(MessageType::MsgAppend, 2, 1, 1);
    unknown_kind.msg_type = 99;
    let mut unknown_entry = entry(1, 1, 1);
    unknown_entry.entry_type = 9;
    let mut joint = Message {
        from: 2,
        to: 1,
        ..checkpoint(b"")
    };
    let metadata = joint.snapshot.as_mut().and_then(|s| s.metadata.as_mut()).unwrap();
    metadata.conf_state.as_mut().unwrap().learners = vec![1];
    let confirms = Message {
        index: 99,
        ..message(MessageType::MsgAppendResponse, 2, 1, 1)
    };
    let long_context = Message {
        context: vec![0; 1000],
        ..message(MessageType::MsgHeartbeat, 2, 1, 1)
    };
    let huge = Message {
        reject_hint: u64::MAX,
        reject: true,
        ..message(MessageType::MsgAppendResponse, 2, 1, 1)
    };
    let forbidden = [
        message(MessageType::MsgPropose, 2, 1, 0),
        message(MessageType::MsgHup, 2, 1, 1),
        message(MessageType::MsgTransferLeader, 2, 1, 1),
        message(MessageType::MsgAppend, 2, 1, 0),
        message(MessageType::MsgSnapshot, 2, 1, 1),
        message(MessageType::MsgReadIndex, 2, 1, 0),
        message(MessageType::MsgAppend, 3, 1, 1),
        message(MessageType::MsgAppend, 2, 3, 1),
        append(5, 0, vec![]),
        append(0, 0, vec![entry(2, 1, 1)]),
        append(0, 0, vec![entry(1, 2, 1)]),
        append(0, 0, vec![entry(1, 1, 1), entry(3, 1, 1)]),
        append(0, 0, vec![unknown_entry]),
        unknown_kind,
        joint,
        confirms,
        long_context,
        huge,
    ];
    for bad in forbidden {
        let result = node.step(CoordinatorId(2), &bad.encode_to_vec());
        assert!(
            matches!(result, Err(StepError::Refused(_))),
            "{bad:?} was taken: {result:?}"
        );
    }
    let stranger = message(MessageType::MsgRequestVote, 9, 1, 5);
    step(&mut node, &stranger).expect("one that is not known here may be a member");
    let many = Message {
        entries: vec![Entry::default(); 70_000],
        ..message(MessageType::MsgAppend, 2, 1, 1)
    };
    assert!(
        step(&mut node, &many)
            .unwrap_err()
            .to_string()
            .contains("entries")
    );
    let mut crowded = checkpoint(b"");
    let metadata = crowded
        .snapshot
        .as_mut()
        .and_then(|s| s.metadata.as_mut())
        .unwrap();
    metadata.conf_state.as_mut().unwrap().voters = (1..5000).collect();
    assert!(node.step(CoordinatorId(1), &crowded.encode_to_vec()).is_err());
    assert_eq!(node.status(), before);
}

proptest! {
    /// Whatever bytes arrive, the node refuses them or goes on.
    #[test]
    fn no_message_makes_a_node_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let disk = Disk::default();
        let mut node = node(&disk, 2, 3);
        let _ = node.step(CoordinatorId(1), &bytes);
    }

    /// The same for messages that decode, with every number near the edge of what the node has.
    #[test]
    fn no_decodable_message_makes_a_node_panic(
        kind in 0..20_i32,
        numbers in prop::array::uniform6(prop_oneof![0..6_u64, Just(u64::MAX), Just(1 << 62)]),
        reject: bool,
        entries in prop::collection::vec((0..6_u64, 0..4_u64, -1..4_i32), 0..4),
    ) {
        let disk = Disk::default();
        let mut leader = elected(&disk);
        let [term, log_term, index, commit, commit_term, reject_hint] = numbers;
        let entries = entries
            .into_iter()
            .map(|(index, term, entry_type)| Entry { entry_type, ..entry(index, term, 1) })
            .collect();
        let message = Message {
            msg_type: kind, from: 2, to: 1, term, log_term, index, commit, commit_term, reject, reject_hint,
            entries, ..Message::default()
        };
        let outcome = step(&mut leader, &message);
        if !matches!(outcome, Err(StepError::Fatal(_))) {
            let _ = leader.ready(&mut Recorder::new(&disk));
        }
    }
}
