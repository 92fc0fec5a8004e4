//! A TCP connection that can be left to fill.
//!
//! A walsender sends a small packet for each message. Whoever waits for such a connection is woken by each packet, at the
//! expense of the sender: to the reactor even one that it has stopped waiting for is an event. So a connection that is
//! read in gulps is taken out of the reactor when it is empty, and looked at again after [`GULP_PAUSE`], or after
//! [`GULP_PAUSE_FULL`] where the gulp was a full one, and not too long. It goes back when gulps are over, or when
//! something is to be written.
//!
//! While the peer's window is open, each of those packets goes its whole way by itself; behind a closed window they gather
//! into large ones. So a near peer has a small receive buffer, from the beginning: to narrow it later drops what is there,
//! and the kernel then takes hundreds of milliseconds for each buffer (measured). A far peer's window is what a round trip
//! can carry.

use std::future::Future;
use std::io::{self, IoSlice, Read};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::stall::Stall;
use crate::limits::{GULP_FULL, GULP_FULL_MAX, GULP_PAUSE, GULP_PAUSE_FULL};

/// A connection, and how eagerly it is read.
#[derive(Debug)]
pub(super) struct Tcp {
    socket: Socket,
    /// Not to be read before.
    rests: Option<Pin<Box<Sleep>>>,
    /// A write waits for room: whoever it is would not be woken if the connection left the reactor.
    writes: bool,
    gulps: Gulps,
    /// Its receive buffer is a [`GULP_BUFFER`](crate::limits::GULP_BUFFER).
    narrow: bool,
    /// What it carries are TLS records.
    encrypted: bool,
    /// Bytes read since it last rested.
    gulped: usize,
    stall: Stall,
}

/// What the stream carries, and so how eagerly it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// What has just been committed: it is read at once.
    #[default]
    Quiet,
    /// What was committed a while ago: it is read in gulps.
    Behind,
    /// A large transaction: it is read in gulps, and without TLS the pause after a full one is always the short one.
    Large,
}

/// Sets the pace from outside.
#[derive(Debug, Clone, Default)]
pub(super) struct Gulps(Arc<AtomicU8>);

#[derive(Debug)]
enum Socket {
    /// In the reactor.
    Watched(TcpStream),
    Left(std::net::TcpStream),
    /// It could not be moved, which ends the connection.
    Lost,
}

impl Gulps {
    pub(super) fn set(&self, pace: Pace) {
        self.0.store(pace as u8, Ordering::Relaxed);
    }

    fn are(&self, pace: Pace) -> bool {
        self.0.load(Ordering::Relaxed) == pace as u8
    }

    fn are_on(&self) -> bool {
        !self.are(Pace::Quiet)
    }
}

impl Tcp {
    /// `narrow` if its receive buffer is a [`GULP_BUFFER`](crate::limits::GULP_BUFFER).
    pub(super) fn new(stream: TcpStream, narrow: bool) -> Self {
        let (socket, gulps) = (Socket::Watched(stream), Gulps::default());
        let stall = Stall::default();
        Self { socket, rests: None, writes: false, gulps, narrow, encrypted: false, gulped: 0, stall }
    }

    /// What its `TCP_USER_TIMEOUT` is.
    pub(super) fn with_user_timeout(mut self, user_timeout: Option<Duration>) -> Self {
        self.stall = Stall::new(user_timeout);
        self
    }

    /// From now on it carries TLS records.
    pub(super) fn encrypted(self) -> Self {
        Self { encrypted: true, ..self }
    }

    pub(super) fn gulps(&self) -> Gulps {
        self.gulps.clone()
    }

    pub(super) fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.socket {
            Socket::Watched(stream) => stream.peer_addr(),
            Socket::Left(stream) => stream.peer_addr(),
            Socket::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// The connection in the reactor.
    fn watched(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        if matches!(self.socket, Socket::Left(_))
            && let Socket::Left(stream) = std::mem::replace(&mut self.socket, Socket::Lost)
        {
            self.socket = Socket::Watched(TcpStream::from_std(stream)?);
        }
        match &mut self.socket {
            Socket::Watched(stream) => Ok(Pin::new(stream)),
            Socket::Left(_) | Socket::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn look_at_stall(&mut self, cx: &mut Context<'_>) {
        if let Socket::Watched(stream) = &self.socket {
            self.stall.look(stream, cx);
        }
    }

    fn leave(&mut self) -> io::Result<()> {
        let gulped = std::mem::take(&mut self.gulped);
        let any = self.gulps.are(Pace::Large) && !self.encrypted;
        let most = if any { usize::MAX } else { GULP_FULL_MAX };
        let full = self.narrow && (GULP_FULL..=most).contains(&gulped);
        self.rests = Some(Box::pin(sleep(if full { GULP_PAUSE_FULL } else { GULP_PAUSE })));
        if matches!(self.socket, Socket::Watched(_))
            && let Socket::Watched(stream) = std::mem::replace(&mut self.socket, Socket::Lost)
        {
            self.socket = Socket::Left(stream.into_std()?);
        }
        Ok(())
    }
}

impl AsyncRead for Tcp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Some(rests) = &mut this.rests {
                ready!(rests.as_mut().poll(cx));
                this.rests = None;
            }
            // In the reactor anew, it would not know yet whether there is something to read.
            if let Socket::Left(stream) = &mut this.socket {
                match stream.read(buf.initialize_unfilled()) {
                    Ok(length) => {
                        buf.advance(length);
                        this.gulped += length;
                        this.stall.read();
                        return Poll::Ready(Ok(()));
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                        return Poll::Ready(Err(error));
                    }
                    Err(_) if this.gulps.are_on() => {
                        this.leave()?;
                        continue;
                    }
                    Err(_) => {}
                }
            }
            match this.watched()?.poll_read(cx, buf) {
                Poll::Pending if this.gulps.are_on() && !this.writes => this.leave()?,
                Poll::Pending => {
                    this.look_at_stall(cx);
                    return Poll::Pending;
                }
                Poll::Ready(read) => {
                    this.stall.read();
                    return Poll::Ready(read);
                }
            }
        }
    }
}

/// Writing takes the connection back at once; reading goes on resting.
impl AsyncWrite for Tcp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    /// TLS has several records to write at once.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.watched()?.poll_write_vectored(cx, bufs);
        this.writes = written.is_pending();
        this.stall.wrote();
        if this.writes {
            this.look_at_stall(cx);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().watched()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().watched()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn nothing_is_lost_in_gulps() {
        for (narrow, encrypted) in [(false, false), (true, false), (true, true)] {
            check(narrow, encrypted).await;
        }
    }

    async fn check(narrow: bool, encrypted: bool) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (ours, theirs) = tokio::join!(connect, listener.accept());
        let (mut ours, (mut theirs, _)) = (Tcp::new(ours.unwrap(), narrow), theirs.unwrap());
        if encrypted {
            ours = ours.encrypted();
        }
        let gulps = ours.gulps();
        let sent: Vec<u8> = (0..200_000_u32).flat_map(u32::to_ne_bytes).collect();
        let expected = sent.clone();
        let peer = tokio::spawn(async move {
            for part in sent.chunks(1_000) {
                theirs.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            let mut answer = [0; 5];
            theirs.read_exact(&mut answer).await.unwrap();
            answer
        });
        let mut received = vec![0; expected.len()];
        for (number, part) in received.chunks_mut(50_000).enumerate() {
            gulps.set([Pace::Quiet, Pace::Behind, Pace::Large][number % 3]);
            ours.read_exact(part).await.unwrap();
        }
        assert!(received == expected);
        // Written while it rests.
        gulps.set(Pace::Behind);
        let mut byte = [0];
        tokio::select! {
            biased;
            _ = ours.read(&mut byte) => unreachable!("nothing more comes before the answer"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(ours.write_vectored(&[IoSlice::new(b"th"), IoSlice::new(b"ank")]).await.unwrap(), 5);
        assert_eq!(peer.await.unwrap(), *b"thank");
        assert_eq!(ours.read(&mut byte).await.unwrap(), 0);
    }
}
