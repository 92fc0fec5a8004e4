//! Rows. Manual: "Logical Replication Message Formats", "TupleData".
//!
//! ```text
//! TupleData  Int16 column count, then for each column:
//!            'n'                                NULL
//!            'u'                                unchanged TOASTed value, not sent
//!            't'  Int32 length  Byte[length]    value as text, in client_encoding
//!            'b'  Int32 length  Byte[length]    value in its type's binary format (option `binary`)
//! ```
//!
//! A tuple keeps the bytes as they came. They are checked once, when it is decoded; reading columns afterwards costs no
//! allocation and cannot fail. Values are not checked as UTF-8: they pass to the target untouched, which checks them.

use std::fmt;

use byteorder::{BigEndian, ByteOrder as _};
use bytes::{BufMut, Bytes, BytesMut};

use super::writer::{put_count_i16, put_counted};
use super::{DecodeError, Reader};
use crate::limits::COLUMNS_MAX;

/// One row's columns, in the order of its relation's.
#[derive(Clone, PartialEq, Eq)]
pub struct Tuple {
    /// The columns as sent, without the count. Invariant: exactly `count` well-formed columns.
    columns: Bytes,
    count: usize,
    unchanged: bool,
    binary: bool,
}

/// One column of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TupleValue<'a> {
    /// `n`: NULL.
    Null,
    /// `u`: a TOASTed value that the UPDATE left as it was, and that was not sent.
    Unchanged,
    /// `t`: as text.
    Text(&'a [u8]),
    /// `b`: in the type's binary format.
    Binary(&'a [u8]),
}

/// Iterator over a [`Tuple`]'s columns.
#[derive(Clone)]
pub struct Columns<'a> {
    rest: &'a [u8],
    count: usize,
}

impl Tuple {
    /// Makes a tuple of `values`.
    ///
    /// # Panics
    /// If there are more than [`COLUMNS_MAX`] values, or one is longer than `i32::MAX` bytes.
    pub fn from_values<'a>(values: impl IntoIterator<Item = TupleValue<'a>>) -> Self {
        let mut columns = BytesMut::new();
        let (mut count, mut unchanged, mut binary) = (0, false, false);
        for value in values {
            unchanged |= matches!(value, TupleValue::Unchanged);
            binary |= matches!(value, TupleValue::Binary(_));
            count += 1;
            match value {
                TupleValue::Null => columns.put_u8(NULL),
                TupleValue::Unchanged => columns.put_u8(UNCHANGED),
                TupleValue::Text(bytes) => {
                    columns.put_u8(TEXT);
                    put_counted(&mut columns, bytes);
                }
                TupleValue::Binary(bytes) => {
                    columns.put_u8(BINARY);
                    put_counted(&mut columns, bytes);
                }
            }
        }
        assert!(count <= COLUMNS_MAX, "a tuple has at most {COLUMNS_MAX} columns");
        Self { columns: columns.freeze(), count, unchanged, binary }
    }

    /// Reads TupleData.
    ///
    /// # Errors
    /// When the bytes are no TupleData.
    pub fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let count = reader.count_i16("TupleData.column_count", COLUMN_BYTES_MIN, COLUMNS_MAX)?;
        let start = reader.position();
        let (mut unchanged, mut binary) = (false, false);
        for _ in 0..count {
            match reader.u8("TupleData.column_kind")? {
                NULL => {}
                UNCHANGED => unchanged = true,
                kind @ (TEXT | BINARY) => {
                    binary |= kind == BINARY;
                    reader.skip_counted("TupleData.column_value")?;
                }
                tag => return Err(DecodeError::Tag { tag, what: "TupleData column" }),
            }
        }
        Ok(Self { columns: reader.slice_since(start), count, unchanged, binary })
    }

    /// Appends TupleData.
    pub fn encode(&self, out: &mut BytesMut) {
        put_count_i16(out, self.count);
        out.put_slice(&self.columns);
    }

    /// The columns, in order.
    pub fn columns(&self) -> Columns<'_> {
        Columns { rest: &self.columns, count: self.count }
    }

    /// The bytes of one of this tuple's values, without copying them; none for NULL and for an unchanged one.
    ///
    /// They keep the buffer that the message came in. A value of another tuple is copied.
    pub fn value_bytes(&self, value: TupleValue<'_>) -> Option<Bytes> {
        let bytes = value.bytes()?;
        let (all, part) = (self.columns.as_ptr_range(), bytes.as_ptr_range());
        let ours = all.start <= part.start && part.end <= all.end;
        Some(if ours { self.columns.slice_ref(bytes) } else { Bytes::copy_from_slice(bytes) })
    }

    /// How many columns there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none, as in a table without columns.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a TOASTed value that did not change was left out.
    pub fn has_unchanged(&self) -> bool {
        self.unchanged
    }

    /// Whether a value is in binary format.
    pub fn has_binary(&self) -> bool {
        self.binary
    }

    /// Bytes that the columns take, their kinds and lengths included.
    pub fn byte_len(&self) -> usize {
        self.columns.len()
    }
}

/// Without the values: what is debugged ends up in logs.
impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.columns()).finish()
    }
}

impl<'a> TupleValue<'a> {
    /// The value's bytes; none for NULL and for an unchanged one.
    pub const fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Null | Self::Unchanged => None,
            Self::Text(bytes) | Self::Binary(bytes) => Some(bytes),
        }
    }
}

/// Kind and length, not the value.
impl fmt::Debug for TupleValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Unchanged => f.write_str("Unchanged"),
            Self::Text(bytes) => write!(f, "Text({} bytes)", bytes.len()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

impl<'a> Iterator for Columns<'a> {
    type Item = TupleValue<'a>;

    /// The tuple was checked when it was made; `None` before the last column cannot come, and need not be a panic.
    fn next(&mut self) -> Option<TupleValue<'a>> {
        let (&kind, rest) = self.rest.split_first()?;
        let value = match kind {
            NULL | UNCHANGED => {
                self.rest = rest;
                if kind == NULL { TupleValue::Null } else { TupleValue::Unchanged }
            }
            _ => {
                let (length, rest) = rest.split_first_chunk::<4>()?;
                let length = usize::try_from(BigEndian::read_i32(length)).ok()?;
                let (value, rest) = rest.split_at_checked(length)?;
                self.rest = rest;
                if kind == TEXT { TupleValue::Text(value) } else { TupleValue::Binary(value) }
            }
        };
        self.count -= 1;
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for Columns<'_> {}

impl std::iter::FusedIterator for Columns<'_> {}

const NULL: u8 = b'n';
const UNCHANGED: u8 = b'u';
const TEXT: u8 = b't';
const BINARY: u8 = b'b';

/// The smallest column: a kind alone.
const COLUMN_BYTES_MIN: usize = 1;
