//! The thread and its handle, on disks in memory.

use std::convert::Infallible;

use tokio::time::{Instant, timeout};
use tramontane_model::ids::CoordinatorId;

use super::*;
use crate::raft::identity::{Identity, Members};
use crate::raft::node::{NodeOptions, ProposeError, ReadError, Role};
use crate::raft::sim::Ledger;
use crate::raft::storage::LogStore;
use crate::raft::storage::faulty::Disk;

const SOON: Duration = Duration::from_secs(10);

struct Nowhere;

impl Transport for Nowhere {
    fn send(&mut self, _message: Outbound) -> Result<(), Dropped> {
        Err(Dropped)
    }
}

fn deadline() -> Instant {
    Instant::now() + SOON
}

fn driver<S: StateMachine>(disk: &Disk, size: u64, initial: S) -> (Driver<S>, RaftHandle<S>) {
    let members = Members::new((1..=size).map(CoordinatorId)).unwrap();
    let identity = Identity::new("demo", CoordinatorId(1), members).unwrap();
    let store = LogStore::open_backend(disk.open(), "disk", &identity, false).unwrap();
    let node = Node::new(store, &identity, NodeOptions::new(&identity), initial).unwrap();
    Driver::new(node, Duration::from_millis(5))
}

/// Fails the test's own thread if raft fails; raft's thread only reports.
fn report() -> (OnFailure, oneshot::Receiver<String>) {
    let (sender, receiver) = oneshot::channel();
    let report = move |failure: &RaftFailure| drop(sender.send(failure.to_string()));
    (Box::new(report), receiver)
}

#[tokio::test]
async fn proposals_are_answered_shown_and_kept() {
    let disk = Disk::default();
    for start in 0..3_u64 {
        let (driver, handle) = driver(&disk, 1, Ledger::default());
        let (on_failure, failed) = report();
        let thread = driver.start(Nowhere, on_failure).unwrap();
        let mut status = handle.watch_status();
        timeout(SOON, status.wait_for(|status| status.role == Role::Leader))
            .await
            .unwrap()
            .unwrap();
        let place = handle
            .propose(start.to_le_bytes().to_vec(), deadline())
            .await
            .unwrap();
        assert_eq!(place as u64, start + 1);
        // Whoever has the answer finds it in the state.
        assert_eq!(handle.state().view, (0..=start).collect::<Vec<_>>());
        assert_eq!(
            handle.read(deadline()).await.unwrap().view.len() as u64,
            start + 1
        );
        assert_eq!(handle.status().applied, handle.state().last.index);
        timeout(SOON, thread.stop()).await.unwrap();
        assert!(failed.await.is_err(), "failed");
        let late = handle.propose(vec![1; 8], deadline()).await;
        assert_eq!(late, Err(ProposeError::ShuttingDown));
        assert_eq!(
            handle.read(deadline()).await.unwrap_err(),
            ReadError::ShuttingDown
        );
    }
}

#[tokio::test]
async fn without_a_leader_nothing_hangs() {
    let (driver, handle) = driver(&Disk::default(), 3, Ledger::default());
    let (on_failure, _failed) = report();
    let _thread = driver.start(Nowhere, on_failure).unwrap();
    let refused = handle.propose(vec![1; 8], deadline()).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: None }));
    let soon = Instant::now() + Duration::from_millis(50);
    assert_eq!(handle.read(soon).await.unwrap_err(), ReadError::TimedOut);
    // Nonsense from a peer is refused and does no harm.
    assert!(handle.deliver(CoordinatorId(2), vec![0xff; 100]));
    assert_eq!(
        handle.propose(vec![1; 8], deadline()).await,
        Err(ProposeError::NotLeader { leader: None })
    );
}

#[tokio::test]
async fn a_full_inbox_refuses_and_does_not_wait() {
    let (driver, handle) = driver(&Disk::default(), 1, Ledger::default());
    // Nobody empties the inbox: the driver is not started.
    (0..MAX_INBOX).for_each(|_| assert!(handle.deliver(CoordinatorId(2), vec![0])));
    assert_eq!(handle.propose(vec![1], deadline()).await, Err(ProposeError::Busy));
    assert_eq!(handle.read(deadline()).await.unwrap_err(), ReadError::Busy);
    drop(driver);
    assert!(!handle.deliver(CoordinatorId(2), vec![0]), "raft has ended");
    let (_driver, handle) = self::driver(&Disk::default(), 1, Ledger::default());
    (0..10).for_each(|_| assert!(handle.deliver(CoordinatorId(2), vec![0; MAX_INBOX_BYTES / 2])));
    assert!(
        handle.budget.reserve(1).is_none(),
        "two fill the bytes there are, the rest is dropped"
    );
}

/// Panics when it is given anything.
struct Fragile;

impl StateMachine for Fragile {
    type Outcome = ();
    type View = ();
    type Error = Infallible;

    fn apply(&mut self, _entry: &[u8]) -> Result<(), Infallible> {
        panic!("cannot apply");
    }
    fn snapshot(&self) -> Result<Vec<u8>, Infallible> {
        Ok(Vec::new())
    }
    fn restore(_bytes: &[u8]) -> Result<Self, Infallible> {
        Ok(Self)
    }
    fn view(&self) {}
}

#[tokio::test]
async fn a_panic_is_reported_and_nobody_waits_for_a_dead_thread() {
    let (driver, handle) = driver(&Disk::default(), 1, Fragile);
    let (on_failure, failed) = report();
    let thread = driver.start(Nowhere, on_failure).unwrap();
    let answer = handle.propose(vec![1], deadline()).await;
    assert_eq!(answer, Err(ProposeError::ShuttingDown));
    let failure = timeout(SOON, failed).await.unwrap().unwrap();
    assert!(
        failure.contains("panicked") && failure.contains("cannot apply"),
        "{failure}"
    );
    timeout(SOON, thread.stop()).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_fails_is_reported_and_confirms_nothing() {
    let disk = Disk::default();
    let (driver, handle) = driver(&disk, 1, Ledger::default());
    let (on_failure, failed) = report();
    let _thread = driver.start(Nowhere, on_failure).unwrap();
    handle
        .propose(7_u64.to_le_bytes().to_vec(), deadline())
        .await
        .unwrap();
    disk.break_after(0);
    let answer = handle.propose(8_u64.to_le_bytes().to_vec(), deadline()).await;
    assert_eq!(answer, Err(ProposeError::ShuttingDown));
    let failure = timeout(SOON, failed).await.unwrap().unwrap();
    assert!(failure.contains("cannot write the log"), "{failure}");
    assert_eq!(handle.state().view, [7]);
}
