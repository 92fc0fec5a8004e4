//! What CopyData holds while the server streams WAL. Manual: "Streaming Replication Protocol".
//!
//! ```text
//! XLogData            'w'  Int64 wal_start  Int64 wal_end  Int64 sent_at  Byte[] payload (to the end)
//! PrimaryKeepalive    'k'  Int64 wal_end  Int64 sent_at  Byte reply_requested (0 or 1)
//! StandbyStatusUpdate 'r'  Int64 written  Int64 flushed  Int64 applied  Int64 sent_at  Byte reply_requested (0 or 1)
//! ```
//!
//! `w` and `k` come from the server, `r` goes to it. Positions are bytes of the source's WAL; times are microseconds
//! since 2000-01-01 UTC by the sender's clock.
//!
//! A logical walsender fills `w` otherwise than the manual says: `wal_start` and `wal_end` are both the position that
//! decoding had reached, and both are 0/0 for a message that goes ahead of another one (Type, Relation, and Begin where an
//! Origin follows). So neither may be taken for the end of the server's WAL, nor for progress.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::writer::{put_i64, put_u64};
use super::{DecodeError, Reader};
use crate::pg::{PgTimestamp, SourceLsn};

/// A frame that the server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicationFrame {
    /// `w`: a piece of the stream.
    XLogData(XLogData),
    /// `k`: a sign of life, and perhaps a question for one.
    PrimaryKeepalive(PrimaryKeepalive),
}

/// A piece of the stream: for pgoutput, exactly one message.
#[derive(Clone, PartialEq, Eq)]
pub struct XLogData {
    /// Position of the decoded change; 0/0 for what goes ahead of another message.
    pub wal_start: SourceLsn,
    /// The same as `wal_start` in logical replication.
    pub wal_end: SourceLsn,
    /// When the server sent it.
    pub sent_at: PgTimestamp,
    /// The output plugin's message.
    pub payload: Bytes,
}

/// The server's sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrimaryKeepalive {
    /// How far this walsender has read the WAL: transactions whose commit record ends before it have been sent.
    pub wal_end: SourceLsn,
    /// When the server sent it.
    pub sent_at: PgTimestamp,
    /// Whether the server wants a status update at once, lest it end the connection.
    pub reply_requested: bool,
}

/// The client's account of how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyStatusUpdate {
    /// The position just after the last byte received.
    pub written: SourceLsn,
    /// The position just after the last byte that is safe: the slot's `confirmed_flush_lsn` moves here.
    pub flushed: SourceLsn,
    /// The position just after the last byte that is visible on the target.
    pub applied: SourceLsn,
    /// When the client sent it.
    pub sent_at: PgTimestamp,
    /// Whether the client wants a keepalive at once.
    pub reply_requested: bool,
}

impl ReplicationFrame {
    /// Decodes what one CopyData message holds.
    ///
    /// # Errors
    /// When the bytes are no such frame.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        match reader.u8("replication frame tag")? {
            XLogData::TAG => Ok(Self::XLogData(XLogData::decode_body(&mut reader)?)),
            PrimaryKeepalive::TAG => {
                let keepalive = PrimaryKeepalive::decode_body(&mut reader)?;
                reader.finish("PrimaryKeepalive")?;
                Ok(Self::PrimaryKeepalive(keepalive))
            }
            tag => Err(DecodeError::Tag { tag, what: "replication frame" }),
        }
    }

    /// Appends the frame as the server would send it.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::XLogData(data) => data.encode(out),
            Self::PrimaryKeepalive(keepalive) => keepalive.encode(out),
        }
    }
}

impl XLogData {
    const TAG: u8 = b'w';

    fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            wal_start: SourceLsn::new(reader.u64("XLogData.wal_start")?),
            wal_end: SourceLsn::new(reader.u64("XLogData.wal_end")?),
            sent_at: PgTimestamp::from_micros(reader.i64("XLogData.sent_at")?),
            payload: reader.remainder(),
        })
    }

    /// Appends the frame as the server would send it.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(Self::TAG);
        put_u64(out, self.wal_start.get());
        put_u64(out, self.wal_end.get());
        put_i64(out, self.sent_at.micros());
        out.put_slice(&self.payload);
    }
}

/// Without the payload, which holds rows.
impl fmt::Debug for XLogData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XLogData")
            .field("wal_start", &self.wal_start)
            .field("wal_end", &self.wal_end)
            .field("sent_at", &self.sent_at)
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

impl PrimaryKeepalive {
    const TAG: u8 = b'k';

    fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            wal_end: SourceLsn::new(reader.u64("PrimaryKeepalive.wal_end")?),
            sent_at: PgTimestamp::from_micros(reader.i64("PrimaryKeepalive.sent_at")?),
            reply_requested: reader.flag("PrimaryKeepalive.reply_requested")?,
        })
    }

    /// Appends the frame as the server would send it.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(Self::TAG);
        put_u64(out, self.wal_end.get());
        put_i64(out, self.sent_at.micros());
        out.put_u8(self.reply_requested.into());
    }
}

impl StandbyStatusUpdate {
    const TAG: u8 = b'r';

    /// Decodes the frame, as the server would.
    ///
    /// # Errors
    /// When the bytes are no such frame.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        match reader.u8("StandbyStatusUpdate tag")? {
            Self::TAG => {}
            tag => return Err(DecodeError::Tag { tag, what: "StandbyStatusUpdate" }),
        }
        let update = Self {
            written: SourceLsn::new(reader.u64("StandbyStatusUpdate.written")?),
            flushed: SourceLsn::new(reader.u64("StandbyStatusUpdate.flushed")?),
            applied: SourceLsn::new(reader.u64("StandbyStatusUpdate.applied")?),
            sent_at: PgTimestamp::from_micros(reader.i64("StandbyStatusUpdate.sent_at")?),
            reply_requested: reader.flag("StandbyStatusUpdate.reply_requested")?,
        };
        reader.finish("StandbyStatusUpdate")?;
        Ok(update)
    }

    /// Appends the frame: what one CopyData message is to hold.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(Self::TAG);
        put_u64(out, self.written.get());
        put_u64(out, self.flushed.get());
        put_u64(out, self.applied.get());
        put_i64(out, self.sent_at.micros());
        out.put_u8(self.reply_requested.into());
    }
}
