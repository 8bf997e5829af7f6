//! Listeners: plain on loopback, mutual TLS beyond it.
//!
//! Handshakes run beside one another under a deadline, so that a peer that stalls its own holds up nobody else's.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::{Connection, Identity, NetError};

/// Longest TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Most handshakes at once, done ones that wait to be taken included.
const MAX_HANDSHAKES: usize = 256;
/// Pause after the system refused a connection (out of file descriptors, say).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// A bound port. Dropping it closes the port at once: whoever binds it next finds it free.
pub struct Listener {
    address: SocketAddr,
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    handshakes: JoinSet<Option<Connection>>,
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
        Ok(Self {
            address: listener.local_addr().map_err(failed)?,
            listener,
            acceptor,
            handshakes: JoinSet::new(),
        })
    }

    /// The address that was bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection, its handshake done. A call that is given up loses none.
    pub async fn accept(&mut self) -> Connection {
        loop {
            let has_room = self.handshakes.len() < MAX_HANDSHAKES;
            tokio::select! {
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Some(connection)) = done {
                        return connection;
                    }
                }
                accepted = self.listener.accept(), if has_room => match accepted {
                    Ok((stream, _)) => {
                        if let Some(plain) = self.begin(stream) {
                            return plain;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_BACKOFF).await;
                    }
                },
            }
        }
    }

    /// The connection, unless it has a handshake before it, or is closed already.
    fn begin(&mut self, stream: TcpStream) -> Option<Connection> {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection closed before it was used");
            return None;
        }
        let Some(acceptor) = self.acceptor.clone() else {
            return Some(Connection::plain(stream));
        };
        self.handshakes.spawn(handshake(acceptor, stream));
        None
    }

    /// Connections as tonic takes them. The port closes with the stream.
    pub fn into_stream(self) -> impl Stream<Item = std::io::Result<Connection>> {
        stream::unfold(self, async |mut listener| {
            let connection = listener.accept().await;
            Some((Ok(connection), listener))
        })
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
