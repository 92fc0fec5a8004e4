//! PostgreSQL's own things as types: positions, identifiers, timestamps, names, relations, and SQL text.
//!
//! Nothing here does I/O, knows a clock or reads the environment: every module above may use it.

mod ids;
mod landmark;
mod lsn;
mod name;
mod plain;
mod relation;
mod sql;
mod time;

pub use ids::{Oid, RelationId, ServerVersion, SlotName, SlotNameError, SystemId, TimelineId, Xid};
pub use landmark::{Landmark, Resume};
pub use lsn::{CommitLsn, EndLsn, LsnError, SourceLsn, TargetLsn};
pub use name::{QualifiedName, QuotedName, shell_word};
pub use plain::{Plain, plain, plain_json, plain_lines, plain_under};
pub use relation::{Column, Relation, ReplicaIdentity};
pub use sql::Sql;
pub use time::PgTimestamp;
