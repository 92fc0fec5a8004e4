//! COPY BOTH, in which a walsender streams changes and takes status updates. Manual: "Streaming Replication Protocol",
//! "COPY Operations".
//!
//! The two directions are two values, for two tasks. What the payloads mean is `proto`'s business. A payload is a slice of
//! a large read buffer: whoever keeps one for long should copy it.

use std::fmt;
use std::future::poll_fn;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

use super::channel::Channel;
use super::copy::put_copy_data;
use super::error::{Error, Result};
use super::inbox::Inbox;
use super::server_error::ServerError;
use super::session::{Session, TransactionStatus};
use super::stream::Stream;
use super::tcp::{Gulps, Pace};
use crate::pg::{ServerVersion, Sql};

/// The direction from the server.
#[derive(Debug)]
pub struct CopyBothReader {
    stream: ReadHalf<Stream>,
    inbox: Inbox,
    ended: bool,
    version: ServerVersion,
    key: (i32, i32),
    gulps: Gulps,
}

/// The direction to the server.
pub struct CopyBothWriter {
    stream: WriteHalf<Stream>,
    output: BytesMut,
}

impl Session {
    /// Runs `START_REPLICATION` on a walsender session.
    ///
    /// # Errors
    /// When the server refuses, or the statement is another.
    pub async fn copy_both(mut self, sql: &Sql) -> Result<(CopyBothReader, CopyBothWriter)> {
        self.start_copy(sql, b'W').await?;
        let (version, key) = (self.server_version(), (self.process_id(), self.secret_key()));
        let Channel { stream, inbox, output, .. } = self.channel;
        let gulps = stream.gulps();
        let (read, write) = tokio::io::split(stream);
        let reader = CopyBothReader { stream: read, inbox, ended: false, version, key, gulps };
        Ok((reader, CopyBothWriter { stream: write, output }))
    }
}

impl CopyBothReader {
    /// The next payload; `None` once the server has ended its side. Giving up the wait loses nothing.
    ///
    /// # Errors
    /// When the server reports an error, or the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(payload) = self.try_next()? {
                return Ok(Some(payload));
            }
            if self.ended {
                return Ok(None);
            }
            self.fill().await?;
        }
    }

    /// The next payload that has been read already; `None` if there is none, or no more.
    ///
    /// # Errors
    /// When the server has reported an error.
    pub fn try_next(&mut self) -> Result<Option<Bytes>> {
        if self.ended {
            return Ok(None);
        }
        match self.inbox.next_tag()? {
            None => Ok(None),
            Some(b'd') => Ok(Some(self.inbox.take())),
            // A walsender whose server shuts down completes the command without ending the copy, and closes.
            Some(b'c' | b'C') => {
                self.inbox.skip();
                self.ended = true;
                Ok(None)
            }
            Some(b'E') => Err(ServerError::decode(self.inbox.body())?.into()),
            Some(tag) => Err(Error::Unexpected { tag: tag.into(), doing: "streaming" }),
        }
    }

    /// How to read from now on. Reading in gulps means that when nothing is there, the socket is left alone for a while,
    /// so that it fills: a server that sends much in small packets then spends no time on waking us for each. Unix-domain
    /// sockets are read at once.
    pub fn set_pace(&self, pace: Pace) {
        self.gulps.set(pace);
    }

    /// The server's version.
    pub const fn server_version(&self) -> ServerVersion {
        self.version
    }

    /// The walsender's process.
    pub const fn process_id(&self) -> i32 {
        self.key.0
    }

    /// After [`CopyBothWriter::done`]: reads what the server still says, and gives the session back.
    ///
    /// # Errors
    /// When the server reports an error, or the connection breaks.
    pub async fn finish(mut self, writer: CopyBothWriter) -> Result<Session> {
        self.set_pace(Pace::Quiet);
        loop {
            match self.inbox.next_tag()? {
                None => {
                    self.fill().await?;
                    continue;
                }
                Some(b'Z') => break,
                Some(b'E') => return Err(ServerError::decode(self.inbox.body())?.into()),
                Some(b'd' | b'c' | b'C') => self.inbox.skip(),
                Some(tag) => return Err(Error::Unexpected { tag: tag.into(), doing: "ending a stream" }),
            }
        }
        let status = TransactionStatus::decode(self.inbox.body())?;
        self.inbox.skip();
        let mut channel = Channel::new(self.stream.unsplit(writer.stream));
        channel.inbox = self.inbox;
        Ok(Session::new(channel, self.version, self.key, status))
    }

    async fn fill(&mut self) -> Result<()> {
        poll_fn(|cx| self.inbox.poll_fill(cx, &mut self.stream)).await
    }
}

impl fmt::Debug for CopyBothWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CopyBothWriter({} bytes to write)", self.output.len())
    }
}

impl CopyBothWriter {
    /// Sends one payload. What is left of it when the wait is given up goes out before the next one.
    ///
    /// # Errors
    /// When the connection breaks. The reader then has the server's reason, if there is one.
    pub async fn send(&mut self, payload: &[u8]) -> Result<()> {
        put_copy_data(&mut self.output, payload)?;
        self.write_out().await
    }

    /// Ends this side. The server answers by ending its own.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn done(&mut self) -> Result<()> {
        frontend::copy_done(&mut self.output);
        self.write_out().await
    }

    async fn write_out(&mut self) -> Result<()> {
        while self.output.has_remaining() {
            self.stream.write_buf(&mut self.output).await?;
        }
        Ok(self.stream.flush().await?)
    }
}
