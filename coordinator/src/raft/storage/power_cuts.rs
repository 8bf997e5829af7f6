//! RF-2: the power goes at every write and every sync of every call, and of opening the log, with whatever a disk may make
//! of what was not synced; the log is then what the last finished call left, or what the one under way would have.

use raft::eraftpb::Snapshot;

use super::faulty::Disk;
use super::mirror::Mirror;
use super::tests::{append, entry, hard_state, open, snapshot};
use super::*;
use crate::raft::sim::Rng;

/// What a disk may make of the writes that were under way, for each place at which the power goes.
const TEARS: u64 = 8;
/// No call takes as many writes and syncs.
const MAX_WRITES: u64 = 200;

type Call = fn(&mut LogStore) -> Result<(), StoreError>;

/// Every way in which the log is written.
const CALLS: [(&str, Call); 8] = [
    ("append", |store| {
        let state = hard_state(4, 1, 8);
        let entries = [entry(11, 4, 3000), entry(12, 4, 10), entry(13, 4, 9000)];
        store.persist(&Batch {
            entries: &entries,
            hard_state: Some(&state),
            snapshot: None,
        })
    }),
    ("append over another leader's entries", |store| {
        let state = hard_state(5, 0, 8);
        let entries = [entry(9, 5, 2000), entry(10, 5, 10)];
        store.persist(&Batch {
            entries: &entries,
            hard_state: Some(&state),
            snapshot: None,
        })
    }),
    ("vote", |store| {
        let state = hard_state(6, 3, 8);
        store.persist(&Batch {
            hard_state: Some(&state),
            ..Batch::default()
        })
    }),
    ("commit, before it is applied", |store| store.save_commit(10)),
    ("checkpoint of a leader", |store| {
        install(store, &snapshot(40, 6, &[4; 20_000]), &[])
    }),
    ("checkpoint of a leader, and entries after it", |store| {
        let entries = [entry(41, 6, 100), entry(42, 6, 6000)];
        install(store, &snapshot(40, 6, b"forty"), &entries)
    }),
    ("checkpoint of what was applied", |store| {
        store.save_checkpoint(snapshot(8, 3, &[8; 12_000]), 3)
    }),
    ("checkpoint and compaction", |store| {
        store.save_checkpoint(snapshot(8, 3, &[8; 12_000]), 8)
    }),
];

fn install(store: &mut LogStore, snapshot: &Snapshot, entries: &[Entry]) -> Result<(), StoreError> {
    let state = hard_state(6, 0, 40);
    store.persist(&Batch {
        snapshot: Some(snapshot),
        entries,
        hard_state: Some(&state),
    })
}

/// A disk with ten entries, eight of them committed, and a checkpoint at the third.
fn used() -> (Vec<u8>, Mirror) {
    let disk = Disk::default();
    let mut store = open(&disk).unwrap();
    let entries: Vec<Entry> = (1..=10)
        .map(|index| entry(index, 1 + index / 4, 700 * index as usize))
        .collect();
    append(&mut store, &entries, 5);
    store.save_checkpoint(snapshot(3, 1, &[3; 5000]), 2).unwrap();
    store.save_commit(8).unwrap();
    let mirror = store.mirror.clone();
    drop(store);
    (disk.bytes(), mirror)
}

fn disk_with(bytes: &[u8]) -> Disk {
    let disk = Disk::default();
    disk.overwrite(bytes.to_vec());
    disk
}

/// Opens a log after a loss of power; the power goes once more while it is opened, at a random place.
fn reopened(disk: &Disk, rng: &mut Rng) -> Mirror {
    disk.break_after(rng.below(30));
    drop(open(disk));
    disk.crash(rng);
    disk.repair();
    open(disk).unwrap().mirror
}

#[test]
fn power_may_go_at_every_write_of_every_call() {
    let (bytes, before) = used();
    for (name, call) in CALLS {
        let whole = disk_with(&bytes);
        let mut store = open(&whole).unwrap();
        call(&mut store).unwrap();
        let after = store.mirror.clone();
        assert_ne!(before, after, "{name} does nothing");
        let mut rng = Rng::new(1);
        for tear in 0..TEARS {
            let mut places = 0;
            for writes in 0.. {
                assert!(writes < MAX_WRITES, "{name} does not end");
                let disk = disk_with(&bytes);
                let mut store = open(&disk).unwrap();
                disk.break_after(writes);
                let finished = call(&mut store).is_ok();
                disk.crash(&mut rng);
                disk.repair();
                drop(store);
                let found = reopened(&disk, &mut rng);
                let kept = found == after || (!finished && found == before);
                assert!(kept, "{name}, write {writes}, tear {tear}: {found:?}");
                places = writes;
                if finished {
                    break;
                }
            }
            assert!(places > 2, "{name} writes in {places} places only");
        }
    }
}

/// The first start, and every later one.
#[test]
fn power_may_go_at_every_write_of_a_start() {
    let (bytes, before) = used();
    let mut rng = Rng::new(2);
    for (bytes, is_first) in [(Vec::new(), true), (bytes, false)] {
        for tear in 0..TEARS {
            for writes in 0.. {
                assert!(writes < MAX_WRITES, "a start does not end");
                let disk = disk_with(&bytes);
                disk.break_after(writes);
                let opened = open(&disk);
                let finished = opened.is_ok();
                drop(opened);
                disk.crash(&mut rng);
                disk.repair();
                let found = open(&disk);
                let place = format!("write {writes}, tear {tear}");
                match found {
                    Ok(store) if is_first => {
                        assert_eq!((store.last(), store.checkpoint_index()), (0, 0), "{place}");
                    }
                    Ok(store) => {
                        assert_eq!(store.mirror, before, "{place}");
                        assert!(store.starts() >= if finished { 3 } else { 2 }, "{place}");
                    }
                    // Half a file: made under another name, which is given up at the next start.
                    Err(StoreError::Corrupt { .. }) if is_first && !finished => {}
                    Err(error) => panic!("{place}: {error}"),
                }
                if finished {
                    break;
                }
            }
        }
    }
}
