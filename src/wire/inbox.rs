//! What has been read and not yet taken: bytes cut into backend messages. Manual: "Message Formats".
//!
//! A message is a type byte, a length of four bytes that counts itself but not the type, and the body.
//!
//! - Reading only ever appends, so giving up a read loses nothing.
//! - Messages that may come at any time (NoticeResponse, ParameterStatus, NotificationResponse) are taken care of here.
//! - A body is a slice of the read buffer. Whoever keeps one keeps the whole buffer; a large message grows the buffer by
//!   doubling, so that a length on the wire alone allocates nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::body::Body;
use super::bounds::Bounds;
use super::error::{Error, Result};
use super::server_error::ServerError;
use crate::limits;

/// Type byte and length.
pub(super) const HEADER: usize = 5;

/// Bytes read, and the server's parameters as last reported.
#[derive(Default)]
pub(super) struct Inbox {
    buffer: BytesMut,
    ended: bool,
    parameters: BTreeMap<String, String>,
    pub(super) bounds: Bounds,
}

impl Inbox {
    /// Reads what is there, up to the buffer's room. Ready when something new came.
    pub(super) fn poll_fill<R>(&mut self, cx: &mut Context<'_>, stream: &mut R) -> Poll<Result<()>>
    where
        R: AsyncRead + Unpin,
    {
        if self.ended {
            return Poll::Ready(Err(Error::Closed));
        }
        self.make_room()?;
        let before = self.buffer.len();
        loop {
            // `read_buf` has no state of its own: a new future each time is the same read.
            match pin!(stream.read_buf(&mut self.buffer)).poll(cx) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) if self.buffer.len() < self.buffer.capacity() => continue,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => self.ended = true,
                Poll::Ready(Err(error)) if self.buffer.len() == before => {
                    return Poll::Ready(Err(error.into()));
                }
                // What came before the error may explain it. The next read says the error again, or ends.
                Poll::Ready(Err(_)) => {}
                Poll::Pending if self.buffer.len() == before => return Poll::Pending,
                Poll::Pending => {}
            }
            break;
        }
        if self.buffer.len() > before { Poll::Ready(Ok(())) } else { Poll::Ready(Err(Error::Closed)) }
    }

    fn make_room(&mut self) -> Result<()> {
        let free = self.buffer.capacity() - self.buffer.len();
        let missing = self.front()?.map_or(0, |(_, length)| length.saturating_sub(self.buffer.len()));
        if missing > free {
            let step = self.buffer.len().max(limits::READ_BYTES);
            self.buffer.reserve(missing.min(step));
        } else if free < limits::READ_BYTES_MIN && missing == 0 {
            self.buffer.reserve(limits::READ_BYTES);
        }
        Ok(())
    }

    /// The first message's type and whole length, header included, once its header is there.
    fn front(&self) -> Result<Option<(u8, usize)>> {
        let front = frame(&self.buffer)?;
        if let Some((tag, length)) = front {
            self.bounds.admit(tag, length)?;
        }
        Ok(front)
    }

    /// The type of the next message, once it is there as a whole.
    pub(super) fn next_tag(&mut self) -> Result<Option<u8>> {
        loop {
            let Some((tag, length)) = self.front()?.filter(|(_, length)| self.buffer.len() >= *length) else {
                return Ok(None);
            };
            match tag {
                b'N' => log_notice(&ServerError::decode(&self.buffer[HEADER..length])?),
                b'S' => {
                    let mut body = Body::new(&self.buffer[HEADER..length], "ParameterStatus");
                    let (name, value) = (body.text()?.into_owned(), body.text()?.into_owned());
                    if self.parameters.len() >= limits::PARAMETERS_MAX && !self.parameters.contains_key(&name)
                    {
                        let bound = limits::PARAMETERS_MAX;
                        return Err(Error::Excess(format!("more than {bound} parameters")));
                    }
                    self.parameters.insert(name, value);
                }
                b'A' => {}
                tag => return Ok(Some(tag)),
            }
            self.bounds.count(&self.buffer[..length], length);
            self.buffer.advance(length);
        }
    }

    /// The next message's body, after [`Self::next_tag`] gave its type.
    pub(super) fn body(&self) -> &[u8] {
        match self.front() {
            Ok(Some((_, length))) => self.buffer.get(HEADER..length).unwrap_or_default(),
            Ok(None) | Err(_) => &[],
        }
    }

    /// Drops the next message.
    pub(super) fn skip(&mut self) {
        if let Ok(Some((_, length))) = self.front() {
            self.bounds.count(&self.buffer, length);
            self.buffer.advance(length.min(self.buffer.len()));
        }
    }

    /// Takes the next message's body.
    pub(super) fn take(&mut self) -> Bytes {
        let length = HEADER + self.body().len();
        self.bounds.count(&self.buffer, length);
        let mut message = self.buffer.split_to(length.min(self.buffer.len())).freeze();
        message.advance(HEADER.min(message.len()));
        message
    }

    /// Takes all whole CopyData messages that come next, with their headers.
    pub(super) fn take_copy_data(&mut self) -> Result<Option<BytesMut>> {
        let mut end = 0;
        while let Some((b'd', length)) = frame(&self.buffer[end..])?
            && self.buffer.len() - end >= length
        {
            end += length;
        }
        if end > 0 {
            self.bounds.count(&self.buffer, end);
        }
        Ok((end > 0).then(|| self.buffer.split_to(end)))
    }

    /// A parameter as last reported by the server.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    pub(super) const fn parameters(&self) -> &BTreeMap<String, String> {
        &self.parameters
    }

    /// All that has been read and not been taken.
    pub(super) fn into_rest(self) -> Bytes {
        self.buffer.freeze()
    }
}

/// Shows how much there is, not what: it may be rows.
impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inbox({} bytes, ended: {})", self.buffer.len(), self.ended)
    }
}

/// The type and whole length of the message that `bytes` start with.
pub(super) fn frame(bytes: &[u8]) -> Result<Option<(u8, usize)>> {
    let Some(&[tag, a, b, c, d]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let length =
        usize::try_from(i32::from_be_bytes([a, b, c, d])).map_err(|_| Error::Malformed("header of a"))?;
    if !(4..=limits::MESSAGE_BYTES_MAX).contains(&length) {
        return Err(Error::Malformed("header of a"));
    }
    Ok(Some((tag, length + 1)))
}

/// A notice's message may quote a row as an error's may.
fn log_notice(notice: &ServerError) {
    tracing::debug!(severity = notice.severity(), %notice, "notice from the server");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(inbox: &mut Inbox, mut bytes: &[u8]) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while !bytes.is_empty() {
            assert!(inbox.poll_fill(&mut cx, &mut bytes).is_ready());
        }
    }

    #[test]
    fn messages_come_out_whole() {
        let messages = b"S\0\0\0\x0bTimeZ\0\0d\0\0\0\x06abd\0\0\0\x05cc\0\0\0\x04d\0\0\0\x09par";
        let mut inbox = Inbox::default();
        inbox.bounds.authenticated();
        fill(&mut inbox, messages);
        inbox.ended = false;
        assert_eq!(inbox.next_tag().expect("valid"), Some(b'd'));
        assert_eq!(inbox.parameter("TimeZ"), Some(""));
        assert_eq!(inbox.body(), b"ab");
        let run = inbox.take_copy_data().expect("valid").expect("two messages");
        assert_eq!(&run[..], b"d\0\0\0\x06abd\0\0\0\x05c");
        assert_eq!(inbox.next_tag().expect("valid"), Some(b'c'));
        inbox.skip();
        assert_eq!(inbox.next_tag().expect("valid"), None);
        fill(&mut inbox, b"ts");
        assert_eq!(inbox.next_tag().expect("valid"), Some(b'd'));
        assert_eq!(&inbox.take()[..], b"parts");
    }

    #[test]
    fn lengths_that_cannot_be() {
        for length in [0, 3, -1, i32::MIN, i32::MAX] {
            let mut message = vec![b'd'];
            message.extend(length.to_be_bytes());
            assert!(frame(&message).is_err(), "{length}");
        }
    }
}
