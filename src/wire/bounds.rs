//! How much a server may say. Whoever answers at an address is a stranger until it has shown that it is let in, and may lie
//! after that, too: a length on the wire, a count of messages and the size of an answer are believed within bounds alone.
//!
//! | until authenticated | bytes |
//! |---|---|
//! | Authentication, ErrorResponse | [`AUTHENTICATION_BYTES_MAX`](limits::AUTHENTICATION_BYTES_MAX), [`SMALL_MESSAGE_BYTES_MAX`](limits::SMALL_MESSAGE_BYTES_MAX), as libpq |
//! | any other | none has a place there |
//!
//! | then | bytes |
//! |---|---|
//! | CopyData, DataRow | a row's: [`MESSAGE_BYTES_MAX`](limits::MESSAGE_BYTES_MAX) |
//! | ErrorResponse, NoticeResponse, RowDescription, ParameterDescription | [`LARGE_MESSAGE_BYTES_MAX`](limits::LARGE_MESSAGE_BYTES_MAX) |
//! | any other | [`SMALL_MESSAGE_BYTES_MAX`](limits::SMALL_MESSAGE_BYTES_MAX), as libpq |
//!
//! An answer, up to its ReadyForQuery, has bounds of its own: on the bytes of its rows, and on the number of other messages,
//! since those that nobody asked for would else go on for ever. Data of a COPY is what streams are made of: it has none.

use super::error::{Error, Result};
use crate::limits;

/// What has been heard of one connection, against what may be.
#[derive(Debug)]
pub(super) struct Bounds {
    authenticated: bool,
    /// What the rows of one answer may take.
    answer_bytes_max: usize,
    /// What those of this one took.
    answer_bytes: usize,
    /// Messages other than rows, of this answer or since data of a COPY came.
    messages: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        let answer_bytes_max = limits::ANSWER_BYTES_MAX;
        Self { authenticated: false, answer_bytes_max, answer_bytes: 0, messages: 0 }
    }
}

impl Bounds {
    /// Those of a session that has begun, whose answers may take so much.
    pub(super) fn of_answers(answer_bytes_max: usize) -> Self {
        Self { authenticated: true, answer_bytes_max, ..Self::default() }
    }

    /// The server has let us in.
    pub(super) fn authenticated(&mut self) {
        self.authenticated = true;
    }

    /// What the rows of an answer may take from now on.
    pub(super) fn set_answer_bytes_max(&mut self, answer_bytes_max: usize) {
        self.answer_bytes_max = answer_bytes_max;
    }

    /// Whether a message of this type and whole length may come, by its header.
    pub(super) fn admit(&self, tag: u8, length: usize) -> Result<()> {
        let length_max = match (self.authenticated, tag) {
            (true, b'd') => return Ok(()),
            (true, b'D') if length > self.answer_bytes_max.saturating_sub(self.answer_bytes) => {
                let bound = self.answer_bytes_max >> 20;
                return Err(Error::Excess(format!("an answer of more than {bound} MiB")));
            }
            (true, b'D') => return Ok(()),
            (true, b'E' | b'N' | b'T' | b't') => limits::LARGE_MESSAGE_BYTES_MAX,
            (false, b'R') => limits::AUTHENTICATION_BYTES_MAX,
            (true, _) | (false, b'E') => limits::SMALL_MESSAGE_BYTES_MAX,
            (false, tag) => return Err(Error::Unexpected { tag: tag.into(), doing: "authenticating" }),
        };
        if length > length_max {
            let tag = char::from(tag);
            return Err(Error::Excess(format!("a message of type {tag:?} and {length} bytes")));
        }
        if self.messages >= limits::ANSWER_MESSAGES_MAX {
            let bound = limits::ANSWER_MESSAGES_MAX;
            return Err(Error::Excess(format!("more than {bound} messages that answer nothing")));
        }
        Ok(())
    }

    /// A message of this whole length was taken, which begins so: with seven bytes at least, if it is a row.
    pub(super) fn count(&mut self, message: &[u8], length: usize) {
        match message {
            [b'Z', ..] => self.answered(),
            [b'd', ..] => self.messages = 0,
            [b'D', _, _, _, _, high, low, ..] => {
                let values = usize::from(u16::from_be_bytes([*high, *low]));
                let cost = length + limits::ROW_COST + values * limits::VALUE_COST;
                self.answer_bytes = self.answer_bytes.saturating_add(cost);
            }
            _ => self.messages += 1,
        }
    }

    /// All that was asked is answered.
    pub(super) fn answered(&mut self) {
        (self.answer_bytes, self.messages) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_come_when() {
        let (stranger, known) = (Bounds::default(), Bounds::of_answers(1 << 20));
        let check = |bounds: &Bounds, tag: u8, length_max: usize| {
            assert!(bounds.admit(tag, length_max).is_ok(), "{}", char::from(tag));
            assert!(bounds.admit(tag, length_max + 1).is_err(), "{}", char::from(tag));
        };
        check(&stranger, b'R', 2_000);
        check(&stranger, b'E', 30_000);
        for tag in b"NSAKZdDTCGv" {
            assert!(stranger.admit(*tag, 5).is_err(), "{}", char::from(*tag));
        }
        for tag in b"SAKZCGHWRvsnI123c?" {
            check(&known, *tag, 30_000);
        }
        for tag in b"ENTt" {
            check(&known, *tag, 1 << 20);
        }
        check(&known, b'D', 1 << 20);
        assert!(known.admit(b'd', limits::MESSAGE_BYTES_MAX).is_ok());
    }

    #[test]
    fn what_an_answer_may_be() {
        let mut bounds = Bounds::of_answers(3_000);
        let rows = |bounds: &mut Bounds, row: &[u8]| {
            let one = |_: &u32| bounds.admit(b'D', row.len()).map(|()| bounds.count(row, row.len())).is_ok();
            (0..1_000).take_while(one).count()
        };
        let empty = b"D\0\0\0\x06\0\0";
        assert_eq!(rows(&mut bounds, empty), 43);
        assert_eq!(rows(&mut bounds, empty), 0);
        bounds.count(b"Z\0\0\0\x05I", 6);
        assert_eq!(rows(&mut bounds, b"D\0\0\0\x0e\0\x02\xff\xff\xff\xff\xff\xff\xff\xff"), 24, "NULLs");
        bounds.answered();
        for _ in 0..limits::ANSWER_MESSAGES_MAX {
            bounds.count(b"N\0\0\0\x05\0", 6);
        }
        assert!(bounds.admit(b'N', 20).is_err());
        bounds.count(b"d\0\0\0\x04", 5);
        assert!(bounds.admit(b'N', 20).is_ok());
    }
}
