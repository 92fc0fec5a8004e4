//! A stream with what was read from it and what is yet to be written.
//!
//! Writing and reading go on at once: a server that has filled our receive buffer stops reading, so whoever only writes
//! waits for ever. A write that fails is not reported before all that the server said has been read: its last words
//! say more than "broken pipe".

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use super::error::{Error, Result};
use super::inbox::Inbox;
use super::server_error::ServerError;
use super::stream::Stream;

/// What made progress.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// New bytes came in.
    Read,
    /// Everything is written and flushed.
    Written,
}

pub(super) struct Channel {
    pub(super) stream: Stream,
    pub(super) inbox: Inbox,
    /// Messages to be written, first.
    pub(super) output: BytesMut,
    /// Ready-made messages to be written after `output`, without being copied.
    pub(super) frames: Bytes,
    broken: Option<io::Error>,
}

impl Channel {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, inbox: Inbox::default(), output: BytesMut::new(), frames: Bytes::new(), broken: None }
    }

    /// Writes what there is to write, else reads. `borrowed` comes after everything else.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, borrowed: &mut &[u8]) -> Poll<Result<Progress>> {
        let written = self.poll_write(cx, borrowed);
        match self.inbox.poll_fill(cx, &mut self.stream) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(Progress::Read)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.broken.take().map_or(error, Error::from))),
            Poll::Pending if written.is_ready() => Poll::Ready(Ok(Progress::Written)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, borrowed: &mut &[u8]) -> Poll<()> {
        let stream = &mut self.stream;
        let done =
            write_all(cx, stream, &mut self.output).and_then(|()| write_all(cx, stream, &mut self.frames));
        match done.and_then(|()| write_all(cx, stream, borrowed)).and_then(|()| flush(cx, stream)) {
            Polled::Done(()) if self.broken.is_none() => Poll::Ready(()),
            // After a failed write only reading makes sense, until the server's end of the connection is reached.
            Polled::Done(()) | Polled::Pending => Poll::Pending,
            Polled::Failed(error) => {
                self.output.clear();
                self.frames.clear();
                *borrowed = &[];
                self.broken.get_or_insert(error);
                Poll::Pending
            }
        }
    }

    /// The next message's type, reading (and writing) until it is there.
    pub(super) async fn next_tag(&mut self) -> Result<u8> {
        loop {
            if let Some(tag) = self.inbox.next_tag()? {
                return Ok(tag);
            }
            poll_fn(|cx| match self.poll(cx, &mut &[][..]) {
                Poll::Ready(Ok(Progress::Read)) => Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                // Having written everything, it waits for something to read, as it does while it cannot write.
                Poll::Ready(Ok(Progress::Written)) | Poll::Pending => Poll::Pending,
            })
            .await?;
        }
    }

    /// Writes everything, reading meanwhile.
    pub(super) async fn flush(&mut self) -> Result<()> {
        while poll_fn(|cx| self.poll(cx, &mut &[][..])).await? == Progress::Read {}
        Ok(())
    }

    /// The next message as an ErrorResponse.
    pub(super) fn take_error(&mut self) -> Result<ServerError> {
        let error = ServerError::decode(self.inbox.body())?;
        self.inbox.skip();
        Ok(error)
    }
}

/// Shows how much there is to be written, not what: it may be a password or rows.
impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pending = self.output.len() + self.frames.len();
        write!(f, "Channel({:?}, {pending} bytes to write)", self.inbox)
    }
}

/// Like `Poll<Result>`, but easy to chain.
enum Polled<T> {
    Done(T),
    Pending,
    Failed(io::Error),
}

impl<T> Polled<T> {
    fn and_then<U>(self, next: impl FnOnce(T) -> Polled<U>) -> Polled<U> {
        match self {
            Self::Done(value) => next(value),
            Self::Pending => Polled::Pending,
            Self::Failed(error) => Polled::Failed(error),
        }
    }
}

fn write_all(cx: &mut Context<'_>, stream: &mut Stream, bytes: &mut impl Buf) -> Polled<()> {
    while bytes.has_remaining() {
        match Pin::new(&mut *stream).poll_write(cx, bytes.chunk()) {
            Poll::Ready(Ok(0)) => return Polled::Failed(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(count)) => bytes.advance(count),
            Poll::Ready(Err(error)) => return Polled::Failed(error),
            Poll::Pending => return Polled::Pending,
        }
    }
    Polled::Done(())
}

fn flush(cx: &mut Context<'_>, stream: &mut Stream) -> Polled<()> {
    match Pin::new(stream).poll_flush(cx) {
        Poll::Ready(Ok(())) => Polled::Done(()),
        Poll::Ready(Err(error)) => Polled::Failed(error),
        Poll::Pending => Polled::Pending,
    }
}
