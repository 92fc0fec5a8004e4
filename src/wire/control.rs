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

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, Notification};

use super::connect::SessionOptions;
use super::conninfo::ConnInfo;
use super::error::{Error, Result};
use super::incoming::Incoming;
use super::server_error::ServerError;
use super::session::Session;
use super::stream::Stream;
use crate::limits;
use crate::pg::Sql;

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
        let mut over = false;
        loop {
            let message = tokio::select! {
                biased;
                message = poll_fn(|cx| connection.poll_message(cx)) => message,
                why = &mut given_up, if !over => {
                    tracing::warn!(application_name, why, "control connection given up");
                    // Whoever waits for an answer hears it in the server's place.
                    self.waits.give_up(why);
                    over = true;
                    continue;
                }
                // Nobody takes what there is to hear.
                () = sleep(limits::CONTROL_LOOK), if over => return,
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
            if self.waits.asked_since().is_some_and(|asked| asked.elapsed() >= self.conninfo.statement_max) {
                return "the server's answer took too long";
            }
            let Some(since) = self.waits.since().filter(|since| since.elapsed() >= limits::CONTROL_PATIENCE)
            else {
                continue;
            };
            if !answers(&self.conninfo).await && self.waits.since() == Some(since) {
                return "the server answers neither here nor on a new connection";
            }
        }
    }
}

/// Whether the server answers a new connection, and a question on it. Whatever it answers, it answers.
pub async fn answers(conninfo: &ConnInfo) -> bool {
    let asked = async {
        let mut session = Session::connect(conninfo, &SessionOptions::new("walferry guard")).await?;
        let silent = |_| Error::Silent { question: "anything", after: limits::ANSWER_PATIENCE };
        timeout(limits::ANSWER_PATIENCE, session.query(&Sql::new("SELECT 1"))).await.map_err(silent)?
    };
    !matches!(
        asked.await,
        Err(Error::Timeout { .. }
            | Error::Connect { .. }
            | Error::Io(_)
            | Error::Closed
            | Error::Silent { .. })
    )
}

/// How many answers are waited for, since when nothing was heard, and since when the next one is waited for.
#[derive(Debug, Default)]
struct Waits(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    answers: usize,
    heard: Option<Instant>,
    /// Whoever sends a little now and then does not move this.
    asked: Option<Instant>,
    given_up: Option<&'static str>,
}

impl Waits {
    /// So many questions were asked.
    fn asked(&self, count: usize) {
        let mut waits = self.lock();
        waits.answers += count;
        if waits.answers > 0 {
            let now = Instant::now();
            waits.heard.get_or_insert(now);
            waits.asked.get_or_insert(now);
        }
    }

    /// The server said something, which ended so many answers. Whether that were all.
    fn heard(&self, ended: usize) -> bool {
        let mut waits = self.lock();
        waits.answers = waits.answers.saturating_sub(ended);
        let now = (waits.answers > 0).then(Instant::now);
        waits.heard = now;
        if ended > 0 || now.is_none() {
            waits.asked = now;
        }
        now.is_none()
    }

    fn since(&self) -> Option<Instant> {
        self.lock().heard
    }

    fn asked_since(&self) -> Option<Instant> {
        self.lock().asked
    }

    fn give_up(&self, why: &'static str) {
        self.lock().given_up = Some(why);
    }

    fn given_up(&self) -> Option<&'static str> {
        self.lock().given_up.take()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
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
    /// What is read, which begins with what the server said before.
    incoming: Incoming,
    /// What is left of the startup message that is to be swallowed, once its length is known.
    swallow: Option<usize>,
    waits: Arc<Waits>,
    /// Query and Sync: each is answered by a ReadyForQuery.
    asked: Counter,
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
        let (channel, own) = (session.channel, replay.len());
        replay.extend_from_slice(&channel.inbox.into_rest());
        let incoming = Incoming::new(replay, own);
        Self { stream: channel.stream, incoming, swallow: None, waits, asked: Counter::new(b"QS") }
    }
}

impl AsyncRead for Handover {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(why) = this.waits.given_up() {
            this.incoming.give_up(why);
        }
        let read = this.incoming.poll_read(cx, &mut this.stream, buf);
        if let Some(ended) = this.incoming.heard()
            && this.waits.heard(ended)
        {
            this.incoming.answered();
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
        assert!(!waits.heard(1), "one answer of two");
        let asked = waits.asked_since();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(!waits.heard(0));
        assert!(waits.since() > asked && waits.asked_since() == asked, "a part of an answer");
        assert!(waits.heard(1));
        assert!(waits.since().is_none() && waits.asked_since().is_none());
        waits.heard(0);
        assert!(waits.since().is_none(), "a notification");
    }
}
