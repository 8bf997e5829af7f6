//! Coordinators in one process, over real connections and real files.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tramontane_proto::net::{self, Listener, Traffic};

use super::*;
use crate::raft::driver::{Dropped, Transport};
use crate::raft::node::Outbound;
use crate::raft::sim::{ADDED, Ledger};
use crate::raft::transport::PeerLinks;
use crate::raft::{Driver, LogStore, Members, Node, NodeOptions, ProposeError, RaftThread, Role, TICK};

const SOON: Duration = Duration::from_secs(20);

/// Links that can be cut, as a dead process's are.
struct Cuttable {
    links: PeerLinks<Ledger>,
    cut: Arc<AtomicBool>,
}

impl Transport for Cuttable {
    fn send(&mut self, message: Outbound) -> Result<(), Dropped> {
        if self.cut.load(Ordering::Relaxed) {
            Err(Dropped)
        } else {
            self.links.send(message)
        }
    }
}

struct Coordinator {
    handle: RaftHandle<Ledger>,
    thread: RaftThread,
    server: JoinHandle<()>,
    shut_down: oneshot::Sender<()>,
    cut: Arc<AtomicBool>,
}

impl Coordinator {
    /// As good as kill -9 for everybody else.
    fn kill(&self) {
        self.cut.store(true, Ordering::Relaxed);
        self.server.abort();
    }

    async fn stop(self) {
        timeout(SOON, self.thread.stop()).await.expect("raft ends");
        self.shut_down.send(()).expect("the server runs");
        // Open streams end with raft, so the server does not wait for them.
        timeout(SOON, self.server)
            .await
            .expect("the server ends")
            .unwrap();
    }

    async fn until(&self, what: &str, condition: impl FnMut(&crate::raft::RaftStatus) -> bool) {
        let mut status = self.handle.watch_status();
        let reached = timeout(SOON, status.wait_for(condition)).await;
        assert!(
            matches!(reached, Ok(Ok(_))),
            "not reached: {what}: {:?}",
            self.handle.status()
        );
    }
}

fn identity(id: CoordinatorId) -> Identity {
    let first = Members::new((1..=3).map(CoordinatorId)).unwrap();
    match id.0 {
        1..=3 => Identity::new("demo", id, first).unwrap(),
        _ => Identity::joining("demo", id, first).unwrap(),
    }
}

/// Starts a coordinator on a port, or on a free one.
async fn start(
    id: CoordinatorId,
    directory: &Path,
    listener: Listener,
    addresses: &BTreeMap<CoordinatorId, String>,
) -> Coordinator {
    let identity = identity(id);
    let store = LogStore::open(&directory.join(id.to_string()), &identity).unwrap();
    let options = NodeOptions {
        checkpoint_entries: 8,
        kept_entries: 3,
        ..NodeOptions::new(&identity)
    };
    let node = Node::new(store, &identity, options, Ledger::default()).unwrap();
    let (driver, handle) = Driver::new(node, TICK);
    let known = addresses.clone();
    let links = PeerLinks::open(
        &identity,
        move |id| known.get(&id).cloned(),
        &net::Identity::Loopback,
        &handle,
    )
    .unwrap();
    let service = RaftService::server(identity, handle.clone(), |_| false);
    let server = net::server(Traffic::Control).add_service(service);
    let (shut_down, told) = oneshot::channel();
    let server = tokio::spawn(async move {
        let shut_down = async { drop(told.await) };
        server
            .serve_with_incoming_shutdown(listener.into_stream(), shut_down)
            .await
            .expect("the server runs");
    });
    let cut = Arc::new(AtomicBool::new(false));
    let thread = driver
        .start(
            Cuttable {
                links,
                cut: cut.clone(),
            },
            Box::new(|failure| eprintln!("raft failed: {failure}")),
        )
        .unwrap();
    Coordinator {
        handle,
        thread,
        server,
        shut_down,
        cut,
    }
}

/// Binds a port that a coordinator just left; its server lets go of it a moment after it was told to.
async fn rebind(address: &str) -> Listener {
    let address: SocketAddr = address.parse().unwrap();
    let bind = async {
        loop {
            match Listener::bind(address, &net::Identity::Loopback).await {
                Ok(listener) => return listener,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    timeout(SOON, bind).await.expect("the port is free")
}

type Cluster = BTreeMap<CoordinatorId, Coordinator>;

async fn bind_any() -> Listener {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    Listener::bind(any, &net::Identity::Loopback).await.unwrap()
}

async fn start_all(directory: &Path) -> (Cluster, BTreeMap<CoordinatorId, String>) {
    let (cluster, addresses, _) = start_all_and_bind_one(directory).await;
    (cluster, addresses)
}

/// Starts three; where the fourth is to be is known to all.
async fn start_all_and_bind_one(directory: &Path) -> (Cluster, BTreeMap<CoordinatorId, String>, Listener) {
    let mut listeners = BTreeMap::new();
    for id in (1..=3).map(CoordinatorId) {
        listeners.insert(id, bind_any().await);
    }
    let fourth = bind_any().await;
    let mut addresses: BTreeMap<_, _> = listeners
        .iter()
        .map(|(id, listener)| (*id, listener.address().to_string()))
        .collect();
    addresses.insert(CoordinatorId(4), fourth.address().to_string());
    let mut cluster = BTreeMap::new();
    for (id, listener) in listeners {
        cluster.insert(id, start(id, directory, listener, &addresses).await);
    }
    (cluster, addresses, fourth)
}

/// Waits until these coordinators follow one leader among them.
async fn leader(cluster: &Cluster, among: &[CoordinatorId]) -> CoordinatorId {
    let deadline = Instant::now() + SOON;
    loop {
        for id in among {
            let among = among.to_vec();
            let known = move |s: &crate::raft::RaftStatus| s.leader.is_some_and(|l| among.contains(&l));
            cluster[id].until("a leader is known", known).await;
        }
        let named: Vec<_> = among
            .iter()
            .filter_map(|id| cluster[id].handle.status().leader)
            .collect();
        if named.len() == among.len()
            && named.iter().all(|leader| *leader == named[0])
            && cluster[&named[0]].handle.status().role == Role::Leader
        {
            return named[0];
        }
        assert!(Instant::now() < deadline, "no agreement on a leader");
    }
}

async fn propose(cluster: &Cluster, leader: CoordinatorId, number: u64) {
    let entry = number.to_le_bytes().to_vec();
    cluster[&leader]
        .handle
        .propose(entry, Instant::now() + SOON)
        .await
        .expect("the leader takes it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_coordinators_agree_hand_over_and_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (mut cluster, addresses) = start_all(directory.path()).await;
    let everyone: Vec<_> = cluster.keys().copied().collect();
    let first = leader(&cluster, &everyone).await;
    for number in 0..5 {
        propose(&cluster, first, number).await;
    }
    let others: Vec<_> = everyone.iter().copied().filter(|id| *id != first).collect();
    for id in &others {
        let handle = &cluster[id].handle;
        let refused = handle.propose(vec![1; 8], Instant::now() + SOON).await;
        assert_eq!(refused, Err(ProposeError::NotLeader { leader: Some(first) }));
        assert_eq!(
            handle.read(Instant::now() + SOON).await.unwrap().view,
            [0, 1, 2, 3, 4]
        );
    }
    // A leader that is told to end hands over and loses nothing.
    let stopped = cluster.remove(&first).unwrap();
    stopped.stop().await;
    let second = leader(&cluster, &others).await;
    propose(&cluster, second, 5).await;
    // It comes back on the same port from its own files and catches up.
    let listener = rebind(&addresses[&first]).await;
    cluster.insert(first, start(first, directory.path(), listener, &addresses).await);
    let mut state = cluster[&first].handle.watch_state();
    timeout(SOON, state.wait_for(|state| state.view == [0, 1, 2, 3, 4, 5]))
        .await
        .unwrap()
        .unwrap();
    // All of them again, from their files.
    for (_, coordinator) in std::mem::take(&mut cluster) {
        coordinator.stop().await;
    }
    let (cluster, _) = start_all(directory.path()).await;
    let third = leader(&cluster, &everyone).await;
    propose(&cluster, third, 6).await;
    assert_eq!(cluster[&third].handle.state().view, [0, 1, 2, 3, 4, 5, 6]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_added_far_behind_gets_a_checkpoint_over_the_wire_and_votes() {
    let directory = tempfile::tempdir().unwrap();
    let (mut cluster, addresses, listener) = start_all_and_bind_one(directory.path()).await;
    let everyone: Vec<_> = cluster.keys().copied().collect();
    let first = leader(&cluster, &everyone).await;
    for number in 0..40 {
        propose(&cluster, first, number).await;
    }
    assert!(
        cluster[&first].handle.status().first_index > 1,
        "the log was truncated"
    );
    let fourth = CoordinatorId(4);
    let new = start(fourth, directory.path(), listener, &addresses).await;
    propose(&cluster, first, ADDED | 4).await;
    cluster[&first]
        .until("it votes", |status| {
            status.voters.contains(&fourth) && !status.joint
        })
        .await;
    let status = new.handle.status();
    assert!(
        status.first_index > 1 && status.checkpoint_index > 0,
        "{status:?}"
    );
    cluster.insert(fourth, new);
    propose(&cluster, first, 40).await;
    let mut state = cluster[&fourth].handle.watch_state();
    let whole: Vec<u64> = (0..40).chain([ADDED | 4, 40]).collect();
    timeout(SOON, state.wait_for(|state| state.view == whole))
        .await
        .unwrap()
        .unwrap();
}

/// With the usual tick: whoever asks the survivors gets an answer within three seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_killed_is_replaced_within_three_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, _) = start_all(directory.path()).await;
    let everyone: Vec<_> = cluster.keys().copied().collect();
    let first = leader(&cluster, &everyone).await;
    propose(&cluster, first, 1).await;
    let left: Vec<_> = everyone.into_iter().filter(|id| *id != first).collect();
    cluster[&first].kill();
    let killed = Instant::now();
    let second = leader(&cluster, &left).await;
    propose(&cluster, second, 2).await;
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(3), "it took {took:?}");
    // The one that was cut off does not take itself for the leader.
    cluster[&first]
        .until("the old leader steps down", |status| status.role != Role::Leader)
        .await;
}

#[tokio::test]
async fn strangers_and_impostors_are_refused() {
    let store = LogStore::open(tempfile::tempdir().unwrap().path(), &identity(CoordinatorId(1))).unwrap();
    let own = identity(CoordinatorId(1));
    let node = Node::new(store, &own, NodeOptions::new(&own), Ledger::default()).unwrap();
    let (_driver, handle) = Driver::new(node, TICK);
    let service = RaftService {
        tag: own.tag(),
        identity: own.clone(),
        handle,
        is_removed: Box::new(|_| false),
    };
    let envelope = |cluster: String, from, to| RaftEnvelope {
        cluster,
        from,
        to,
        message: Vec::new().into(),
    };
    let named = |names: &[&str]| Peer {
        address: None,
        names: Some(names.iter().map(|name| (*name).to_owned()).collect()),
    };
    let second = named(&["coordinator-2", "10.0.0.2"]);
    assert_eq!(
        service.check(&second, &envelope(own.tag(), 2, 1)).unwrap(),
        CoordinatorId(2)
    );
    let loopback = Peer {
        address: None,
        names: None,
    };
    assert!(service.check(&loopback, &envelope(own.tag(), 3, 1)).is_ok());
    let other_members = Members::new([1, 2, 4].map(CoordinatorId)).unwrap();
    let other = Identity::new("demo", CoordinatorId(2), other_members).unwrap();
    for (peer, envelope, expected) in [
        (&second, envelope(other.tag(), 2, 1), "[1, 2, 4]"),
        (&second, envelope("x".repeat(1 << 20), 2, 1), "cluster"),
        (&second, envelope(own.tag(), 2, 3), "is for 3"),
        (&second, envelope(own.tag(), 9, 1), "needs \"coordinator-9\""),
        (&second, envelope(own.tag(), 1, 1), "no peer"),
        (&second, envelope(own.tag(), 3, 1), "coordinator-3"),
        (&named(&["worker-2"]), envelope(own.tag(), 2, 1), "worker-2"),
    ] {
        let refused = service.check(peer, &envelope).expect_err(expected);
        assert!(refused.message().contains(expected), "{refused}");
        assert!(refused.message().len() < 1000, "{}", refused.message().len());
    }
}
