//! Links whose peers are not there.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::*;
use crate::raft::handle::{Applied, Input};
use crate::raft::identity::Members;
use crate::raft::node::{Node, NodeOptions};
use crate::raft::sim::Ledger;
use crate::raft::storage::LogStore;
use crate::raft::storage::faulty::Disk;

type Told = std::sync::mpsc::Receiver<Input<Ledger>>;

/// Links of coordinator 1 to two peers at `address`, and what they tell the node.
fn open(address: &str) -> Result<(PeerLinks<Ledger>, Told), NetError> {
    let members = Members::new([1, 2, 3].map(CoordinatorId)).unwrap();
    let identity = Identity::new("demo", CoordinatorId(1), members).unwrap();
    let store = LogStore::open_backend(Disk::default().open(), "disk", &identity, false).unwrap();
    let node = Node::new(store, &identity, NodeOptions::new(&identity), Ledger::default()).unwrap();
    let (inbox, told) = sync_channel(100);
    let applied = Applied {
        last: node.applied(),
        view: Vec::new(),
    };
    let handle = RaftHandle {
        inbox,
        budget: ByteBudget::new(100),
        stop: Arc::new(AtomicBool::new(false)),
        status: watch::channel(node.status()).1,
        state: watch::channel(Arc::new(applied)).1,
    };
    let addresses = BTreeMap::from([2, 3].map(|id| (CoordinatorId(id), address.to_owned())));
    let known = move |id| addresses.get(&id).cloned();
    Ok((
        PeerLinks::open(&identity, known, &net::Identity::Loopback, &handle)?,
        told,
    ))
}

fn message(to: u64, is_snapshot: bool, bytes: usize) -> Outbound {
    Outbound {
        to: CoordinatorId(to),
        is_snapshot,
        bytes: vec![0; bytes],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_peer_that_is_down_is_reported_and_so_is_each_checkpoint_for_it() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = port.local_addr().unwrap().to_string();
    drop(port);
    let (mut links, told) = open(&address).unwrap();
    // The second finds the link between two attempts, or trying again.
    for _ in 0..2 {
        links.send(message(2, true, 10)).unwrap();
        loop {
            let input = told
                .recv_timeout(Duration::from_secs(10))
                .expect("the node is told");
            if let Input::SnapshotSent { to, sent } = input {
                assert_eq!((to, sent), (CoordinatorId(2), false));
                break;
            }
            assert!(matches!(input, Input::Unreachable(CoordinatorId(2))));
        }
    }
    links.send(message(2, false, 10)).unwrap();
    drop(links);
    // The link ends with its queue, so that nothing is left to tell.
    while let Ok(input) = told.recv_timeout(Duration::from_secs(10)) {
        assert!(matches!(input, Input::Unreachable(CoordinatorId(2))));
    }
}

#[tokio::test]
async fn queues_are_bounded_in_number_and_bytes_and_only_peers_have_one() {
    let (mut links, _told) = open("127.0.0.1:1").unwrap();
    assert_eq!(links.send(message(9, false, 1)), Err(Dropped));
    assert_eq!(links.send(message(1, false, 1)), Err(Dropped));
    assert_eq!(links.send(message(2, true, MAX_MESSAGE_BYTES + 1)), Err(Dropped));
    // This runtime has one thread, so the links' tasks take nothing while it is here.
    assert_eq!(links.send(message(2, true, MAX_MESSAGE_BYTES)), Ok(()));
    assert_eq!(links.send(message(2, true, MAX_MESSAGE_BYTES)), Err(Dropped));
    let taken = (0..2 * MAX_QUEUED)
        .filter(|_| links.send(message(3, false, 1)).is_ok())
        .count();
    assert_eq!(taken, MAX_QUEUED);
}

#[tokio::test]
async fn a_peer_beyond_loopback_needs_certificates() {
    let refused = open("10.0.0.2:7000").err().expect("connected in the clear");
    assert!(refused.to_string().contains("mutual TLS"), "{refused}");
}
