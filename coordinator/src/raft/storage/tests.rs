use std::io::ErrorKind;

use raft::Storage;
use raft::eraftpb::SnapshotMetadata;
use tramontane_model::ids::CoordinatorId;

use super::faulty::Disk;
use super::*;
use crate::raft::identity::Members;
use crate::raft::sim::Rng;

pub(super) fn identity(cluster: &str, id: u64, members: &[u64]) -> Identity {
    let members = Members::new(members.iter().map(|id| CoordinatorId(*id))).unwrap();
    Identity::new(cluster, CoordinatorId(id), members).unwrap()
}

pub(super) fn member() -> Identity {
    identity("demo", 1, &[1, 2, 3])
}

pub(super) fn open(disk: &Disk) -> Result<LogStore, StoreError> {
    LogStore::open_backend(disk.open(), "disk", &member(), false)
}

pub(super) fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    Entry {
        index,
        term,
        data: vec![index as u8; bytes],
        ..Entry::default()
    }
}

pub(super) fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit }
}

pub(super) fn snapshot(index: u64, term: u64, data: &[u8]) -> Snapshot {
    let members = ConfState {
        voters: vec![1, 2, 3],
        ..ConfState::default()
    };
    let metadata = SnapshotMetadata {
        conf_state: Some(members),
        index,
        term,
    };
    Snapshot {
        data: data.to_vec(),
        metadata: Some(metadata),
    }
}

pub(super) fn append(store: &mut LogStore, entries: &[Entry], commit: u64) {
    let hard_state = hard_state(entries[0].term, 1, commit);
    store
        .persist(&Batch {
            entries,
            hard_state: Some(&hard_state),
            snapshot: None,
        })
        .unwrap();
}

#[test]
fn a_new_log_names_its_first_members_and_nothing_else() {
    let store = open(&Disk::default()).unwrap();
    let state = store.initial_state().unwrap();
    assert_eq!(state.conf_state.voters, [1, 2, 3]);
    assert_eq!(state.hard_state, HardState::default());
    assert_eq!(
        (
            store.first_index().unwrap(),
            store.last_index().unwrap(),
            store.starts()
        ),
        (1, 0, 1)
    );
    assert_eq!(store.term(0).unwrap(), 0);
    // Nobody can need a checkpoint that does not exist; raft-rs would panic over an empty one.
    assert_eq!(
        store.mirror.snapshot(0),
        Err(raft::StorageError::SnapshotTemporarilyUnavailable)
    );
}

#[test]
fn what_was_written_is_there_after_a_start() {
    let disk = Disk::default();
    let mut store = open(&disk).unwrap();
    append(
        &mut store,
        &[entry(1, 1, 10), entry(2, 1, 10), entry(3, 1, 10), entry(4, 1, 10)],
        2,
    );
    append(&mut store, &[entry(3, 2, 20), entry(4, 2, 20)], 3);
    store.save_checkpoint(snapshot(3, 2, b"three"), 2).unwrap();
    let before = store.mirror.clone();
    drop(store);
    let store = open(&disk).unwrap();
    assert_eq!(store.mirror, before);
    assert_eq!(store.starts(), 2);
    assert_eq!((store.first(), store.last()), (3, 4));
    assert_eq!((store.term(2).unwrap(), store.term(3).unwrap()), (1, 2));
    assert_eq!(store.checkpoint().data, b"three");
    assert_eq!(
        store.mirror.entries(2, 4, None),
        Err(raft::StorageError::Compacted)
    );
    assert_eq!(
        store.mirror.entries(3, 6, None),
        Err(raft::StorageError::Unavailable)
    );
    // A limit never cuts to nothing.
    assert_eq!(store.mirror.entries(3, 5, Some(0)).unwrap(), [entry(3, 2, 20)]);
}

#[test]
fn a_leaders_checkpoint_replaces_the_log() {
    let disk = Disk::default();
    let mut store = open(&disk).unwrap();
    append(&mut store, &[entry(1, 1, 1), entry(2, 1, 1), entry(3, 1, 1)], 1);
    let (snapshot, hard_state) = (snapshot(9, 4, b"nine"), hard_state(4, 0, 10));
    let entries = [entry(10, 4, 1)];
    store
        .persist(&Batch {
            snapshot: Some(&snapshot),
            entries: &entries,
            hard_state: Some(&hard_state),
        })
        .unwrap();
    let before = store.mirror.clone();
    drop(store);
    let store = open(&disk).unwrap();
    assert_eq!(store.mirror, before);
    assert_eq!(
        (store.first(), store.last(), store.checkpoint_index()),
        (10, 10, 9)
    );
    assert_eq!((store.term(9).unwrap(), store.term(10).unwrap()), (4, 4));
}

#[test]
fn a_sequence_that_raft_forbids_is_refused_and_changes_nothing() {
    let mut store = open(&Disk::default()).unwrap();
    append(&mut store, &[entry(1, 1, 1), entry(2, 1, 1), entry(3, 1, 1)], 3);
    store.save_checkpoint(snapshot(3, 1, b""), 2).unwrap();
    let before = store.mirror.clone();
    for entries in [
        &[entry(5, 1, 1)][..],
        &[entry(2, 1, 1)],
        &[entry(4, 1, 1), entry(6, 1, 1)],
    ] {
        let refused = store.persist(&Batch {
            entries,
            ..Batch::default()
        });
        assert!(matches!(refused, Err(StoreError::Sequence { .. })), "{refused:?}");
    }
    let late = hard_state(1, 1, 4);
    assert!(
        store
            .persist(&Batch {
                hard_state: Some(&late),
                ..Batch::default()
            })
            .is_err()
    );
    assert!(
        store.save_checkpoint(snapshot(2, 1, b""), 2).is_err(),
        "older than the one kept"
    );
    assert!(
        store.save_checkpoint(snapshot(4, 1, b""), 2).is_err(),
        "not committed"
    );
    assert!(
        store.save_checkpoint(snapshot(3, 1, b""), 4).is_err(),
        "truncates what it does not hold"
    );
    assert_eq!(store.mirror, before);
}

#[test]
fn a_log_is_bound_to_its_owner() {
    let disk = Disk::default();
    drop(open(&disk).unwrap());
    let refuse = |identity| {
        let refused = LogStore::open_backend(disk.open(), "disk", &identity, true);
        refused.err().expect("another owner's log was opened").to_string()
    };
    let message = refuse(identity("other", 1, &[1, 2, 3]));
    assert!(
        message.contains("\"demo\"") && message.contains("\"other\""),
        "{message}"
    );
    let message = refuse(identity("demo", 2, &[1, 2, 3]));
    assert!(
        message.contains("coordinator 1") && message.contains("says 2"),
        "{message}"
    );
    let message = refuse(identity("demo", 1, &[1, 2, 4]));
    assert!(
        message.contains("[1, 2, 3]") && message.contains("[1, 2, 4]"),
        "{message}"
    );
    assert!(open(&disk).is_ok());
}

#[test]
fn a_directory_is_locked_and_remembers_that_it_had_a_log() {
    let directory = tempfile::tempdir().unwrap();
    let store = LogStore::open(directory.path(), &member()).unwrap();
    let second = LogStore::open(directory.path(), &member())
        .err()
        .expect("opened twice");
    assert!(matches!(second, StoreError::InUse { .. }), "{second}");
    assert!(
        second.to_string().contains(&*directory.path().to_string_lossy()),
        "{second}"
    );
    drop(store);
    let log = directory.path().join(LOG_FILE);
    // Emptied, or gone: it must not look like a first start.
    std::fs::write(&log, b"").unwrap();
    let lost = LogStore::open(directory.path(), &member())
        .err()
        .expect("an emptied log was opened");
    assert!(matches!(lost, StoreError::Lost { .. }), "{lost}");
    std::fs::remove_file(&log).unwrap();
    assert!(matches!(
        LogStore::open(directory.path(), &member()),
        Err(StoreError::Lost { .. })
    ));
    std::fs::write(&log, vec![b'x'; 10_000]).unwrap();
    let foreign = LogStore::open(directory.path(), &member())
        .err()
        .expect("a foreign file was opened");
    assert!(matches!(foreign, StoreError::Corrupt { .. }), "{foreign}");
    assert!(foreign.to_string().contains(LOG_FILE), "{foreign}");
}

/// A loss of power while the log is made for the first time.
#[test]
fn half_a_new_log_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("raft.redb.new"), vec![b'x'; 10_000]).unwrap();
    let store = LogStore::open(directory.path(), &member()).unwrap();
    assert_eq!((store.last(), store.checkpoint_index()), (0, 0));
    drop(store);
    assert!(LogStore::open(directory.path(), &member()).is_ok());
    let mut names: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["raft.redb", "raft.used"]);
}

#[test]
fn another_programs_database_is_refused() {
    let disk = Disk::default();
    let database = Builder::new().create_with_backend(disk.open()).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(redb::TableDefinition::<u64, u64>::new("sales"))
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let refused = open(&disk).err().expect("a foreign database was taken over");
    assert!(refused.to_string().contains("sales"), "{refused}");
}

/// RF-2: after a loss of power the log is exactly what the last finished call left, or what the call that was
/// under way would have left.
#[test]
fn a_loss_of_power_loses_nothing_that_was_confirmed() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let disk = Disk::default();
        let mut confirmed = open(&disk).unwrap().mirror;
        for _ in 0..6 {
            let mut store = open(&disk).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert_eq!(store.mirror, confirmed, "seed {seed}");
            for _ in 0..1 + rng.below(4) {
                let (first, term) = (store.last() + 1, confirmed.hard_state.term + 1);
                let entries: Vec<_> = (first..=first + rng.below(3))
                    .map(|i| entry(i, term, rng.below(9000) as usize))
                    .collect();
                append(&mut store, &entries, first);
                if rng.chance(30) {
                    store
                        .save_checkpoint(snapshot(first, term, &vec![7; 5000]), first)
                        .unwrap();
                }
                confirmed = store.mirror.clone();
            }
            // The last call breaks off somewhere; what it asked for may or may not be there afterwards.
            disk.break_after(rng.below(12));
            let (first, term) = (store.last() + 1, confirmed.hard_state.term + 1);
            let hard_state = hard_state(term, 2, first);
            let entries = [entry(first, term, 6000)];
            let asked = Batch {
                entries: &entries,
                hard_state: Some(&hard_state),
                snapshot: None,
            };
            let finished = store.persist(&asked).is_ok();
            let kept = store.mirror.clone();
            disk.crash(&mut rng);
            disk.repair();
            drop(store);
            let mut under_way = confirmed.clone();
            under_way.append(&entries);
            under_way.hard_state = hard_state.clone();
            assert_eq!(
                kept,
                if finished {
                    under_way.clone()
                } else {
                    confirmed.clone()
                }
            );
            let found = open(&disk).unwrap_or_else(|e| panic!("seed {seed}: {e}")).mirror;
            assert!(
                found == under_way || (!finished && found == confirmed),
                "seed {seed}: {found:?}"
            );
            confirmed = found;
        }
    }
}

#[test]
fn a_full_disk_is_an_error_and_the_log_stays_whole() {
    let disk = Disk::default();
    let mut store = open(&disk).unwrap();
    append(&mut store, &[entry(1, 1, 100)], 1);
    disk.set_capacity(Some(disk.len()));
    let mut index = 1;
    let refused = loop {
        index += 1;
        let before = store.mirror.clone();
        let entries = [entry(index, 1, 100_000)];
        if let Err(e) = store.persist(&Batch {
            entries: &entries,
            ..Batch::default()
        }) {
            assert_eq!(store.mirror, before);
            break e;
        }
        assert!(index < 1000, "the disk never filled up");
    };
    let StoreError::Write { source, .. } = &refused else {
        panic!("{refused}")
    };
    assert!(
        matches!(&**source, redb::Error::Io(e) if e.kind() == ErrorKind::StorageFull),
        "{refused}"
    );
    let kept = store.mirror.clone();
    assert!(
        store.save_commit(index - 1).is_err(),
        "a log that failed once takes no more writes"
    );
    drop(store);
    disk.set_capacity(None);
    assert_eq!(open(&disk).unwrap().mirror, kept);
}

#[test]
fn changed_bytes_are_found_or_do_not_matter() {
    let disk = Disk::default();
    let mut store = open(&disk).unwrap();
    let entries: Vec<_> = (1..=20).map(|index| entry(index, 1, 2000)).collect();
    append(&mut store, &entries, 20);
    store.save_checkpoint(snapshot(10, 1, &[9; 10_000]), 5).unwrap();
    let before = store.mirror.clone();
    drop(store);
    let mut intact = Vec::new();
    let mut found = 0;
    for step in 0..60 {
        let offset = step * (disk.len() / 60);
        if step == 0 {
            let file = disk.open();
            intact = vec![0; disk.len() as usize];
            file.read(0, &mut intact).unwrap();
        }
        disk.overwrite(intact.clone());
        disk.corrupt(offset);
        match open(&disk) {
            Ok(store) => assert_eq!(store.mirror, before, "byte {offset} changed what the log says"),
            Err(StoreError::Corrupt { .. }) => found += 1,
            Err(other) => panic!("byte {offset}: {other}"),
        }
    }
    assert!(found > 0, "no change was found");
}
