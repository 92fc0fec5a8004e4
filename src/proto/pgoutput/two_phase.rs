//! Transactions that are prepared first and committed or rolled back later (version 3).

use bytes::{BufMut, BytesMut};

use super::{NO_FLAGS, no_flags};
use crate::pg::{CommitLsn, EndLsn, PgTimestamp, SourceLsn, Xid};
use crate::proto::writer::{put_c_string, put_i64, put_u32, put_u64};
use crate::proto::{DecodeError, Reader};

/// Which prepared transaction is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Its identifier.
    pub xid: Xid,
    /// The name that PREPARE TRANSACTION gave it.
    pub gid: String,
}

/// A transaction starts that ends with Prepare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeginPrepare {
    /// Where the prepare record starts.
    pub prepare_lsn: SourceLsn,
    /// The position just after it.
    pub end_lsn: EndLsn,
    /// When it was prepared.
    pub prepare_time: PgTimestamp,
    /// The transaction.
    pub prepared: Prepared,
}

/// A transaction is prepared: the end of what Begin Prepare began, or of what was streamed in blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepare {
    /// Where the prepare record starts.
    pub prepare_lsn: SourceLsn,
    /// The position just after it.
    pub end_lsn: EndLsn,
    /// When it was prepared.
    pub prepare_time: PgTimestamp,
    /// The transaction.
    pub prepared: Prepared,
}

/// A prepared transaction commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitPrepared {
    /// Where the commit record starts.
    pub commit_lsn: CommitLsn,
    /// The position just after it.
    pub end_lsn: EndLsn,
    /// When it committed.
    pub commit_time: PgTimestamp,
    /// The transaction.
    pub prepared: Prepared,
}

/// A prepared transaction is rolled back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollbackPrepared {
    /// The position just after the prepare record.
    pub prepare_end_lsn: EndLsn,
    /// The position just after the rollback's record.
    pub rollback_end_lsn: EndLsn,
    /// When it was prepared.
    pub prepare_time: PgTimestamp,
    /// When it was rolled back.
    pub rollback_time: PgTimestamp,
    /// The transaction.
    pub prepared: Prepared,
}

impl Prepared {
    fn decode(
        reader: &mut Reader,
        xid_field: &'static str,
        gid_field: &'static str,
    ) -> Result<Self, DecodeError> {
        Ok(Self { xid: Xid::new(reader.u32(xid_field)?), gid: reader.c_string(gid_field)? })
    }

    fn encode(&self, out: &mut BytesMut) {
        put_u32(out, self.xid.get());
        put_c_string(out, &self.gid);
    }
}

impl BeginPrepare {
    pub(super) const TAG: u8 = b'b';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            prepare_lsn: SourceLsn::new(reader.u64("BeginPrepare.prepare_lsn")?),
            end_lsn: EndLsn::new(reader.u64("BeginPrepare.end_lsn")?),
            prepare_time: PgTimestamp::from_micros(reader.i64("BeginPrepare.prepare_time")?),
            prepared: Prepared::decode(reader, "BeginPrepare.xid", "BeginPrepare.gid")?,
        })
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        put_u64(out, self.prepare_lsn.get());
        put_u64(out, self.end_lsn.get());
        put_i64(out, self.prepare_time.micros());
        self.prepared.encode(out);
    }
}

impl Prepare {
    pub(super) const TAG: u8 = b'P';
    /// As Stream Prepare.
    pub(super) const STREAM_TAG: u8 = b'p';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        no_flags(reader, "Prepare.flags")?;
        Ok(Self {
            prepare_lsn: SourceLsn::new(reader.u64("Prepare.prepare_lsn")?),
            end_lsn: EndLsn::new(reader.u64("Prepare.end_lsn")?),
            prepare_time: PgTimestamp::from_micros(reader.i64("Prepare.prepare_time")?),
            prepared: Prepared::decode(reader, "Prepare.xid", "Prepare.gid")?,
        })
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        out.put_u8(NO_FLAGS);
        put_u64(out, self.prepare_lsn.get());
        put_u64(out, self.end_lsn.get());
        put_i64(out, self.prepare_time.micros());
        self.prepared.encode(out);
    }
}

impl CommitPrepared {
    pub(super) const TAG: u8 = b'K';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        no_flags(reader, "CommitPrepared.flags")?;
        Ok(Self {
            commit_lsn: CommitLsn::new(reader.u64("CommitPrepared.commit_lsn")?),
            end_lsn: EndLsn::new(reader.u64("CommitPrepared.end_lsn")?),
            commit_time: PgTimestamp::from_micros(reader.i64("CommitPrepared.commit_time")?),
            prepared: Prepared::decode(reader, "CommitPrepared.xid", "CommitPrepared.gid")?,
        })
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        out.put_u8(NO_FLAGS);
        put_u64(out, self.commit_lsn.get());
        put_u64(out, self.end_lsn.get());
        put_i64(out, self.commit_time.micros());
        self.prepared.encode(out);
    }
}

impl RollbackPrepared {
    pub(super) const TAG: u8 = b'r';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        no_flags(reader, "RollbackPrepared.flags")?;
        Ok(Self {
            prepare_end_lsn: EndLsn::new(reader.u64("RollbackPrepared.prepare_end_lsn")?),
            rollback_end_lsn: EndLsn::new(reader.u64("RollbackPrepared.rollback_end_lsn")?),
            prepare_time: PgTimestamp::from_micros(reader.i64("RollbackPrepared.prepare_time")?),
            rollback_time: PgTimestamp::from_micros(reader.i64("RollbackPrepared.rollback_time")?),
            prepared: Prepared::decode(reader, "RollbackPrepared.xid", "RollbackPrepared.gid")?,
        })
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        out.put_u8(NO_FLAGS);
        put_u64(out, self.prepare_end_lsn.get());
        put_u64(out, self.rollback_end_lsn.get());
        put_i64(out, self.prepare_time.micros());
        put_i64(out, self.rollback_time.micros());
        self.prepared.encode(out);
    }
}
