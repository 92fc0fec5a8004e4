//! A TCP proxy that fails on request.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Stands before one server. Dropped, it takes no new connections.
pub struct Proxy {
    port: u16,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

/// What it does to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct State {
    /// Connections of an older generation are cut.
    generation: u32,
    /// Connections of an older generation are forgotten: the client's side is cut, the server's stays silent.
    abandoned: u32,
    /// Each piece waits so long.
    delay: Duration,
    /// Nothing flows, and nothing is cut.
    paused: bool,
    /// Connections of an older generation: what the server sends ends, what the client sends goes on.
    half_closed: u32,
    /// New connections are cut at once.
    refusing: bool,
}

impl Proxy {
    /// Before the server at `port`.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (state, seen) = watch::channel(State::default());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if seen.borrow().refusing {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let began = *seen.borrow();
                let (client_reads, client_writes) = client.into_split();
                let (server_reads, server_writes) = server.into_split();
                let ends = Direction { began, seen: seen.clone(), from_server: false };
                tokio::spawn(ends.pump(client_reads, server_writes));
                let ends = Direction { began, seen: seen.clone(), from_server: true };
                tokio::spawn(ends.pump(server_reads, client_writes));
            }
        });
        Self { port: own, state, task }
    }

    /// `uri`, by way of this proxy.
    pub fn uri(&self, uri: &str, port: u16) -> String {
        let (direct, proxied) = (format!("@localhost:{port}/"), format!("@localhost:{}/", self.port));
        assert!(uri.contains(&direct));
        uri.replace(&direct, &proxied)
    }

    /// Cuts every connection that there is.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Cuts the client's side of every connection that there is; the server hears nothing of it.
    pub fn abandon(&self) {
        self.state.send_modify(|state| state.abandoned += 1);
    }

    /// Ends what the servers send on every connection that there is.
    pub fn half_close(&self) {
        self.state.send_modify(|state| state.half_closed += 1);
    }

    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    pub fn pause(&self, paused: bool) {
        self.state.send_modify(|state| state.paused = paused);
    }

    pub fn refuse(&self, refusing: bool) {
        self.state.send_modify(|state| state.refusing = refusing);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Direction {
    began: State,
    seen: watch::Receiver<State>,
    from_server: bool,
}

impl Direction {
    async fn pump(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let state = *self.seen.borrow_and_update();
            if state.generation != self.began.generation {
                return;
            }
            if state.abandoned != self.began.abandoned {
                return self.forget(from, to).await;
            }
            if self.from_server && state.half_closed != self.began.half_closed {
                let _ = to.shutdown().await;
                // Whatever the server still sends is read, so that it does not hang.
                while matches!(from.read(&mut buffer).await, Ok(length) if length > 0) {}
                return;
            }
            if state.paused {
                if self.seen.changed().await.is_err() {
                    return;
                }
                continue;
            }
            tokio::select! {
                changed = self.seen.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                read = from.read(&mut buffer) => {
                    let length = read.unwrap_or(0);
                    tokio::time::sleep(state.delay).await;
                    if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Keeps the server's half of the connection and lets go of the client's.
    async fn forget(self, from: OwnedReadHalf, to: OwnedWriteHalf) {
        let mut seen = self.seen;
        if self.from_server {
            to.forget();
            let _silent = from;
            while seen.changed().await.is_ok() {}
        } else {
            drop(from);
            let _silent = to;
            while seen.changed().await.is_ok() {}
        }
    }
}
