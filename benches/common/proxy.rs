//! A TCP proxy that delays without narrowing: every piece arrives so long after it was sent, and many are on the way.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::Result;

/// Stands before one server. Dropped, it takes no new connections.
pub struct Proxy {
    port: u16,
    task: JoinHandle<()>,
}

/// What is on the way in one direction at most: 10 ms of a network of 13 Gbit/s.
const BYTES_MAX: usize = 16 << 20;

const PIECE_BYTES_MAX: usize = 64 << 10;

impl Proxy {
    /// Before the server at `port`; `delay` in each direction.
    pub async fn start(port: u16, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let own = listener.local_addr()?.port();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (client_reads, client_writes) = client.into_split();
                let (server_reads, server_writes) = server.into_split();
                direction(client_reads, server_writes, delay);
                direction(server_reads, client_writes, delay);
            }
        });
        Ok(Self { port: own, task })
    }

    /// `uri` of the server at `port`, by way of this proxy.
    pub fn uri(&self, uri: &str, port: u16) -> String {
        uri.replace(&format!("@localhost:{port}/"), &format!("@localhost:{}/", self.port))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Piece {
    due: Instant,
    bytes: Vec<u8>,
    _on_the_way: OwnedSemaphorePermit,
}

fn direction(from: OwnedReadHalf, to: OwnedWriteHalf, delay: Duration) {
    // The bytes are bounded by permits.
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(read(from, sender, delay));
    tokio::spawn(write(receiver, to));
}

async fn read(mut from: OwnedReadHalf, pieces: mpsc::UnboundedSender<Piece>, delay: Duration) {
    let room = Arc::new(Semaphore::new(BYTES_MAX));
    let mut buffer = vec![0; PIECE_BYTES_MAX];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let due = Instant::now() + delay;
        let permits = u32::try_from(length).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&room).acquire_many_owned(permits).await else { return };
        let piece = Piece { due, bytes: buffer[..length].to_vec(), _on_the_way: permit };
        if pieces.send(piece).is_err() {
            return;
        }
    }
}

async fn write(mut pieces: mpsc::UnboundedReceiver<Piece>, mut to: OwnedWriteHalf) {
    while let Some(piece) = pieces.recv().await {
        if piece.due > Instant::now() {
            sleep_until(piece.due).await;
        }
        if to.write_all(&piece.bytes).await.is_err() {
            return;
        }
    }
    // Its reader has seen the end: so shall the other side.
    let _ = to.shutdown().await;
}
