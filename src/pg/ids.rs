//! Identifiers that PostgreSQL gives to its things, each as a type of its own.

use std::fmt;

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            /// Wraps the number that the server gave.
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The number itself.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_type! {
    /// A catalog object's identifier, such as a type's.
    Oid, u32
}
number_type! {
    /// A relation's identifier as pgoutput gives it: the source's `pg_class.oid`.
    RelationId, u32
}
number_type! {
    /// A transaction's identifier, without its epoch.
    Xid, u32
}
number_type! {
    /// A cluster's identifier, made by `initdb`: `pg_control_system().system_identifier`.
    SystemId, u64
}
number_type! {
    /// A cluster's timeline: one more at each promotion of a standby.
    TimelineId, u32
}
number_type! {
    /// A server's version as `server_version_num` has it: 150018 for 15.18.
    ServerVersion, u32
}

impl ServerVersion {
    /// The major version: 15 for 15.18.
    pub const fn major(self) -> u32 {
        self.0 / 10_000
    }
}

/// A replication slot's name: 1 to 63 of `a-z`, `0-9` and `_`. Manual: "Replication Slots".
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SlotName(String);

/// Text that the server would refuse as a slot's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid replication slot name {0:?}: only 1 to 63 of a-z, 0-9 and _ are allowed")]
pub struct SlotNameError(String);

impl SlotName {
    /// Takes `text` if the server would.
    ///
    /// # Errors
    /// When `text` is empty, longer than 63 bytes, or has another character than `a-z`, `0-9` and `_`.
    pub fn new(text: &str) -> Result<Self, SlotNameError> {
        let fits = (1..=63).contains(&text.len());
        let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if fits && plain { Ok(Self(text.to_owned())) } else { Err(SlotNameError(text.to_owned())) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
