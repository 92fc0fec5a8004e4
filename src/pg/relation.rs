//! What the stream says of a table.

use super::{Oid, QualifiedName, RelationId};

/// How the source identifies the old row of an UPDATE or DELETE: `pg_class.relreplident`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// `d`: the primary key, if there is one.
    Default,
    /// `n`: nothing.
    Nothing,
    /// `f`: the whole row.
    Full,
    /// `i`: a chosen unique index.
    Index,
}

impl ReplicaIdentity {
    /// The identity that `relreplident` names, if it is one of the four.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'd' => Some(Self::Default),
            b'n' => Some(Self::Nothing),
            b'f' => Some(Self::Full),
            b'i' => Some(Self::Index),
            _ => None,
        }
    }

    /// The character that `relreplident` has for it.
    pub const fn as_byte(self) -> u8 {
        match self {
            Self::Default => b'd',
            Self::Nothing => b'n',
            Self::Full => b'f',
            Self::Index => b'i',
        }
    }
}

/// A table as a Relation message announces it: tuples that follow have these columns, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// The source's `pg_class.oid`.
    pub id: RelationId,
    /// Schema and name; the protocol's empty schema, which stands for `pg_catalog`, is already spelled out.
    pub name: QualifiedName,
    /// How old rows are identified.
    pub identity: ReplicaIdentity,
    /// The columns that are sent, in order.
    pub columns: Vec<Column>,
}

/// One column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name, not quoted.
    pub name: String,
    /// Its type's identifier on the source.
    pub type_oid: Oid,
    /// Its `atttypmod`; -1 for none.
    pub type_modifier: i32,
    /// Its type's name where that is none of the builtin ones, as a Type message said before: for a domain, its base
    /// type's.
    pub type_name: Option<QualifiedName>,
    /// Whether it belongs to the replica identity's key.
    pub key: bool,
}
