//! The replication protocol: bytes in, enums out, and back again.
//!
//! | file | what it holds | the manual's section |
//! |---|---|---|
//! | `replication` | frames inside CopyData: XLogData, keepalives, status updates | "Streaming Replication Protocol" |
//! | `pgoutput` | messages inside XLogData, protocol versions 1 to 4 | "Logical Replication Message Formats" |
//! | `tuple` | rows inside messages | the same, "TupleData" |
//! | `reader`, `writer` | the only way in and out of bytes | |
//!
//! Not here: sockets, framing of the frontend protocol, clocks, and any state between messages. Whether a tuple is as
//! wide as its relation, whether a Commit follows its Begin: that is for whoever assembles transactions. What a message's
//! layout depends on is told by a [`Layout`].
//!
//! A decoder takes the whole message or nothing: what is missing, left over, out of range or unknown is a
//! [`DecodeError`], which names the field and never holds data. Nothing panics on any input, and nothing is allocated by
//! a count or a length that the message's own bytes do not back. Values are slices of the buffer that the message came
//! in; a value that is kept long should be copied, since it keeps the whole buffer.

mod error;
mod pgoutput;
mod reader;
mod replication;
mod tuple;
mod writer;

pub use error::DecodeError;
pub use pgoutput::{
    AbortPlace, Begin, BeginPrepare, Blocked, Commit, CommitPrepared, Delete, Insert, Layout, LogicalMessage,
    Message, OldTuple, Origin, OriginLsn, Prepare, Prepared, RollbackPrepared, StreamAbort, StreamCommit,
    StreamStart, Truncate, Type, Update,
};
pub use reader::Reader;
pub use replication::{PrimaryKeepalive, ReplicationFrame, StandbyStatusUpdate, XLogData};
pub use tuple::{Columns, Tuple, TupleValue};
