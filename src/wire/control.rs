//! tokio-postgres for catalog and control queries, over a connection of our own making.
//!
//! Its own start-up knows neither libpq's conninfo nor more than 100,000 SCRAM iterations. So a [`Session`] is made as always,
//! and then handed over: tokio-postgres's startup message is swallowed, and answered with what the server said when the
//! session began. There is one way to connect, and both kinds of connection have the same TLS, authentication and
//! settings.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, Notification};

use super::connect::SessionOptions;
use super::conninfo::ConnInfo;
use super::error::{Error, Result};
use super::server_error::ServerError;
use super::session::Session;
use super::stream::Stream;
use crate::limits;

/// Connects a client for catalog queries. Its connection lives as long as the client.
///
/// # Errors
/// As [`Session::connect`].
pub async fn control(conninfo: &ConnInfo, application_name: &str) -> Result<Client> {
    let (client, _) = control_listening(conninfo, application_name).await?;
    Ok(client)
}

/// As [`control`], with the notifications of the channels that the client LISTENs on. The receiver ends with the
/// connection. A listener that falls behind loses the newest ones.
///
/// # Errors
/// As [`Session::connect`].
pub async fn control_listening(
    conninfo: &ConnInfo,
    application_name: &str,
) -> Result<(Client, mpsc::Receiver<Notification>)> {
    let options =
        SessionOptions { application_name: application_name.to_owned(), ..SessionOptions::default() };
    let session = Session::connect(conninfo, &options).await?;
    let mut config = tokio_postgres::Config::new();
    config.user(conninfo.user()).ssl_mode(tokio_postgres::config::SslMode::Disable);
    let (client, connection) =
        config.connect_raw(Handover::new(session), NoTls).await.map_err(Error::from)?;
    let (sender, receiver) = mpsc::channel(limits::NOTIFICATIONS_MAX);
    tokio::spawn(drive(connection, sender, application_name.to_owned()));
    Ok((client, receiver))
}

async fn drive<T>(
    mut connection: Connection<Handover, T>,
    notifications: mpsc::Sender<Notification>,
    application_name: String,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
        match message {
            // Nobody may be listening, or not fast enough: a notification only says "look again".
            Ok(AsyncMessage::Notification(notification)) => drop(notifications.try_send(notification)),
            Ok(AsyncMessage::Notice(notice)) => {
                let notice = ServerError::from_db_error(&notice);
                tracing::debug!(application_name, %notice, "notice from the server");
            }
            Ok(_) => {}
            Err(error) => {
                let error = Error::from(error);
                tracing::warn!(application_name, %error, "control connection failed");
                // Asked again, it would say so again, at once and for ever.
                return;
            }
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    /// tokio-postgres's errors in our words, so that both kinds of connection are judged and reported alike.
    fn from(error: tokio_postgres::Error) -> Self {
        use std::error::Error as _;
        if let Some(error) = error.as_db_error() {
            return ServerError::from_db_error(error).into();
        }
        if error.is_closed() {
            return Self::Closed;
        }
        let kind = error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
        kind.map_or(Self::Malformed("control"), |kind| io::Error::from(kind).into())
    }
}

/// The stream of a session that has begun, for somebody who wants to begin one.
struct Handover {
    stream: Stream,
    /// What is read before the stream.
    replay: Bytes,
    /// What is left of the startup message that is to be swallowed, once its length is known.
    swallow: Option<usize>,
}

impl Handover {
    fn new(session: Session) -> Self {
        let mut replay = BytesMut::new();
        let mut message = |tag: u8, body: &[&[u8]]| {
            let length = 4 + body.iter().map(|part| part.len()).sum::<usize>();
            replay.put_u8(tag);
            replay.put_i32(i32::try_from(length).unwrap_or(i32::MAX));
            body.iter().for_each(|part| replay.put_slice(part));
        };
        message(b'R', &[&[0; 4]]);
        for (name, value) in session.channel.inbox.parameters() {
            message(b'S', &[name.as_bytes(), b"\0", value.as_bytes(), b"\0"]);
        }
        message(b'K', &[&session.process_id().to_be_bytes(), &session.secret_key().to_be_bytes()]);
        message(b'Z', &[b"I"]);
        let channel = session.channel;
        replay.extend_from_slice(&channel.inbox.into_rest());
        Self { stream: channel.stream, replay: replay.freeze(), swallow: None }
    }
}

impl AsyncRead for Handover {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.replay.has_remaining() {
            let count = self.replay.len().min(buf.remaining());
            buf.put_slice(&self.replay.split_to(count));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Handover {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let left = match (self.swallow, buf.first_chunk()) {
            (Some(left), _) => left,
            (None, Some(length)) => usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX),
            (None, None) => return Poll::Ready(Err(io::ErrorKind::InvalidInput.into())),
        };
        let count = left.min(buf.len());
        self.swallow = Some(left - count);
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
