//! tokio-postgres for catalog and control queries, over a connection of our own making.
//!
//! Its own start-up knows neither libpq's conninfo nor more than 100,000 SCRAM iterations. So a [`Session`] is made as always,
//! and then handed over: tokio-postgres's startup message is swallowed, and answered with what the server said when the
//! session began. There is one way to connect, and both kinds of connection have the same TLS, authentication and
//! settings.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
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
    let waits = Arc::new(Waits::default());
    let handover = Handover::new(session, Arc::clone(&waits));
    let (client, connection) = config.connect_raw(handover, NoTls).await.map_err(Error::from)?;
    let (sender, receiver) = mpsc::channel(limits::NOTIFICATIONS_MAX);
    let guard = Guard { conninfo: conninfo.clone(), waits };
    tokio::spawn(guard.drive(connection, sender, application_name.to_owned()));
    Ok((client, receiver))
}

/// Sees to it that no question is waited for without an end.
///
/// A statement may take its time, so a bound on time alone would be wrong for some; but then the server lives. One that
/// answers nobody any more is given up, and so is a statement that outlasts what anybody would wait for.
struct Guard {
    conninfo: ConnInfo,
    waits: Arc<Waits>,
}

impl Guard {
    async fn drive<T>(
        self,
        mut connection: Connection<Handover, T>,
        notifications: mpsc::Sender<Notification>,
        application_name: String,
    ) where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let given_up = self.given_up();
        tokio::pin!(given_up);
        loop {
            let message = tokio::select! {
                biased;
                message = poll_fn(|cx| connection.poll_message(cx)) => message,
                why = &mut given_up => {
                    tracing::warn!(application_name, why, "control connection given up");
                    return;
                }
            };
            match message {
                None => return,
                // Nobody may be listening, or not fast enough: a notification only says "look again".
                Some(Ok(AsyncMessage::Notification(notification))) => {
                    drop(notifications.try_send(notification));
                }
                Some(Ok(AsyncMessage::Notice(notice))) => {
                    let notice = ServerError::from_db_error(&notice);
                    tracing::debug!(application_name, %notice, "notice from the server");
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    let error = Error::from(error);
                    tracing::warn!(application_name, %error, "control connection failed");
                    // Asked again, it would say so again, at once and for ever.
                    return;
                }
            }
        }
    }

    /// Completes when there is no hope for what was asked.
    async fn given_up(&self) -> &'static str {
        loop {
            sleep(limits::CONTROL_LOOK).await;
            let Some(since) = self.waits.since().filter(|since| since.elapsed() >= limits::CONTROL_PATIENCE)
            else {
                continue;
            };
            if since.elapsed() >= limits::CONTROL_STATEMENT_MAX {
                return "a statement took too long";
            }
            let lives = Session::connect(&self.conninfo, &SessionOptions::new("walferry guard")).await;
            // Whatever it answers, it answers.
            let silent = matches!(
                lives,
                Err(Error::Timeout { .. } | Error::Connect { .. } | Error::Io(_) | Error::Closed)
            );
            if silent && self.waits.since() == Some(since) {
                return "the server answers neither here nor on a new connection";
            }
        }
    }
}

/// How many answers are waited for, and since when nothing was heard.
#[derive(Debug, Default)]
struct Waits(Mutex<(usize, Option<Instant>)>);

impl Waits {
    /// So many questions were asked.
    fn asked(&self, count: usize) {
        let mut waits = self.lock();
        waits.0 += count;
        if waits.0 > 0 {
            waits.1.get_or_insert_with(Instant::now);
        }
    }

    /// The server said something, which ended so many answers.
    fn heard(&self, ended: usize) {
        let mut waits = self.lock();
        waits.0 = waits.0.saturating_sub(ended);
        waits.1 = (waits.0 > 0).then(Instant::now);
    }

    fn since(&self) -> Option<Instant> {
        self.lock().1
    }

    fn lock(&self) -> MutexGuard<'_, (usize, Option<Instant>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts messages of some kinds in a stream of them, wherever it is cut.
#[derive(Debug)]
struct Counter {
    tags: &'static [u8],
    /// Of the header at hand.
    header: [u8; 5],
    have: usize,
    /// Bytes of the body that are still to come.
    body: usize,
}

impl Counter {
    const fn new(tags: &'static [u8]) -> Self {
        Self { tags, header: [0; 5], have: 0, body: 0 }
    }

    fn count(&mut self, mut bytes: &[u8]) -> usize {
        let mut found = 0;
        while !bytes.is_empty() {
            if self.body > 0 {
                let skipped = self.body.min(bytes.len());
                self.body -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            self.header[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if self.have == self.header.len() {
                let [tag, length @ ..] = self.header;
                self.body =
                    usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX).saturating_sub(4);
                self.have = 0;
                found += usize::from(self.tags.contains(&tag));
            }
        }
        found
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
    waits: Arc<Waits>,
    /// Query and Sync: each is answered by a ReadyForQuery.
    asked: Counter,
    answered: Counter,
}

impl Handover {
    fn new(session: Session, waits: Arc<Waits>) -> Self {
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
        let (asked, answered) = (Counter::new(b"QS"), Counter::new(b"Z"));
        let channel = session.channel;
        replay.extend_from_slice(&channel.inbox.into_rest());
        Self { stream: channel.stream, replay: replay.freeze(), swallow: None, waits, asked, answered }
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
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(bytes) = buf.filled().get(before..).filter(|bytes| !bytes.is_empty()) {
            let ended = self.answered.count(bytes);
            self.waits.heard(ended);
        }
        read
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
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = &written {
            let asked = self.asked.count(&buf[..*count]);
            self.waits.asked(asked);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_wherever_they_are_cut() {
        let stream = b"Z\0\0\0\x05IC\0\0\0\x06ZZZ\0\0\0\x05T1\0\0\0\x04";
        for cut in 0..stream.len() {
            let mut counter = Counter::new(b"Z");
            let (first, second) = stream.split_at(cut);
            assert_eq!(counter.count(first) + counter.count(second), 2, "{cut}");
        }
    }

    #[test]
    fn it_waits_until_the_last_answer() {
        let waits = Waits::default();
        assert!(waits.since().is_none());
        waits.asked(0);
        assert!(waits.since().is_none(), "nothing that is answered");
        waits.asked(2);
        waits.heard(1);
        assert!(waits.since().is_some(), "one answer of two");
        waits.heard(1);
        assert!(waits.since().is_none());
        waits.heard(0);
        assert!(waits.since().is_none(), "a notification");
    }
}
