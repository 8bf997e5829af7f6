//! Channels and listeners: plain only on loopback, mutual TLS beyond it, and what a certificate allows.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status, Streaming};
use tramontane_proto::net::{
    Identity, Listener, NetError, Peer, TlsFiles, Traffic, channel, is_refused, server,
};
use tramontane_proto::v1::raft_client::RaftClient;
use tramontane_proto::v1::raft_server::{Raft, RaftServer};
use tramontane_proto::v1::{RaftDelivered, RaftEnvelope};

const LOOPBACK: &str = "127.0.0.1:0";
const DEADLINE: Duration = Duration::from_secs(20);

/// Counts messages, for peers that may act as "coordinator-2".
struct Counter;

#[tonic::async_trait]
impl Raft for Counter {
    async fn deliver(
        &self,
        request: Request<Streaming<RaftEnvelope>>,
    ) -> Result<Response<RaftDelivered>, Status> {
        let peer = request
            .extensions()
            .get::<Peer>()
            .ok_or_else(|| Status::internal("no peer"))?;
        if !peer.may_act_as("coordinator-2") {
            return Err(Status::permission_denied(format!("{:?}", peer.names)));
        }
        let mut stream = request.into_inner();
        let mut messages = 0;
        while stream.message().await?.is_some() {
            messages += 1;
        }
        Ok(Response::new(RaftDelivered { messages }))
    }
}

async fn serve(identity: &Identity) -> SocketAddr {
    let listener = Listener::bind(LOOPBACK.parse().expect("valid"), identity)
        .await
        .expect("binds");
    let address = listener.address();
    let router = server(Traffic::Tensors).add_service(RaftServer::new(Counter));
    tokio::spawn(router.serve_with_incoming(listener.into_stream()));
    address
}

async fn deliver(address: SocketAddr, identity: &Identity, bytes: usize) -> Result<u64, Status> {
    let channel = channel(&address.to_string(), identity, Traffic::Tensors).expect("valid address");
    let message = RaftEnvelope {
        cluster: "c".into(),
        from: 2,
        to: 1,
        message: vec![0; bytes].into(),
    };
    let call = async {
        let stream = tokio_stream::iter(vec![message; 3]);
        RaftClient::new(channel)
            .deliver(stream)
            .await
            .map(|answer| answer.into_inner().messages)
    };
    tokio::time::timeout(DEADLINE, call)
        .await
        .expect("answers in time")
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("generates");
        Self(CertifiedIssuer::self_signed(params, key).expect("signs"))
    }

    fn identity(&self, dir: &Path, names: &[&str]) -> Identity {
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let key = KeyPair::generate().expect("generates");
        let certificate = CertificateParams::new(names)
            .expect("valid names")
            .signed_by(&key, &self.0)
            .expect("signs");
        let files = TlsFiles {
            ca: dir.join("ca.pem"),
            certificate: dir.join("cert.pem"),
            key: dir.join("key.pem"),
        };
        std::fs::write(&files.ca, self.0.pem()).expect("writes");
        std::fs::write(&files.certificate, certificate.pem()).expect("writes");
        std::fs::write(&files.key, key.serialize_pem()).expect("writes");
        Identity::from_files(&files).expect("fits")
    }
}

#[tokio::test]
async fn loopback_needs_no_certificates() {
    let address = serve(&Identity::Loopback).await;
    assert_eq!(
        deliver(address, &Identity::Loopback, 100_000)
            .await
            .expect("delivers"),
        3
    );
}

#[tokio::test]
async fn beyond_loopback_nothing_goes_without_tls() {
    let everywhere = "0.0.0.0:0".parse().expect("valid");
    let refused = Listener::bind(everywhere, &Identity::Loopback).await.map(|_| ());
    assert!(
        matches!(refused, Err(NetError::ListenWithoutTls(_))),
        "{refused:?}"
    );
    let refused = channel("10.1.2.3:7000", &Identity::Loopback, Traffic::Control).map(|_| ());
    assert!(
        matches!(refused, Err(NetError::ConnectWithoutTls(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn members_of_one_authority_talk_and_are_told_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let own = authority.identity(dir.path(), &["coordinator-1", "127.0.0.1"]);
    let address = serve(&own).await;
    let second = authority.identity(dir.path(), &["coordinator-2", "127.0.0.1"]);
    assert_eq!(deliver(address, &second, 10).await.expect("delivers"), 3);
    let third = authority.identity(dir.path(), &["coordinator-3", "127.0.0.1"]);
    let refused = deliver(address, &third, 10)
        .await
        .expect_err("may not act as coordinator-2");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("coordinator-3"), "{refused}");
}

#[tokio::test]
async fn strangers_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let address = serve(&authority.identity(dir.path(), &["coordinator-1", "127.0.0.1"])).await;
    assert!(
        deliver(address, &Identity::Loopback, 10).await.is_err(),
        "plain text was taken"
    );
    let stranger = Authority::new().identity(dir.path(), &["coordinator-2", "127.0.0.1"]);
    assert!(
        deliver(address, &stranger, 10).await.is_err(),
        "another authority was taken"
    );
    let elsewhere = serve(&authority.identity(dir.path(), &["coordinator-1", "10.0.0.1"])).await;
    let second = authority.identity(dir.path(), &["coordinator-2", "127.0.0.1"]);
    assert!(
        deliver(elsewhere, &second, 10).await.is_err(),
        "a certificate for another address was taken"
    );
}

#[tokio::test]
async fn a_stalled_handshake_holds_up_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let address = serve(&authority.identity(dir.path(), &["coordinator-1", "127.0.0.1"])).await;
    let stalled = tokio::net::TcpStream::connect(address).await.expect("connects");
    let second = authority.identity(dir.path(), &["coordinator-2", "127.0.0.1"]);
    assert_eq!(deliver(address, &second, 10).await.expect("delivers"), 3);
    drop(stalled);
}

#[tokio::test]
async fn a_port_is_free_as_soon_as_its_listener_is_gone() {
    let bind = |address| async move { Listener::bind(address, &Identity::Loopback).await };
    let first = bind(LOOPBACK.parse().expect("valid")).await.expect("binds");
    let address = first.address();
    assert!(bind(address).await.is_err(), "two listen on one port");
    drop(first);
    let second = bind(address).await.expect("it is free");
    let mut connections = Box::pin(second.into_stream());
    let client = tokio::net::TcpStream::connect(address).await.expect("connects");
    let taken = connections.next().await.expect("a connection").expect("taken");
    drop(connections);
    bind(address).await.expect("it is free");
    drop((client, taken));
}

#[test]
fn certificate_files_that_do_not_fit_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = TlsFiles {
        ca: dir.path().join("ca.pem"),
        certificate: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
    };
    let error = |files: &TlsFiles| Identity::from_files(files).err().expect("refused").to_string();
    assert!(error(&files).contains("ca.pem"));
    let authority = Authority::new();
    authority.identity(dir.path(), &["a"]);
    std::fs::write(&files.certificate, "nothing").expect("writes");
    assert!(error(&files).contains("cert.pem: cannot read the certificate"));
    authority.identity(dir.path(), &["a"]);
    std::fs::write(&files.key, "nothing").expect("writes");
    assert!(error(&files).contains("key.pem: cannot read the private key"));
    authority.identity(dir.path(), &["a"]);
    std::fs::write(
        &files.key,
        KeyPair::generate().expect("generates").serialize_pem(),
    )
    .expect("writes");
    assert!(error(&files).contains("certificate and key do not fit"));
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_told_from_one_where_somebody_does() {
    let limit = Duration::from_secs(5);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("an address").to_string();
    assert!(!is_refused(&address, &Identity::Loopback, limit).await);
    drop(listener);
    assert!(is_refused(&address, &Identity::Loopback, limit).await);
    // Beyond loopback nothing is tried without certificates, and what is no address is not refused.
    for address in ["192.0.2.1:1", "nowhere"] {
        assert!(
            !is_refused(address, &Identity::Loopback, limit).await,
            "{address}"
        );
    }
}

/// The largest frame that the other end of a connection takes, by its first settings (RFC 9113, 6.5).
async fn announced_frame(stream: &mut TcpStream, is_client: bool) -> u32 {
    if is_client {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.expect("a preface");
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    }
    let mut header = [0; 9];
    stream.read_exact(&mut header).await.expect("a frame");
    assert_eq!(header[3], 4, "settings come first");
    let mut settings = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
    stream.read_exact(&mut settings).await.expect("settings");
    let each = settings.chunks_exact(6);
    let mut sizes = each.filter(|setting| setting[..2] == [0, 5]);
    let said = sizes
        .next()
        .map(|setting| u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]));
    said.unwrap_or(16 << 10)
}

#[tokio::test]
async fn rows_go_in_large_frames_both_ways() {
    let identity = Identity::from_config(None).expect("plain");
    for (traffic, expected) in [(Traffic::Tensors, 1 << 20), (Traffic::Control, 16 << 10)] {
        let listener = TcpListener::bind(LOOPBACK).await.expect("binds");
        let address = listener.local_addr().expect("an address").to_string();
        let mut client = RaftClient::new(channel(&address, &identity, traffic).expect("valid address"));
        let call = tokio::spawn(async move { client.deliver(futures_util::stream::empty()).await });
        let asked = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            announced_frame(&mut stream, true).await
        };
        assert_eq!(
            timeout(DEADLINE, asked).await.expect("in time"),
            expected,
            "{traffic:?}"
        );
        call.abort();

        let listener = Listener::bind(LOOPBACK.parse().expect("valid"), &identity).await;
        let listener = listener.expect("binds");
        let address = listener.address();
        let router = server(traffic).add_service(RaftServer::new(Counter));
        tokio::spawn(router.serve_with_incoming(listener.into_stream()));
        let answered = async {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            stream.write_all(preface).await.expect("sent");
            announced_frame(&mut stream, false).await
        };
        assert_eq!(
            timeout(DEADLINE, answered).await.expect("in time"),
            expected,
            "{traffic:?}"
        );
    }
}
