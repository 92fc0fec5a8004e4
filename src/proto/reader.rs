//! The one way from bytes to fields.
//!
//! Numbers are big-endian. A C string, which holds a name, ends with a zero byte and is UTF-8: sessions set
//! `client_encoding=UTF8`, except on a source of encoding SQL_ASCII, whose names must be UTF-8 to be moved. Counts and lengths are signed on the wire; they are checked against the bytes that remain
//! before anything is cast, skipped or allocated.

use byteorder::{BigEndian, ByteOrder as _};
use bytes::{Buf, Bytes};

use super::DecodeError;

/// Reads one message's fields in order; each method names its field in the error.
pub struct Reader {
    bytes: Bytes,
    /// Where the next field starts; never beyond the end.
    position: usize,
}

impl Reader {
    /// Starts at the first byte of a message.
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, position: 0 }
    }

    /// Bytes that have not been read.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// Reads a byte.
    ///
    /// # Errors
    /// [`DecodeError::Missing`] at the end.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    /// Reads an Int16.
    ///
    /// # Errors
    /// [`DecodeError::Missing`] if fewer bytes remain.
    pub fn i16(&mut self, field: &'static str) -> Result<i16, DecodeError> {
        self.array::<2>(field).map(|bytes| BigEndian::read_i16(&bytes))
    }

    /// Reads an Int32.
    ///
    /// # Errors
    /// [`DecodeError::Missing`] if fewer bytes remain.
    pub fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.array::<4>(field).map(|bytes| BigEndian::read_i32(&bytes))
    }

    /// Reads an Int32 that the server holds unsigned, such as an OID.
    ///
    /// # Errors
    /// [`DecodeError::Missing`] if fewer bytes remain.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array::<4>(field).map(|bytes| BigEndian::read_u32(&bytes))
    }

    /// Reads an Int64.
    ///
    /// # Errors
    /// [`DecodeError::Missing`] if fewer bytes remain.
    pub fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.array::<8>(field).map(|bytes| BigEndian::read_i64(&bytes))
    }

    /// Reads an Int64 that the server holds unsigned, such as an LSN.
    ///
    /// # Errors
    /// [`DecodeError::Missing`] if fewer bytes remain.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array::<8>(field).map(|bytes| BigEndian::read_u64(&bytes))
    }

    /// Reads a byte that is 0 or 1.
    ///
    /// # Errors
    /// [`DecodeError::Missing`] at the end, [`DecodeError::Flag`] for another value.
    pub fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Flag { field, value }),
        }
    }

    /// Reads a C string.
    ///
    /// # Errors
    /// [`DecodeError::Missing`] without a zero byte, [`DecodeError::Utf8`] if it is not text.
    pub fn c_string(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let rest = self.rest();
        let length = rest.iter().position(|&byte| byte == 0).ok_or(DecodeError::Missing { field })?;
        let text = str::from_utf8(&rest[..length]).map_err(|_| DecodeError::Utf8 { field })?.to_owned();
        self.position += length + 1;
        Ok(text)
    }

    /// Reads an Int16 that says how many things of at least `thing_bytes_min` bytes each follow.
    ///
    /// # Errors
    /// [`DecodeError::Missing`] if the number is not whole; [`DecodeError::Count`] if it is negative, above
    /// `count_max`, or more than the remaining bytes can hold.
    pub fn count_i16(
        &mut self,
        field: &'static str,
        thing_bytes_min: usize,
        count_max: usize,
    ) -> Result<usize, DecodeError> {
        let count = self.i16(field)?;
        self.check_count(field, count.into(), thing_bytes_min, count_max)
    }

    /// Reads an Int32 that says how many things of at least `thing_bytes_min` bytes each follow.
    ///
    /// # Errors
    /// As [`Self::count_i16`].
    pub fn count_i32(
        &mut self,
        field: &'static str,
        thing_bytes_min: usize,
        count_max: usize,
    ) -> Result<usize, DecodeError> {
        let count = self.i32(field)?;
        self.check_count(field, count, thing_bytes_min, count_max)
    }

    /// Reads an Int32 length and steps over as many bytes.
    ///
    /// # Errors
    /// [`DecodeError::Missing`] if the length is not whole; [`DecodeError::Length`] if it is negative or more than
    /// what remains.
    pub fn skip_counted(&mut self, field: &'static str) -> Result<(), DecodeError> {
        let length = self.i32(field)?;
        let remaining = self.remaining();
        match usize::try_from(length) {
            Ok(bytes) if bytes <= remaining => {
                self.position += bytes;
                Ok(())
            }
            Ok(_) | Err(_) => Err(DecodeError::Length { field, length, remaining }),
        }
    }

    /// Reads an Int32 length and as many bytes, without copying them.
    ///
    /// # Errors
    /// As [`Self::skip_counted`].
    pub fn bytes_counted(&mut self, field: &'static str) -> Result<Bytes, DecodeError> {
        let start = self.position + size_of::<i32>();
        self.skip_counted(field)?;
        Ok(self.slice_since(start))
    }

    /// Reads all that remains, without copying it.
    pub fn remainder(&mut self) -> Bytes {
        let start = self.position;
        self.position = self.bytes.len();
        self.slice_since(start)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`] if bytes remain.
    pub fn finish(self, what: &'static str) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            bytes => Err(DecodeError::Trailing { what, bytes }),
        }
    }

    /// Where the next field starts: a mark for [`Self::slice_since`].
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The bytes read since `mark`. Marks taken before are void afterwards.
    pub(super) fn slice_since(&mut self, mark: usize) -> Bytes {
        if self.position < self.bytes.len() {
            return self.bytes.slice(mark..self.position);
        }
        // Nothing comes after: giving the buffer away saves counting its users up and down, once a row.
        let mut slice = std::mem::take(&mut self.bytes);
        slice.advance(mark);
        self.position = 0;
        slice
    }

    fn check_count(
        &self,
        field: &'static str,
        count: i32,
        thing_bytes_min: usize,
        count_max: usize,
    ) -> Result<usize, DecodeError> {
        let max = count_max.min(self.remaining() / thing_bytes_min);
        match usize::try_from(count) {
            Ok(things) if things <= max => Ok(things),
            Ok(_) | Err(_) => Err(DecodeError::Count { field, count, max }),
        }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let bytes = self.rest().first_chunk::<N>().copied().ok_or(DecodeError::Missing { field })?;
        self.position += N;
        Ok(bytes)
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.position..]
    }
}
