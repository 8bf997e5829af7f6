//! A member loses power at every write of its life and starts again with all that it promised: to peers by confirming
//! entries and giving votes, to whoever proposed by an answer.

use super::*;
use crate::raft::sim::Rng;

/// What a disk may make of the writes that were under way, for each place at which the power goes.
const TEARS: u64 = 4;

/// What a leader and other candidates send to member 2, in order.
fn letters() -> Vec<Message> {
    let append = |term, before: (u64, u64), entries: Vec<Entry>, commit| Message {
        index: before.0,
        log_term: before.1,
        entries,
        commit,
        ..message(MessageType::MsgAppend, 1, 2, term)
    };
    let vote = |term, log_term, index| Message {
        log_term,
        index,
        ..message(MessageType::MsgRequestVote, 3, 2, term)
    };
    let many = |from: u64, term| (from..from + 4).map(|index| entry(index, term, index)).collect();
    let mut checkpoint = message(MessageType::MsgSnapshot, 1, 2, 5);
    let metadata = SnapshotMetadata {
        conf_state: Some(ConfState {
            voters: vec![1, 2, 3],
            ..ConfState::default()
        }),
        index: 40,
        term: 5,
    };
    checkpoint.snapshot = Some(Snapshot {
        data: 40_u64.to_le_bytes().repeat(40),
        metadata: Some(metadata),
    });
    vec![
        append(1, (0, 0), many(1, 1), 0),
        append(1, (4, 1), vec![], 2),
        append(1, (4, 1), many(5, 1), 6),
        // Votes in a later term, then entries that replace some.
        vote(3, 1, 8),
        append(3, (7, 1), many(8, 3), 9),
        append(3, (11, 3), many(12, 3), 15),
        append(3, (15, 3), many(16, 3), 19),
        checkpoint,
        append(5, (40, 5), many(41, 5), 42),
    ]
}

/// What was promised so far.
#[derive(Clone, Copy, Debug, Default)]
struct Promised {
    confirmed: (u64, u64),
    term: u64,
    vote: Option<(u64, u64)>,
    applied: u64,
}

impl Promised {
    fn take(&mut self, recorder: &Recorder, last_term: impl Fn(u64) -> u64) {
        for message in &recorder.messages {
            self.term = self.term.max(message.term);
            let kind = message.get_msg_type();
            if kind == MessageType::MsgAppendResponse && !message.reject {
                self.confirmed = (message.index, last_term(message.index));
            }
            if kind == MessageType::MsgRequestVoteResponse && !message.reject {
                self.vote = Some((message.term, message.to));
            }
        }
        for (_, event) in &recorder.events {
            if let Event::Applied(index) = event {
                self.applied = *index;
            }
        }
    }

    fn check(self, store: &LogStore, place: &str) {
        let (index, term) = self.confirmed;
        assert!(store.last() >= index, "{place}: entry {index} was confirmed");
        if index > 0 && index >= store.first() {
            assert_eq!(
                store.term(index).unwrap(),
                term,
                "{place}: entry {index} is another"
            );
        }
        let state = store.hard_state();
        assert!(state.term >= self.term, "{place}: term {} was told", self.term);
        if let Some((term, to)) = self.vote.filter(|(term, _)| *term == state.term) {
            assert_eq!(state.vote, to, "{place}: the vote of term {term}");
        }
        assert!(state.commit.max(store.checkpoint_index()) <= store.last());
    }
}

#[test]
fn a_follower_keeps_what_it_promised_whenever_the_power_goes() {
    let letters = letters();
    // Terms of the entries that leaders sent last, by index.
    let mut terms = BTreeMap::new();
    let mut rng = Rng::new(3);
    let mut cut = 0;
    for (at, letter) in letters.iter().enumerate() {
        for tear in 0..TEARS {
            for writes in 0..200 {
                let disk = Disk::default();
                let mut node = node(&disk, 2, 3);
                let mut promised = Promised::default();
                terms.clear();
                for earlier in &letters[..at] {
                    terms.extend(earlier.entries.iter().map(|entry| (entry.index, entry.term)));
                    step(&mut node, earlier).unwrap();
                    promised.take(&ready(&mut node, &disk), |index| {
                        terms.get(&index).copied().unwrap_or(5)
                    });
                }
                terms.extend(letter.entries.iter().map(|entry| (entry.index, entry.term)));
                disk.break_after(writes);
                step(&mut node, letter).unwrap();
                let mut recorder = Recorder::new(&disk);
                let finished = node.ready(&mut recorder).is_ok();
                promised.take(&recorder, |index| terms.get(&index).copied().unwrap_or(5));
                disk.crash(&mut rng);
                disk.repair();
                drop(node);
                let place = format!("letter {at}, write {writes}, tear {tear}");
                promised.check(&store(&disk, &identity(2, 3)), &place);
                // And it goes on from there.
                let mut node = self::node(&disk, 2, 3);
                ready(&mut node, &disk);
                assert!(node.status().applied <= node.status().commit, "{place}");
                cut += usize::from(!finished);
                if finished {
                    break;
                }
            }
        }
    }
    assert!(cut > 100, "the power went in {cut} places only");
}

/// A member that is a cluster of its own: what it answered was applied is there, each once and in order.
#[test]
fn an_answered_proposal_is_there_whenever_the_power_goes() {
    let mut rng = Rng::new(4);
    let mut cut = 0;
    for proposals in 1..=9_u64 {
        for tear in 0..TEARS {
            for writes in 0..200 {
                let disk = Disk::default();
                let mut node = node(&disk, 1, 1);
                ready(&mut node, &disk);
                for number in 1..proposals {
                    node.propose(number.to_le_bytes().to_vec(), 50).unwrap();
                    ready(&mut node, &disk);
                }
                disk.break_after(writes);
                node.propose(proposals.to_le_bytes().to_vec(), 50).unwrap();
                let mut recorder = Recorder::new(&disk);
                let finished = node.ready(&mut recorder).is_ok();
                let answered = |(_, event): &(u64, Event)| matches!(event, Event::Proposed(_, Ok(_)));
                let answered = proposals - 1 + u64::from(recorder.events.iter().any(answered));
                disk.crash(&mut rng);
                disk.repair();
                drop(node);
                let mut node = self::node(&disk, 1, 1);
                ready(&mut node, &disk);
                let found = &node.machine().0;
                let expected: Vec<u64> = (1..=found.len() as u64).collect();
                assert_eq!(
                    *found, expected,
                    "proposal {proposals}, write {writes}, tear {tear}"
                );
                assert!(
                    found.len() as u64 >= answered,
                    "{answered} were answered, {} are there: write {writes}, tear {tear}",
                    found.len()
                );
                cut += usize::from(!finished);
                if finished {
                    break;
                }
            }
        }
    }
    assert!(cut > 100, "the power went in {cut} places only");
}
