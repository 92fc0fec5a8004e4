//! Transactions in progress, sent in blocks before it is known whether they commit (version 2).

use bytes::{BufMut, BytesMut};

use super::{NO_FLAGS, no_flags};
use crate::pg::{CommitLsn, EndLsn, PgTimestamp, SourceLsn, Xid};
use crate::proto::writer::{put_i64, put_u32, put_u64};
use crate::proto::{DecodeError, Reader};

/// A block of a transaction that has not ended: what follows, up to Stream Stop, belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamStart {
    /// The transaction, not a subtransaction of it.
    pub xid: Xid,
    /// Whether it is the transaction's first block on this connection.
    pub first: bool,
}

/// A transaction that was streamed in blocks commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamCommit {
    /// The transaction.
    pub xid: Xid,
    /// Where the commit record starts.
    pub commit_lsn: CommitLsn,
    /// The position just after it.
    pub end_lsn: EndLsn,
    /// When it committed.
    pub commit_time: PgTimestamp,
}

/// A transaction that was streamed in blocks, or a subtransaction of it, is rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamAbort {
    /// The transaction.
    pub xid: Xid,
    /// What is rolled back: the transaction itself, or one subtransaction; those inside it have a message each.
    pub subxid: Xid,
    /// Where and when, with `streaming 'parallel'` (version 4).
    pub place: Option<AbortPlace>,
}

/// Where and when something was rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AbortPlace {
    /// The abort record's position.
    pub lsn: SourceLsn,
    /// When; the server's zero where the record does not say.
    pub time: PgTimestamp,
}

pub(super) const STREAM_STOP_TAG: u8 = b'E';

impl StreamStart {
    pub(super) const TAG: u8 = b'S';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { xid: Xid::new(reader.u32("StreamStart.xid")?), first: reader.flag("StreamStart.first")? })
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        put_u32(out, self.xid.get());
        out.put_u8(self.first.into());
    }
}

impl StreamCommit {
    pub(super) const TAG: u8 = b'c';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        let xid = Xid::new(reader.u32("StreamCommit.xid")?);
        no_flags(reader, "StreamCommit.flags")?;
        Ok(Self {
            xid,
            commit_lsn: CommitLsn::new(reader.u64("StreamCommit.commit_lsn")?),
            end_lsn: EndLsn::new(reader.u64("StreamCommit.end_lsn")?),
            commit_time: PgTimestamp::from_micros(reader.i64("StreamCommit.commit_time")?),
        })
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        put_u32(out, self.xid.get());
        out.put_u8(NO_FLAGS);
        put_u64(out, self.commit_lsn.get());
        put_u64(out, self.end_lsn.get());
        put_i64(out, self.commit_time.micros());
    }
}

impl StreamAbort {
    pub(super) const TAG: u8 = b'A';

    pub(super) fn decode_body(reader: &mut Reader, with_place: bool) -> Result<Self, DecodeError> {
        let (xid, subxid) = (reader.u32("StreamAbort.xid")?, reader.u32("StreamAbort.subxid")?);
        let place = match with_place {
            true => Some(AbortPlace {
                lsn: SourceLsn::new(reader.u64("StreamAbort.abort_lsn")?),
                time: PgTimestamp::from_micros(reader.i64("StreamAbort.abort_time")?),
            }),
            false => None,
        };
        Ok(Self { xid: Xid::new(xid), subxid: Xid::new(subxid), place })
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        put_u32(out, self.xid.get());
        put_u32(out, self.subxid.get());
        if let Some(place) = self.place {
            put_u64(out, place.lsn.get());
            put_i64(out, place.time.micros());
        }
    }
}
