//! Listeners: plain on loopback, mutual TLS beyond it.
//!
//! Handshakes run beside one another under a deadline, so that a peer that stalls its own holds up nobody else's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_stream::wrappers::ReceiverStream;

use super::{Connection, Identity, NetError};

/// Longest TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Most handshakes at once.
const MAX_HANDSHAKES: usize = 256;
/// Most connections that wait to be taken.
const MAX_ACCEPTED: usize = 64;
/// Pause after the system refused a connection (out of file descriptors, say).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// A bound port. Dropping it closes the port.
pub struct Listener {
    address: SocketAddr,
    accepted: mpsc::Receiver<Connection>,
    task: AbortHandle,
}

impl Listener {
    /// Binds `address`; port 0 takes a free one. Must be called within a tokio runtime.
    pub async fn bind(address: SocketAddr, identity: &Identity) -> Result<Self, NetError> {
        let acceptor = match identity {
            Identity::Loopback if !address.ip().is_loopback() => {
                return Err(NetError::ListenWithoutTls(address));
            }
            Identity::Loopback => None,
            Identity::Mutual(tls) => Some(TlsAcceptor::from(tls.server.clone())),
        };
        let failed = |source| NetError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (sender, accepted) = mpsc::channel(MAX_ACCEPTED);
        let task = tokio::spawn(accept_all(listener, acceptor, sender)).abort_handle();
        Ok(Self {
            address,
            accepted,
            task,
        })
    }

    /// The address that was bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection, its handshake done; `None` never comes while the runtime lives.
    pub async fn accept(&mut self) -> Option<Connection> {
        self.accepted.recv().await
    }

    /// Connections as tonic takes them.
    pub fn into_stream(self) -> impl Stream<Item = std::io::Result<Connection>> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut listener = self;
            loop {
                // The port closes with the stream, not with the connection after it.
                let connection = tokio::select! {
                    () = sender.closed() => return,
                    accepted = listener.accept() => accepted,
                };
                let Some(connection) = connection else { return };
                if sender.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
        });
        ReceiverStream::new(receiver)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept_all(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    accepted: mpsc::Sender<Connection>,
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection closed before it was used");
            continue;
        }
        let Some(acceptor) = acceptor.clone() else {
            if accepted.send(Connection::plain(stream)).await.is_err() {
                return;
            }
            continue;
        };
        let Ok(permit) = handshakes.clone().acquire_owned().await else {
            return;
        };
        let accepted = accepted.clone();
        tokio::spawn(async move {
            if let Some(connection) = handshake(acceptor, stream).await {
                // Sending fails only when the listener is gone, and the connection with it.
                let _ = accepted.send(connection).await;
            }
            drop(permit);
        });
    }
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> Option<Connection> {
    let peer = stream.peer_addr().ok();
    match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(Connection::tls(TlsStream::Server(stream))),
        Ok(Err(error)) => {
            tracing::warn!(?peer, %error, "TLS handshake refused");
            None
        }
        Err(_) => {
            tracing::warn!(?peer, "TLS handshake took longer than {HANDSHAKE_DEADLINE:?}");
            None
        }
    }
}
