//! The byte stream under a session: TCP, TCP with TLS, or a Unix-domain socket.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::conninfo::SocketOptions;
use super::tcp::{Gulps, Tcp};
use crate::limits::{GULP_BUFFER, NEAR};

/// A connected stream.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(Tcp),
    Tls(Box<TlsStream<BufReader<Tcp>>>),
    Unix(UnixStream),
}

/// Connects to one address, without Nagle's delay and with keepalives; `replication` if it is to be read in gulps.
pub(super) async fn connect_tcp(
    address: SocketAddr,
    options: &SocketOptions,
    replication: bool,
) -> io::Result<Tcp> {
    let began = Instant::now();
    let stream = TcpStream::connect(address).await?;
    let narrow = replication && began.elapsed() <= NEAR;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    if narrow {
        socket.set_recv_buffer_size(GULP_BUFFER)?;
    }
    if options.keepalives {
        let keepalive = TcpKeepalive::new()
            .with_time(options.keepalives_idle)
            .with_interval(options.keepalives_interval)
            .with_retries(options.keepalives_count);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(target_os = "linux")]
    if options.user_timeout.is_some() {
        socket.set_tcp_user_timeout(options.user_timeout)?;
    }
    Ok(Tcp::new(stream, narrow).with_user_timeout(options.user_timeout))
}

impl Stream {
    /// What sets the pace of reading; a Unix-domain socket has no such thing.
    pub(super) fn gulps(&self) -> Gulps {
        match self {
            Self::Tcp(stream) => stream.gulps(),
            Self::Tls(stream) => stream.get_ref().0.get_ref().gulps(),
            Self::Unix(_) => Gulps::default(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
