//! Positions in the write-ahead log. Manual: "pg_lsn Type".
//!
//! An LSN is a byte offset into one cluster's WAL stream, printed as two hexadecimal halves with a slash between them.
//! The source's and the target's streams have nothing to do with each other, so their positions are different types.

use std::fmt;
use std::str::FromStr;

/// Text that is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid WAL position: expected two hexadecimal numbers with a slash between them")]
pub struct LsnError;

macro_rules! lsn_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// Position 0/0: "invalid" to the server, "nothing yet" here.
            pub const ZERO: Self = Self(0);

            /// The position `bytes` bytes after the start of the WAL stream.
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }

            /// Bytes since the start of the WAL stream.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
            }
        }

        impl FromStr for $name {
            type Err = LsnError;

            fn from_str(text: &str) -> Result<Self, LsnError> {
                let (high, low) = text.split_once('/').ok_or(LsnError)?;
                Ok(Self(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
            }
        }
    };
}

lsn_type! {
    /// A position in the source's WAL.
    SourceLsn
}
lsn_type! {
    /// A position in the target's WAL.
    TargetLsn
}
lsn_type! {
    /// Where a source transaction's commit record starts (`Begin.final_lsn`, `Commit.commit_lsn`).
    CommitLsn
}
lsn_type! {
    /// The position just after a source transaction's commit record (`Commit.end_lsn`): what is resumed from.
    EndLsn
}

impl CommitLsn {
    /// The same position as a plain one of the source's WAL.
    pub const fn position(self) -> SourceLsn {
        SourceLsn::new(self.0)
    }
}

impl EndLsn {
    /// The same position as a plain one of the source's WAL.
    pub const fn position(self) -> SourceLsn {
        SourceLsn::new(self.0)
    }
}

impl SourceLsn {
    /// Bytes of WAL from `earlier` to here; 0 where `earlier` is not earlier.
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

fn half(text: &str) -> Result<u32, LsnError> {
    let digits = !text.is_empty() && text.len() <= 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !digits {
        return Err(LsnError);
    }
    u32::from_str_radix(text, 16).map_err(|_| LsnError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let check = |text: &str, expected: Option<u64>| {
            let parsed = text.parse::<SourceLsn>().ok().map(SourceLsn::get);
            assert_eq!(parsed, expected, "{text:?}");
            if let Some(bytes) = expected {
                assert_eq!(SourceLsn::new(bytes).to_string(), text);
            }
        };
        check("0/0", Some(0));
        check("16/B374D848", Some(0x16_B374_D848));
        check("FFFFFFFF/FFFFFFFF", Some(u64::MAX));
        for bad in ["", "/", "0", "0/", "/0", "0/123456789", "0/+1", "0/x", "-1/0", "0/0/0"] {
            check(bad, None);
        }
    }
}
