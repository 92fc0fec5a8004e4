//! What a server sends to tokio-postgres, which believes every length and holds every row: message by message, within
//! [`Bounds`]. What is beyond them does not come through; in its place comes an error that says so, and the end.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::bounds::Bounds;
use super::error::Error;
use super::inbox::{HEADER, frame};
use super::server_error::ServerError;
use crate::limits;

/// A row's count of values stands behind its header.
const ROW_HEADER: usize = HEADER + 2;

/// Bytes on their way from the server.
#[derive(Debug)]
pub(super) struct Incoming {
    buffer: BytesMut,
    /// Of these, so many may be passed on.
    checked: usize,
    /// So many of the message at hand are still to come.
    rest: usize,
    bounds: Bounds,
    ended: bool,
    /// What came since somebody asked: so many answers ended.
    heard: Option<usize>,
}

impl Incoming {
    /// Begins with `replay`, which is ours up to its end `own` and the server's from there on.
    pub(super) fn new(replay: BytesMut, own: usize) -> Self {
        let bounds = Bounds::of_answers(limits::CONTROL_ANSWERS_BYTES_MAX);
        let mut incoming = Self { buffer: replay, checked: own, rest: 0, bounds, ended: false, heard: None };
        incoming.check();
        incoming
    }

    /// Reads from `stream`, and passes on what may be.
    pub(super) fn poll_read<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut R,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.checked == 0 && !self.ended {
            self.buffer.reserve(limits::READ_BYTES_MIN);
            match pin!(stream.read_buf(&mut self.buffer)).poll(cx) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => self.check(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        let count = self.checked.min(buf.remaining());
        buf.put_slice(&self.buffer[..count]);
        self.buffer.advance(count);
        self.checked -= count;
        Poll::Ready(Ok(()))
    }

    /// Whether something came since the last time, and how many answers ended in it.
    pub(super) fn heard(&mut self) -> Option<usize> {
        self.heard.take()
    }

    /// All that was asked is answered.
    pub(super) fn answered(&mut self) {
        self.bounds.answered();
    }

    /// Ends it with this error in the server's place, where a message is not cut by that.
    pub(super) fn give_up(&mut self, why: &str) {
        self.end(&ServerError::fatal("08006", why));
    }

    /// Looks at the messages that have come.
    fn check(&mut self) {
        let answers = self.heard.get_or_insert(0);
        loop {
            let here = self.rest.min(self.buffer.len() - self.checked);
            (self.rest, self.checked) = (self.rest - here, self.checked + here);
            let message = &self.buffer[self.checked..];
            if self.rest > 0 || message.len() < HEADER || message[0] == b'D' && message.len() < ROW_HEADER {
                return;
            }
            let admitted = frame(message).and_then(|front| {
                let (tag, length) = front.unwrap_or_default();
                self.bounds.admit(tag, length).map(|()| (tag, length))
            });
            match admitted {
                Ok((b'Z', length)) => {
                    *answers += 1;
                    self.rest = length;
                }
                Ok((_, length)) => {
                    self.bounds.count(message, length);
                    self.rest = length;
                }
                Err(excess) => {
                    self.end(&said(&excess));
                    return;
                }
            }
        }
    }

    fn end(&mut self, error: &[u8]) {
        self.ended = true;
        self.buffer.truncate(self.checked);
        if self.rest == 0 {
            self.buffer.put_u8(b'E');
            self.buffer.put_u32(u32::try_from(error.len() + 4).unwrap_or(u32::MAX));
            self.buffer.put_slice(error);
            self.checked = self.buffer.len();
        }
    }
}

fn said(error: &Error) -> Vec<u8> {
    match error {
        Error::Excess(_) => ServerError::excess(error),
        other => ServerError::fatal("08P01", &other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use super::*;

    /// Bytes that come in pieces, then the end.
    struct Pieces<'a>(&'a [u8], usize);

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let (piece, rest) = self.0.split_at(self.1.min(self.0.len()).min(buf.remaining()));
            buf.put_slice(piece);
            self.0 = rest;
            Poll::Ready(Ok(()))
        }
    }

    /// What comes through, and how many answers ended in it.
    fn passed(stream: &[u8], step: usize) -> (Vec<u8>, usize) {
        let mut incoming = Incoming::new(BytesMut::new(), 0);
        let (mut pieces, mut passed, mut answers) = (Pieces(stream, step), Vec::new(), 0);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        loop {
            let mut room = [0; 7];
            let mut buf = ReadBuf::new(&mut room);
            assert!(incoming.poll_read(&mut cx, &mut pieces, &mut buf).is_ready());
            answers += incoming.heard().unwrap_or_default();
            if buf.filled().is_empty() {
                return (passed, answers);
            }
            passed.extend_from_slice(buf.filled());
        }
    }

    #[test]
    fn messages_come_through_wherever_they_are_cut() {
        let stream =
            b"T\0\0\0\x06\0\0D\0\0\0\x0b\0\x01\0\0\0\x01ZC\0\0\0\x05xZ\0\0\0\x05IA\0\0\0\x04Z\0\0\0\x05T";
        for step in 1..stream.len() {
            assert_eq!(passed(stream, step), (stream.to_vec(), 2), "{step}");
        }
    }

    #[test]
    fn in_the_place_of_what_does_not_there_is_an_error() {
        let before = b"C\0\0\0\x05x";
        let huge = [&before[..], b"S\0\x7f\xff\xff", &[0; 100]].concat();
        for step in 1..huge.len() {
            let (through, _) = passed(&huge, step);
            let said = through.strip_prefix(before).expect("what came before");
            assert_eq!(frame(said).expect("a message"), Some((b'E', said.len())), "{step}");
            let error = ServerError::decode(&said[HEADER..]).expect("an error");
            let sent = "08P01 (protocol_violation): the server sent a message of type 'S' and 8388608 bytes";
            assert!(error.is_excess() && error.to_string().starts_with(sent), "{error}");
        }
    }

    #[test]
    fn it_is_given_up_between_two_messages_alone() {
        let check = |stream: &[u8], expected: bool| {
            let mut incoming = Incoming::new(BytesMut::from(stream), 0);
            incoming.give_up("it was silent");
            let said = String::from_utf8_lossy(&incoming.buffer).contains("it was silent");
            assert_eq!((said, incoming.ended), (expected, true), "{stream:?}");
        };
        check(b"", true);
        check(b"C\0\0\0\x05x", true);
        check(b"C\0\0", true);
        check(b"C\0\0\0\x09x", false);
    }
}
