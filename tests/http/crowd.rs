//! Clients that are many, and say nothing, or read nothing.

use std::time::Instant;

use walferry::limits::{HTTP_CONNECTIONS_MAX, HTTP_HEADERS_TIMEOUT};

use super::*;

/// A monitor's patience is seconds; of a machine that has other work, too.
const IN_TIME: Duration = Duration::from_secs(2);

async fn connect(running: &Running, count: usize, sent: &[u8]) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(running.address).await.expect("the kernel's queue has room");
        stream.write_all(sent).await.expect("the kernel takes it");
        streams.push(stream);
    }
    streams
}

async fn answers(running: &Running) {
    for path in ["/healthz", "/metrics"] {
        let asked = Instant::now();
        assert_eq!(running.get(path).await.status, 200, "{path}");
        let took = asked.elapsed();
        assert!(took < IN_TIME, "{path} took {took:?}");
    }
    // Which takes long to be made, of many tables.
    assert_eq!(running.get("/status").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_clients_keep_nobody_out() {
    let running = Running::start().await;
    const { assert!(HTTP_CONNECTIONS_MAX < 300) };
    let silent = connect(&running, 300, b"").await;
    answers(&running).await;
    let half = connect(&running, 300, b"GET /status HTTP/1.1\r\nHost: localhost\r\nX-Long: ").await;
    answers(&running).await;
    drop((silent, half));
}

/// Each of them would hold an answer that fits into no socket's buffer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_read_nothing_keep_nobody_out() {
    let running = Running::start().await;
    running.status.update_database("shop", |database| {
        let table = |n| TableStatus::new(QualifiedName::new("public", format!("{n:0>3000}")), Some(10), 8192);
        database.tables.extend((0..1_000).map(table));
    });
    let unread = connect(&running, 300, b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    answers(&running).await;
    drop(unread);
}

#[tokio::test]
async fn headers_have_to_come_soon() {
    let running = Running::start().await;
    let mut half = connect(&running, 1, b"GET /status HTTP/1.1\r\n").await;
    let mut stream = half.pop().expect("one");
    let mut rest = Vec::new();
    let closed = timeout(HTTP_HEADERS_TIMEOUT + Duration::from_secs(3), stream.read_to_end(&mut rest)).await;
    // Whether it is told so, or just cut off, is the same to it.
    assert!(closed.is_ok(), "it is still connected");
    assert!(!String::from_utf8_lossy(&rest).contains(" 200 "));
}
