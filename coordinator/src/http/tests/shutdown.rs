//! What clients see of a shutdown: over real connections, in real time.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tramontane_proto::net::{Identity, Listener};

use super::*;
use crate::http::{ServeOptions, serve};

const LATE: Duration = Duration::from_secs(20);

pub(super) struct Server {
    pub(super) address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl World {
    async fn serve(&self, grace: Duration) -> Server {
        self.serve_with(ServeOptions {
            shutdown_grace: grace,
            ..ServeOptions::default()
        })
        .await
    }

    pub(super) async fn serve_with(&self, options: ServeOptions) -> Server {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Listener::bind(any, &Identity::Loopback).await.unwrap();
        let address = listener.address();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, self.app.clone(), options, stop.clone()));
        Server {
            address,
            stop,
            serving,
        }
    }
}

impl Server {
    /// Sends a request on a connection of its own, which the server is asked to close after it.
    async fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    async fn open_stream(&self) -> TcpStream {
        let body = json!({"model": MODEL, "prompt": [7], "stream": true}).to_string();
        self.send("POST", "/v1/completions", &body).await
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> String {
        rest(&mut self.send(method, path, body).await).await
    }

    async fn ended(self) {
        tokio::time::timeout(LATE, self.serving).await.unwrap().unwrap();
    }
}

/// Everything up to the end of the connection.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    tokio::time::timeout(LATE, read).await.unwrap().unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Reads until this text has come.
async fn until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        let mut piece = [0; 4096];
        let read = tokio::time::timeout(LATE, stream.read(&mut piece))
            .await
            .unwrap()
            .unwrap();
        assert!(read > 0, "{seen}");
        seen.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
    seen
}

#[tokio::test]
async fn readiness_drops_first_and_what_outlives_the_grace_ends_with_a_typed_error() {
    let world = Setup {
        acts: vec![Act::HangAfter(1)],
        ..Setup::default()
    }
    .build();
    let server = world.serve(Duration::from_millis(700)).await;
    let mut running = server.open_stream().await;
    until(&mut running, "\"text\":\"The\"").await;
    server.stop.cancel();
    while !world.app.gateway.is_draining() {
        tokio::task::yield_now().await;
    }

    let ready = server.ask("GET", "/readyz", "").await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(
        ready.contains("\"reason\":\"the coordinator is shutting down\""),
        "{ready}"
    );
    assert!(server.ask("GET", "/livez", "").await.starts_with("HTTP/1.1 200"));
    let body = json!({"model": MODEL, "prompt": [7]}).to_string();
    let refused = server.ask("POST", "/v1/completions", &body).await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(
        refused.contains("\"code\":\"shutting_down\"") && refused.contains("retry-after: 1"),
        "{refused}"
    );

    let last = rest(&mut running).await;
    assert!(last.contains("data: {\"error\":"), "{last}");
    assert!(
        last.contains("\"code\":\"shutting_down\"") && !last.contains("[DONE]"),
        "{last}"
    );
    server.ended().await;
    world.all_closed().await;
}

#[tokio::test]
async fn running_streams_finish_within_the_grace() {
    // The first attempt breaks off, so that the answer takes a while, and the second one goes on.
    let world = Setup {
        acts: vec![Act::BreakAfter(3)],
        ..Setup::default()
    }
    .build();
    let server = world.serve(LATE).await;
    let mut running = server.open_stream().await;
    until(&mut running, "\"text\":\"The\"").await;
    server.stop.cancel();
    let last = rest(&mut running).await;
    assert!(last.contains("[DONE]") && !last.contains("error"), "{last}");
    // Nothing is left to wait for.
    server.ended().await;
}

#[tokio::test]
async fn streams_outlive_the_ones_who_follow_the_placement() {
    let world = Setup {
        acts: vec![Act::HangAfter(1)],
        ..Setup::default()
    }
    .build();
    let server = world.serve(Duration::from_millis(300)).await;
    let mut running = server.open_stream().await;
    until(&mut running, "\"text\":\"The\"").await;
    drop(world.routes);
    let quiet = tokio::time::timeout(Duration::from_millis(100), running.read(&mut [0; 64])).await;
    assert!(quiet.is_err(), "the stream ended with the routes");
    server.stop.cancel();
    assert!(rest(&mut running).await.contains("shutting_down"));
    server.ended().await;
}
