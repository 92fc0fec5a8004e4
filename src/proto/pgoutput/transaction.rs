//! What stands around changes: where a transaction begins, where it ends, where it came from, and what an
//! application wrote beside its rows.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::{NO_FLAGS, no_flags};
use crate::pg::{CommitLsn, EndLsn, PgTimestamp, SourceLsn, Xid};
use crate::proto::writer::{put_c_string, put_counted, put_i64, put_u32, put_u64};
use crate::proto::{DecodeError, Reader};

/// A transaction starts. Transactions come whole, in commit order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Where the transaction's commit record starts.
    pub final_lsn: CommitLsn,
    /// When it committed.
    pub commit_time: PgTimestamp,
    /// Its identifier.
    pub xid: Xid,
}

/// What `pg_logical_emit_message` wrote.
#[derive(Clone, PartialEq, Eq)]
pub struct LogicalMessage {
    /// Whether it belongs to the transaction around it.
    pub transactional: bool,
    /// The position that `pg_logical_emit_message` gave back: just after its record.
    pub lsn: SourceLsn,
    /// Who it is for.
    pub prefix: String,
    /// What it says: any bytes, not converted to `client_encoding`.
    pub content: Bytes,
}

/// The transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Where the commit record starts.
    pub commit_lsn: CommitLsn,
    /// The position just after it.
    pub end_lsn: EndLsn,
    /// When it committed.
    pub commit_time: PgTimestamp,
}

/// A position in the WAL of the server that a transaction first came from: neither the source's nor the target's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OriginLsn(u64);

/// The transaction came to the source from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The commit's position over there.
    pub lsn: OriginLsn,
    /// The replication origin's name.
    pub name: String,
}

impl Begin {
    pub(super) const TAG: u8 = b'B';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            final_lsn: CommitLsn::new(reader.u64("Begin.final_lsn")?),
            commit_time: PgTimestamp::from_micros(reader.i64("Begin.commit_time")?),
            xid: Xid::new(reader.u32("Begin.xid")?),
        })
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        put_u64(out, self.final_lsn.get());
        put_i64(out, self.commit_time.micros());
        put_u32(out, self.xid.get());
    }
}

impl LogicalMessage {
    pub(super) const TAG: u8 = b'M';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            transactional: reader.flag("Message.flags")?,
            lsn: SourceLsn::new(reader.u64("Message.lsn")?),
            prefix: reader.c_string("Message.prefix")?,
            content: reader.bytes_counted("Message.content")?,
        })
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        out.put_u8(self.transactional.into());
        put_u64(out, self.lsn.get());
        put_c_string(out, &self.prefix);
        put_counted(out, &self.content);
    }
}

/// Without the content, which may be anything.
impl fmt::Debug for LogicalMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogicalMessage")
            .field("transactional", &self.transactional)
            .field("lsn", &self.lsn)
            .field("prefix", &self.prefix)
            .field("content_bytes", &self.content.len())
            .finish()
    }
}

impl Commit {
    pub(super) const TAG: u8 = b'C';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        no_flags(reader, "Commit.flags")?;
        Ok(Self {
            commit_lsn: CommitLsn::new(reader.u64("Commit.commit_lsn")?),
            end_lsn: EndLsn::new(reader.u64("Commit.end_lsn")?),
            commit_time: PgTimestamp::from_micros(reader.i64("Commit.commit_time")?),
        })
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        out.put_u8(NO_FLAGS);
        put_u64(out, self.commit_lsn.get());
        put_u64(out, self.end_lsn.get());
        put_i64(out, self.commit_time.micros());
    }
}

impl OriginLsn {
    /// The position `bytes` bytes after the start of the origin's WAL.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes since the start of the origin's WAL.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl Origin {
    pub(super) const TAG: u8 = b'O';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { lsn: OriginLsn::new(reader.u64("Origin.lsn")?), name: reader.c_string("Origin.name")? })
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        put_u64(out, self.lsn.get());
        put_c_string(out, &self.name);
    }
}
