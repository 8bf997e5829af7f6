//! Messages to peers over gRPC: one long-lived stream per peer, one task that owns it.
//!
//! Best effort: a queue that is full drops, a stream that breaks loses what was in it, and raft sends again what
//! matters. Nothing is retried or kept for later here, because an old message is worth less than the next.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tramontane_model::ids::CoordinatorId;
use tramontane_proto::net::{self, NetError, Traffic};
use tramontane_proto::v1::RaftEnvelope;
use tramontane_proto::v1::raft_client::RaftClient;

use super::budget::{ByteBudget, Reserved};
use super::driver::{Dropped, Transport};
use super::handle::RaftHandle;
use super::identity::Identity;
use super::metrics;
use super::node::{MAX_MESSAGE_BYTES, Outbound};
use super::state_machine::StateMachine;

/// Most messages that wait for one peer.
const MAX_QUEUED: usize = 512;
/// Most peers that a coordinator has streams to in its life.
const MAX_LINKS: usize = 64;
/// Most bytes that wait for one peer: a checkpoint, and entries beside it.
const MAX_QUEUED_BYTES: usize = MAX_MESSAGE_BYTES + (16 << 20);
/// Messages handed to a stream that it has not sent yet.
const MAX_FED: usize = 4;
/// Longest wait for a stream to take another message.
const FEED_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after a stream broke: doubled each time up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A stream that lived this long was not refused, so that the pauses start anew.
const STEADY: Duration = Duration::from_secs(2);

/// Streams to all peers.
pub struct PeerLinks<S: StateMachine> {
    links: BTreeMap<CoordinatorId, Link>,
    own: net::Identity,
    address: Box<dyn Fn(CoordinatorId) -> Option<String> + Send>,
    from: (CoordinatorId, String),
    handle: RaftHandle<S>,
    runtime: Handle,
}

struct Link {
    queue: Sender<Queued>,
    budget: ByteBudget,
}

struct Queued {
    message: Outbound,
    _reserved: Reserved,
}

impl<S: StateMachine> PeerLinks<S> {
    /// Opens a link to every first member but this one, and later to whoever there is a message for. `address` tells a
    /// coordinator's gRPC address, `host:port`; the links connect when there is something to send, and end with this.
    /// Must be called within a runtime.
    pub fn open(
        identity: &Identity,
        address: impl Fn(CoordinatorId) -> Option<String> + Send + 'static,
        own: &net::Identity,
        handle: &RaftHandle<S>,
    ) -> Result<Self, NetError> {
        let mut links = Self {
            links: BTreeMap::new(),
            own: own.clone(),
            address: Box::new(address),
            from: (identity.id(), identity.tag()),
            handle: handle.clone(),
            runtime: Handle::current(),
        };
        let first = identity.members().as_slice().iter();
        for peer in first.filter(|peer| **peer != identity.id()) {
            if let Some(address) = (links.address)(*peer) {
                links.add(*peer, &address)?;
            }
        }
        Ok(links)
    }

    fn add(&mut self, peer: CoordinatorId, address: &str) -> Result<(), NetError> {
        let (from, cluster) = self.from.clone();
        // Channels are made within a runtime, and raft's thread is none of its.
        let _within = self.runtime.enter();
        let channel = net::channel(address, &self.own, Traffic::Control)?;
        let (queue, queued) = self::channel(MAX_QUEUED);
        let task = LinkTask {
            cluster,
            from,
            to: peer,
            client: RaftClient::new(channel).max_encoding_message_size(2 * MAX_MESSAGE_BYTES),
            queued,
            handle: self.handle.clone(),
        };
        self.runtime.spawn(task.run());
        let budget = ByteBudget::new(MAX_QUEUED_BYTES);
        self.links.insert(peer, Link { queue, budget });
        Ok(())
    }

    /// Opens the link to a peer that was added later, if it is known where it is.
    fn open_late(&mut self, peer: CoordinatorId) {
        if self.links.contains_key(&peer) || peer == self.from.0 || self.links.len() >= MAX_LINKS {
            return;
        }
        let Some(address) = (self.address)(peer) else {
            return;
        };
        match self.add(peer, &address) {
            Ok(()) => tracing::info!(%peer, address, "a coordinator was added: raft has a stream to it"),
            Err(error) => tracing::error!(%peer, address, %error, "a coordinator cannot be reached"),
        }
    }
}

impl<S: StateMachine> Transport for PeerLinks<S> {
    fn send(&mut self, message: Outbound) -> Result<(), Dropped> {
        let to = message.to;
        let drop_for = |why| {
            metrics::dropped(to, why);
            Err(Dropped)
        };
        self.open_late(to);
        let Some(link) = self.links.get(&to) else {
            return drop_for("unknown_peer");
        };
        if message.bytes.len() > MAX_MESSAGE_BYTES {
            tracing::error!(
                peer = %to,
                "a raft message of {} bytes is longer than the {MAX_MESSAGE_BYTES} that peers take",
                message.bytes.len()
            );
            return drop_for("too_long");
        }
        let Some(reserved) = link.budget.reserve(message.bytes.len()) else {
            return drop_for("queue_full");
        };
        match link.queue.try_send(Queued {
            message,
            _reserved: reserved,
        }) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => drop_for("queue_full"),
            Err(TrySendError::Closed(_)) => drop_for("closed"),
        }
    }
}

struct LinkTask<S: StateMachine> {
    cluster: String,
    from: CoordinatorId,
    to: CoordinatorId,
    client: RaftClient<Channel>,
    queued: Receiver<Queued>,
    handle: RaftHandle<S>,
}

/// How a stream ended.
enum End {
    /// Nobody sends any more.
    Closed,
    /// The peer or the network broke it.
    Broken(String),
}

/// A message on its way into a stream; tells what became of it, wherever it ends.
struct Letter<S: StateMachine> {
    message: Outbound,
    _reserved: Reserved,
    sent: bool,
    handle: RaftHandle<S>,
}

impl<S: StateMachine> Letter<S> {
    /// The bytes, now that the stream takes them.
    fn send(mut self) -> Vec<u8> {
        self.sent = true;
        std::mem::take(&mut self.message.bytes)
    }
}

impl<S: StateMachine> Drop for Letter<S> {
    fn drop(&mut self) {
        if !self.sent {
            metrics::dropped(self.message.to, "not_sent");
        }
        if self.message.is_snapshot {
            self.handle.report_snapshot(self.message.to, self.sent);
        }
    }
}

impl<S: StateMachine> LinkTask<S> {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut reachable = true;
        // A stream is opened for the first message, so that an idle peer costs nothing.
        while let Some(first) = self.receive().await {
            let opened = Instant::now();
            let End::Broken(why) = self.stream(first).await else {
                return;
            };
            self.handle.report_unreachable(self.to);
            if opened.elapsed() >= STEADY {
                (pause, reachable) = (FIRST_PAUSE, true);
            }
            // Once, and not at every attempt while the peer is down.
            if std::mem::replace(&mut reachable, false) {
                tracing::warn!(peer = %self.to, "the raft stream to a peer broke, trying again: {why}");
            }
            if !self.discard_until(Instant::now() + pause).await {
                return;
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    async fn receive(&mut self) -> Option<Letter<S>> {
        let Queued { message, _reserved } = self.queued.recv().await?;
        let handle = self.handle.clone();
        Some(Letter {
            message,
            _reserved,
            sent: false,
            handle,
        })
    }

    /// Opens a stream and sends what is queued until it breaks.
    async fn stream(&mut self, first: Letter<S>) -> End {
        let (feed, fed) = channel(MAX_FED);
        let (cluster, from, to) = (self.cluster.clone(), self.from.0, self.to.0);
        // Letters are opened as the connection takes them; those left when it breaks were not sent.
        let envelopes = ReceiverStream::new(fed).map(move |letter: Letter<S>| RaftEnvelope {
            cluster: cluster.clone(),
            from,
            to,
            message: letter.send().into(),
        });
        let mut client = self.client.clone();
        let mut call = std::pin::pin!(client.deliver(envelopes));
        let mut next = Some(first);
        loop {
            let letter = match next.take() {
                Some(letter) => letter,
                None => tokio::select! {
                    ended = &mut call => return End::Broken(describe(ended)),
                    letter = self.receive() => match letter {
                        Some(letter) => letter,
                        None => return End::Closed,
                    },
                },
            };
            tokio::select! {
                ended = &mut call => return End::Broken(describe(ended)),
                sent = timeout(FEED_DEADLINE, feed.send(letter)) => match sent {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return End::Broken("the stream closed".to_owned()),
                    Err(_) => return End::Broken(format!("the peer took nothing for {FEED_DEADLINE:?}")),
                },
            }
        }
    }

    /// Drops what is sent meanwhile: it would be stale. Returns false when nobody sends any more.
    async fn discard_until(&mut self, until: Instant) -> bool {
        loop {
            tokio::select! {
                () = sleep_until(until) => return true,
                letter = self.receive() => if letter.is_none() {
                    return false;
                },
            }
        }
    }
}

fn describe<T>(ended: Result<T, tonic::Status>) -> String {
    match ended {
        Ok(_) => "the peer ended it".to_owned(),
        Err(status) => format!("{}: {}", status.code().description(), status.message()),
    }
}
