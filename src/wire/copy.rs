//! COPY out of one server and into another. Manual: "COPY Operations".
//!
//! Rows pass as runs of whole CopyData messages: nothing is decoded on the way. A server sends each row in a message of
//! its own, and to take one costs it more than to take a short row, so [`relay`] puts the rows of a run together, in
//! their place. At most two runs are held at a time, one being sent and one being read; a run is what one read brought,
//! or a single row if that is larger.
//!
//! A server that refuses a row says so at once and then drops what still comes. So sending listens, and a message of
//! which a part has been sent is sent to its end, after which the session can be used again.

use std::future::poll_fn;

use bytes::{BufMut, Bytes, BytesMut};
use postgres_protocol::message::frontend;

use super::channel::Progress;
use super::error::{Error, Result};
use super::inbox::{HEADER, frame};
use super::session::{Session, affected};
use crate::limits;
use crate::pg::Sql;

/// Rows coming out of a server. Dropped before its end, it leaves the session [`Error::Busy`].
#[derive(Debug)]
pub struct CopyOut<'a> {
    session: &'a mut Session,
    rows: Option<u64>,
    ended: bool,
}

/// Rows going into a server. To be ended with [`Self::finish`] or [`Self::abort`], else the session stays
/// [`Error::Busy`].
#[derive(Debug)]
pub struct CopyIn<'a> {
    session: &'a mut Session,
}

/// What [`relay`] carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Relayed {
    /// Rows as the source counted them.
    pub rows_read: u64,
    /// Rows as the target counted them: fewer where a trigger or a WHERE clause drops some.
    pub rows_written: u64,
    /// Bytes, message headers included.
    pub bytes: u64,
}

/// Which end of a [`relay`] failed. After a failed source the target's session is usable; after a failed target the
/// source's is still sending rows.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The rows could not be read.
    #[error("reading rows: {0}")]
    Source(#[source] Error),
    /// The rows could not be written.
    #[error("writing rows: {0}")]
    Target(#[source] Error),
}

/// Forwards all rows, reading the next run while one is being sent. `on_progress` gets the messages (a row each, but for
/// the ends of a binary copy) and the bytes of each run sent.
///
/// # Errors
/// When either end fails.
pub async fn relay(
    mut source: CopyOut<'_>,
    mut target: CopyIn<'_>,
    mut on_progress: impl FnMut(u64, u64),
) -> Result<Relayed, RelayError> {
    let mut relayed = Relayed::default();
    let mut next = source.next_frames().await;
    loop {
        let mut frames = match next {
            Ok(Some(frames)) => frames,
            Ok(None) => break,
            Err(error) => {
                // What the target says to that changes nothing.
                let _ = target.abort("the source failed").await;
                return Err(RelayError::Source(error));
            }
        };
        let bytes = u64::try_from(frames.len()).unwrap_or(u64::MAX);
        let messages = put_together(&mut frames);
        let sending = async { target.send_frames(frames.freeze()).await.map_err(RelayError::Target) };
        let reading = async { Ok(source.next_frames().await) };
        ((), next) = tokio::try_join!(sending, reading)?;
        relayed.bytes += bytes;
        on_progress(messages, bytes);
    }
    relayed.rows_written = target.finish().await.map_err(RelayError::Target)?;
    relayed.rows_read = source.rows().unwrap_or_default();
    Ok(relayed)
}

impl Session {
    /// Starts a `COPY … TO STDOUT`.
    ///
    /// # Errors
    /// When the server refuses, or the statement is another.
    pub async fn copy_out(&mut self, sql: &Sql) -> Result<CopyOut<'_>> {
        self.start_copy(sql, b'H').await?;
        Ok(CopyOut { session: self, rows: None, ended: false })
    }

    /// Starts a `COPY … FROM STDIN`, which other statements without rows may precede.
    ///
    /// # Errors
    /// When the server refuses, or the last statement is another.
    pub async fn copy_in(&mut self, sql: &Sql) -> Result<CopyIn<'_>> {
        self.start_copy(sql, b'G').await?;
        Ok(CopyIn { session: self })
    }

    /// Sends the statement, with others before it or not, and reads the `wanted` answer.
    pub(super) async fn start_copy(&mut self, sql: &Sql, wanted: u8) -> Result<()> {
        self.start_query(sql)?;
        let mut tag = self.next_tag().await?;
        while tag == b'C' {
            self.channel.inbox.skip();
            tag = self.next_tag().await?;
        }
        if tag == wanted {
            self.channel.inbox.skip();
            return Ok(());
        }
        let unexpected = Error::Unexpected { tag: tag.into(), doing: "starting a copy" };
        if tag == b'W' {
            // A stream that nobody asked for has no end to wait for.
            return Err(unexpected);
        }
        self.drain((tag != b'E').then_some(unexpected)).await
    }
}

impl CopyOut<'_> {
    /// The next run of whole CopyData messages with their headers; `None` after the last. Giving up the wait loses nothing.
    ///
    /// # Errors
    /// When the server fails, or the connection breaks.
    pub async fn next_frames(&mut self) -> Result<Option<BytesMut>> {
        while !self.ended {
            match self.session.next_tag().await? {
                b'd' => return self.session.channel.inbox.take_copy_data(),
                b'c' => {}
                b'C' => self.rows = Some(affected(self.session.channel.inbox.body())),
                b'Z' => {
                    self.session.end()?;
                    self.ended = true;
                    continue;
                }
                b'E' => {
                    self.ended = true;
                    self.session.drain(None).await?;
                    break;
                }
                tag => return Err(Error::Unexpected { tag: tag.into(), doing: "copying out" }),
            }
            self.session.channel.inbox.skip();
        }
        Ok(None)
    }

    /// How many rows there were, once all have been read.
    pub const fn rows(&self) -> Option<u64> {
        self.rows
    }
}

impl CopyIn<'_> {
    /// Sends whole CopyData messages, as [`CopyOut::next_frames`] gives them. Returns when all is on its way.
    ///
    /// # Errors
    /// When the server refuses what was sent up to now, or the connection breaks.
    pub async fn send_frames(&mut self, frames: Bytes) -> Result<()> {
        self.write_out().await?;
        self.session.channel.frames = frames;
        self.write_out().await
    }

    /// Sends a piece of COPY data, which need not end where a row ends. Small pieces are gathered.
    ///
    /// # Errors
    /// As [`Self::send_frames`].
    pub async fn send_data(&mut self, data: &[u8]) -> Result<()> {
        if !self.session.channel.frames.is_empty() {
            self.write_out().await?;
        }
        put_copy_data(&mut self.session.channel.output, data)?;
        if self.session.channel.output.len() >= limits::SEND_BYTES {
            self.write_out().await?;
        }
        Ok(())
    }

    /// Ends the copy, and gives the number of rows that the server counted.
    ///
    /// # Errors
    /// When the server refuses a row, or the connection breaks.
    pub async fn finish(mut self) -> Result<u64> {
        self.write_out().await?;
        frontend::copy_done(&mut self.session.channel.output);
        let mut rows = 0;
        loop {
            match self.session.next_tag().await? {
                b'C' => rows = affected(self.session.channel.inbox.body()),
                b'Z' => {
                    self.session.end()?;
                    return Ok(rows);
                }
                b'E' => return Err(self.refusal().await),
                tag => return Err(Error::Unexpected { tag: tag.into(), doing: "ending a copy" }),
            }
            self.session.channel.inbox.skip();
        }
    }

    /// Makes the server drop what was sent. The session is usable afterwards, its transaction has failed.
    ///
    /// # Errors
    /// When the connection breaks. That the server reports the abort is no error.
    pub async fn abort(mut self, reason: &'static str) -> Result<()> {
        let refused = match self.write_out().await {
            Ok(()) => {
                frontend::copy_fail(reason, &mut self.session.channel.output)
                    .map_err(|_| Error::Unsendable("CopyFail"))?;
                self.session.drain(None).await
            }
            refused => refused,
        };
        match refused {
            Err(Error::Server(error)) if !error.is_fatal() => Ok(()),
            other => other,
        }
    }

    /// Writes everything, and reports what the server says against it.
    async fn write_out(&mut self) -> Result<()> {
        loop {
            let progress = poll_fn(|cx| self.session.channel.poll(cx, &mut &[][..])).await;
            match progress.inspect_err(|error| self.session.lose(error))? {
                Progress::Written => return Ok(()),
                Progress::Read => match self.session.channel.inbox.next_tag()? {
                    None => {}
                    Some(b'E') => return Err(self.refusal().await),
                    Some(tag) => return Err(Error::Unexpected { tag: tag.into(), doing: "copying in" }),
                },
            }
        }
    }

    /// The error that comes next, after the server has dropped what it still gets.
    async fn refusal(&mut self) -> Error {
        let error = match self.session.decode_error() {
            Ok(error) => error,
            Err(error) => return error,
        };
        self.session.channel.inbox.skip();
        if self.session.channel.flush().await.is_err() {
            // The refusal says more than the lost connection that came of it.
            return error.into();
        }
        match self.session.drain(Some(error.into())).await {
            Ok(()) => Error::Malformed("ErrorResponse"),
            Err(error) => error,
        }
    }
}

/// Puts whole CopyData messages together into as few as [`limits::COPY_MESSAGE_BYTES`] allows. What they carry stays as
/// it is: where one message ends means nothing to the reader. Gives the number that there were.
fn put_together(frames: &mut BytesMut) -> u64 {
    let (mut read, mut written, mut messages) = (0, 0, 0);
    // Where the message begins that is being put together.
    let mut head = 0;
    while let Some((_, length)) = frame(&frames[read..]).ok().flatten() {
        let next = read + length;
        let fits = written > head && written - head + length - HEADER <= limits::COPY_MESSAGE_BYTES;
        if fits {
            frames.copy_within(read + HEADER..next, written);
            written += length - HEADER;
        } else {
            seal(frames, head, written);
            if read > written {
                frames.copy_within(read..next, written);
            }
            head = written;
            written += length;
        }
        read = next;
        messages += 1;
    }
    seal(frames, head, written);
    frames.truncate(written);
    messages
}

/// Gives the message from `head` to `end` its length.
fn seal(frames: &mut [u8], head: usize, end: usize) {
    // Bounded by COPY_MESSAGE_BYTES, or by what the message was before.
    let length = u32::try_from(end.saturating_sub(head + 1)).unwrap_or_default();
    if let Some(place) = frames.get_mut(head + 1..head + HEADER).filter(|_| end > head) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends one CopyData message.
pub(super) fn put_copy_data(output: &mut BytesMut, data: &[u8]) -> Result<()> {
    let length = data.len().checked_add(4).filter(|&length| length <= limits::MESSAGE_BYTES_MAX);
    let length =
        length.and_then(|length| i32::try_from(length).ok()).ok_or(Error::Unsendable("more than 1 GiB"))?;
    output.put_u8(b'd');
    output.put_i32(length);
    output.put_slice(data);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(bodies: impl IntoIterator<Item = usize>) -> BytesMut {
        let mut frames = BytesMut::new();
        for (index, length) in bodies.into_iter().enumerate() {
            let byte = u8::try_from(index % 251).expect("less than 251");
            put_copy_data(&mut frames, &vec![byte; length]).expect("short");
        }
        frames
    }

    /// The bodies, one after the other, and the length of each.
    fn carried(mut frames: &[u8]) -> (Vec<u8>, Vec<usize>) {
        let (mut all, mut lengths) = (Vec::new(), Vec::new());
        while let Some((tag, length)) = frame(frames).expect("well formed") {
            assert_eq!(tag, b'd');
            all.extend_from_slice(&frames[HEADER..length]);
            lengths.push(length - HEADER);
            frames = &frames[length..];
        }
        assert!(frames.is_empty());
        (all, lengths)
    }

    #[test]
    fn messages_are_put_together() {
        let most = limits::COPY_MESSAGE_BYTES - HEADER;
        let check = |bodies: &[usize], expected: &[usize]| {
            let mut frames = messages(bodies.iter().copied());
            let (before, _) = carried(&frames);
            assert_eq!(put_together(&mut frames), bodies.len() as u64);
            let (after, lengths) = carried(&frames);
            assert!(before == after, "{bodies:?}");
            assert_eq!(lengths, expected, "{bodies:?}");
        };
        check(&[], &[]);
        check(&[0], &[0]);
        check(&[7], &[7]);
        check(&[0, 0, 3, 0], &[3]);
        check(&[1, 20, 300, 4_000], &[4_321]);
        check(&[most], &[most]);
        check(&[most - 1, 1], &[most]);
        check(&[most, 1], &[most, 1]);
        check(&[1, most, 1], &[1, most, 1]);
        check(&[3 * most, 5, 5, 3 * most, 2], &[3 * most, 10, 3 * most, 2]);
    }
}
