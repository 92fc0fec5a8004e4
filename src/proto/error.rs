//! Why bytes are not what they should be.

/// Bytes that do not follow their format. Names fields and numbers only: never a row's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before a field that must be there.
    #[error("message ends within or before {field}")]
    Missing {
        /// The first field that is not whole.
        field: &'static str,
    },
    /// Bytes are left after the last field.
    #[error("{bytes} bytes left over after {what}")]
    Trailing {
        /// What had been read when bytes were left.
        what: &'static str,
        /// How many were left.
        bytes: usize,
    },
    /// A number of things that is negative, above its limit, or above what the remaining bytes can hold.
    #[error("{field} is {count}, not between 0 and {max}")]
    Count {
        /// The field with the number.
        field: &'static str,
        /// The number as sent.
        count: i32,
        /// The greatest that could have been right here.
        max: usize,
    },
    /// A number of bytes that is negative or above what remains.
    #[error("{field} has length {length}, not between 0 and the remaining {remaining}")]
    Length {
        /// The field that the length belongs to.
        field: &'static str,
        /// The length as sent.
        length: i32,
        /// Bytes that follow the length.
        remaining: usize,
    },
    /// A byte that says what follows, and is not known.
    #[error("unknown tag {tag:#04x} of {what}")]
    Tag {
        /// The byte.
        tag: u8,
        /// What it should have been the tag of.
        what: &'static str,
    },
    /// Text that is not UTF-8, though `client_encoding` is.
    #[error("{field} is not UTF-8")]
    Utf8 {
        /// The field with the text.
        field: &'static str,
    },
    /// A flag, or a set of flags, with a value that has no meaning.
    #[error("{field} has the undefined value {value:#04x}")]
    Flag {
        /// The field with the flags.
        field: &'static str,
        /// Its value.
        value: u8,
    },
}
