//! Clients that are slow, stuck, silent or too big, over real connections: each gets an answer or is closed in time.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::shutdown::Server;
use super::*;
use crate::gateway::scripted::Act;
use crate::http::ServeOptions;
use crate::http::connection::{Guarded, InFlight};

/// Deadlines of these tests' servers, and the longest wait for them to be kept.
const SOON: Duration = Duration::from_millis(300);
const LATE: Duration = Duration::from_secs(20);

fn hasty() -> ServeOptions {
    ServeOptions {
        head_timeout: SOON,
        idle_timeout: SOON,
        ..ServeOptions::default()
    }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// What comes back until the server closes; a reset is an end, too.
    async fn exchange(&self, sent: &[u8]) -> String {
        let mut stream = self.connect().await;
        let _ = stream.write_all(sent).await;
        until_closed(&mut stream).await
    }
}

async fn until_closed(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = timeout(LATE, read).await.expect("a connection that is closed");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn silence_and_slow_heads_are_closed_in_time() {
    let world = world();
    let server = world.serve_with(hasty()).await;
    assert_eq!(server.exchange(b"").await, "");
    assert_eq!(server.exchange(b"GET /li").await, "");
    // Byte by byte, each well within the deadline.
    let mut stream = server.connect().await;
    let began = Instant::now();
    let head = "GET /livez HTTP/1.1\r\n".to_owned() + &"x-more: and more\r\n".repeat(1000);
    for byte in head.bytes() {
        if stream.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(until_closed(&mut stream).await, "");
    assert!(began.elapsed() < LATE);
}

#[tokio::test]
async fn idle_connections_are_closed_whatever_their_protocol() {
    let world = world();
    let server = world.serve_with(hasty()).await;
    let answer = server.exchange(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // An HTTP/2 client that sends its preface and no request.
    server
        .exchange(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await;
}

#[tokio::test]
async fn heads_are_bounded() {
    let world = world();
    let server = world.serve_with(ServeOptions::default()).await;
    let with =
        |headers: &str| format!("GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    let fits = with(&"x-more: and more\r\n".repeat(90));
    assert!(
        server
            .exchange(fits.as_bytes())
            .await
            .starts_with("HTTP/1.1 200 ")
    );
    for headers in [
        "x-more: and more\r\n".repeat(101),
        format!("x-long: {}\r\n", "a".repeat(70_000)),
    ] {
        let answer = server.exchange(with(&headers).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    // The rest of it would never be read.
    let huge = with(&format!("x-long: {}\r\n", "a".repeat(10 << 20)));
    let answer = server.exchange(huge.as_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
    let long_path = format!(
        "GET /{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        "a".repeat(60_000)
    );
    let answer = server.exchange(long_path.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 404 "),
        "{}",
        &answer[..answer.len().min(100)]
    );
}

#[tokio::test]
async fn a_body_that_is_too_large_gets_its_answer_however_it_is_sent() {
    let world = world();
    let server = world.serve_with(ServeOptions::default()).await;
    let body = "a".repeat(10 << 20);
    let told = format!("content-length: {}\r\n\r\n{body}", body.len());
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "a".repeat(1 << 20));
    let untold = format!("transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(10));
    for (path, status) in [("/v1/completions", "413"), ("/nowhere", "404"), ("/livez", "405")] {
        for rest in [&told, &untold] {
            let request = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{rest}");
            let answer = server.exchange(request.as_bytes()).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{path}: {answer}"
            );
        }
    }
    assert!(world.heads.seen().is_empty());
}

#[tokio::test]
async fn bodies_that_stop_coming_are_told_or_closed() {
    let limits = ApiLimits {
        body_timeout: SOON,
        ..ApiLimits::default()
    };
    let world = Setup {
        limits,
        ..Setup::default()
    }
    .build();
    let server = world.serve_with(ServeOptions::default()).await;
    let half = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{\"model\":";
    let answer = server.exchange(half).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    // Half closed: no more can come.
    let mut stream = server.connect().await;
    stream.write_all(half).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = until_closed(&mut stream).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
        "{answer}"
    );
    assert!(world.heads.seen().is_empty());
}

#[tokio::test]
async fn a_client_that_closes_its_half_is_gone() {
    let world = Setup {
        acts: vec![Act::HangAfter(1)],
        ..Setup::default()
    }
    .build();
    let server = world.serve_with(ServeOptions::default()).await;
    let body = json!({"model": MODEL, "prompt": [7], "stream": true}).to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = server.connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    timeout(LATE, stream.read_exact(&mut first))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    stream.shutdown().await.unwrap();
    world.all_closed().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let world = world();
    let options = ServeOptions {
        max_connections: 1,
        ..ServeOptions::default()
    };
    let server = world.serve_with(options).await;
    let ask = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut first = server.connect().await;
    first.write_all(ask).await.unwrap();
    let mut begun = [0; 12];
    timeout(LATE, first.read_exact(&mut begun))
        .await
        .unwrap()
        .unwrap();
    let mut second = server.connect().await;
    second.write_all(ask).await.unwrap();
    assert!(timeout(SOON, second.read_exact(&mut begun)).await.is_err());
    drop(first);
    timeout(LATE, second.read_exact(&mut begun))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_takes_ends_the_connection() {
    let (near, mut far) = tokio::io::duplex(16);
    let minute = Duration::from_secs(60);
    let mut guarded = Guarded::new(near, minute, minute);
    guarded.write_all(&[1; 16]).await.unwrap();
    let began = Instant::now();
    let error = guarded.write_all(&[1; 16]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(began.elapsed(), minute);
    // Slow is not stuck.
    let reading = tokio::spawn(async move {
        for _ in 0..100 {
            far.read_exact(&mut [0; 1]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(59)).await;
        }
    });
    guarded.write_all(&[1; 64]).await.unwrap();
    assert!(began.elapsed() > 40 * minute);
    reading.abort();
}

#[tokio::test(start_paused = true)]
async fn idle_is_counted_from_the_last_request_on() {
    let in_flight = InFlight::new();
    let began = Instant::now();
    let hour = Duration::from_secs(3600);
    let guard = in_flight.enter();
    let busy = tokio::spawn(async move {
        tokio::time::sleep(hour).await;
        drop(guard);
    });
    in_flight.idle_for(SOON).await;
    assert_eq!(began.elapsed(), hour + SOON);
    busy.await.unwrap();
}
