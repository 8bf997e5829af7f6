//! gRPC channels and servers with windows and limits fit for what they carry.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tower::service_fn;

use super::{Connection, Identity, NetError, host_and_port, is_loopback};

/// Longest wait for a connection, handshake included.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// How often an open connection is probed, and how long the answer may take.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(5);
/// HTTP/2 windows of links that carry rows, in bytes.
const TENSOR_WINDOW_BYTES: u32 = 64 << 20;
/// HTTP/2 frames of links that carry rows, in bytes, in both directions: each end says what it takes.
const TENSOR_FRAME_BYTES: u32 = 1 << 20;
/// HTTP/2 windows of everything else, in bytes.
const CONTROL_WINDOW_BYTES: u32 = 1 << 20;
/// Most concurrent streams of one connection.
const MAX_STREAMS: u32 = 4096;

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Membership, raft, requests and tokens: small messages.
    Control,
    /// Hidden states and expert rows.
    Tensors,
}

impl Traffic {
    fn window(self) -> u32 {
        match self {
            Self::Control => CONTROL_WINDOW_BYTES,
            Self::Tensors => TENSOR_WINDOW_BYTES,
        }
    }

    /// Largest frame that this end takes; HTTP/2's own 16 KiB if none is said.
    fn frame(self) -> Option<u32> {
        match self {
            Self::Control => None,
            Self::Tensors => Some(TENSOR_FRAME_BYTES),
        }
    }
}

/// A channel to `address` (`host:port`) that connects when first used and again after it broke.
///
/// With mutual TLS the peer's certificate must be valid for the address's host. Must be called within a runtime.
pub fn channel(address: &str, identity: &Identity, traffic: Traffic) -> Result<Channel, NetError> {
    let tls = tls_to(address, identity, b"h2")?;
    let invalid = || NetError::Address(address.to_owned());
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| invalid())?
        .connect_timeout(CONNECT_DEADLINE)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_DEADLINE)
        .keep_alive_while_idle(true)
        .http2_adaptive_window(false)
        .initial_stream_window_size(traffic.window())
        .initial_connection_window_size(traffic.window())
        .max_frame_size(traffic.frame());
    let address = address.to_owned();
    Ok(endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let (address, tls) = (address.clone(), tls.clone());
        async move { connect(&address, tls).await.map(TokioIo::new) }
    })))
}

/// A byte stream to `address` (`host:port`) for HTTP/1.1.
pub async fn connect_http(address: &str, identity: &Identity) -> Result<Connection, NetError> {
    let tls = tls_to(address, identity, b"http/1.1")?;
    connect(address, tls).await.map_err(|source| NetError::Connect {
        address: address.to_owned(),
        source,
    })
}

/// Whether nobody listens at `address` (`host:port`): its host is there and refuses. Not so where no answer comes within
/// `limit`, or where an identity may not connect. Nothing is sent to whoever does listen.
pub async fn is_refused(address: &str, identity: &Identity, limit: Duration) -> bool {
    if tls_to(address, identity, b"").is_err() {
        return false;
    }
    match tokio::time::timeout(limit, TcpStream::connect(address)).await {
        Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        Ok(Ok(_)) | Err(_) => false,
    }
}

/// How TLS to `address` is made under an identity; nothing on loopback without one.
fn tls_to(
    address: &str,
    identity: &Identity,
    protocol: &[u8],
) -> Result<Option<(TlsConnector, ServerName<'static>)>, NetError> {
    let (host, _) = host_and_port(address)?;
    match identity {
        Identity::Loopback if !is_loopback(host) => Err(NetError::ConnectWithoutTls(address.to_owned())),
        Identity::Loopback => Ok(None),
        Identity::Mutual(tls) => {
            let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(bare).map_err(|_| NetError::Address(address.to_owned()))?;
            let mut config = tls.client.as_ref().clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            Ok(Some((TlsConnector::from(Arc::new(config)), name)))
        }
    }
}

async fn connect(
    address: &str,
    tls: Option<(TlsConnector, ServerName<'static>)>,
) -> std::io::Result<Connection> {
    let attempt = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        match tls {
            None => Ok(Connection::plain(stream)),
            Some((connector, name)) => Ok(Connection::tls(TlsStream::Client(
                connector.connect(name, stream).await?,
            ))),
        }
    };
    let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, format!("{address} did not answer"));
    tokio::time::timeout(CONNECT_DEADLINE, attempt)
        .await
        .map_err(late)?
}

/// A gRPC server builder with the windows and limits of the traffic it takes.
pub fn server(traffic: Traffic) -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_DEADLINE))
        .http2_adaptive_window(Some(false))
        .initial_stream_window_size(traffic.window())
        .initial_connection_window_size(traffic.window())
        .max_frame_size(traffic.frame())
        .max_concurrent_streams(MAX_STREAMS)
}
