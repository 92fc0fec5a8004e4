//! What pgoutput says, protocol versions 1 to 4. Manual: "Logical Replication Message Formats".
//!
//! ```text
//! Begin     'B'  Int64 final_lsn  Int64 commit_time  Int32 xid
//! Message   'M'  [Int32 xid]  Byte flags (1: transactional)  Int64 lsn  String prefix  Int32 length  Byte[length] content
//! Commit    'C'  Byte flags (0)  Int64 commit_lsn  Int64 end_lsn  Int64 commit_time
//! Origin    'O'  Int64 lsn  String name
//! Relation  'R'  [Int32 xid]  Int32 id  String schema ("" is pg_catalog)  String name
//!                Byte replica identity (d, n, f or i)  Int16 column count, then for each column:
//!                Byte flags (1: part of the key)  String name  Int32 type  Int32 type modifier (-1: none)
//! Type      'Y'  [Int32 xid]  Int32 oid  String schema ("" is pg_catalog)  String name
//! Insert    'I'  [Int32 xid]  Int32 relation  'N' TupleData
//! Update    'U'  [Int32 xid]  Int32 relation  ['K' TupleData | 'O' TupleData]  'N' TupleData
//! Delete    'D'  [Int32 xid]  Int32 relation  'K' TupleData | 'O' TupleData
//! Truncate  'T'  [Int32 xid]  Int32 relation count  Byte options (1: CASCADE, 2: RESTART IDENTITY)  Int32 relation each
//!
//! from version 2 on, with `streaming`:
//! Stream Start       'S'  Int32 xid  Byte first (1: the transaction's first block)
//! Stream Stop        'E'
//! Stream Commit      'c'  Int32 xid  Byte flags (0)  Int64 commit_lsn  Int64 end_lsn  Int64 commit_time
//! Stream Abort       'A'  Int32 xid  Int32 subxid  [Int64 abort_lsn  Int64 abort_time]
//!
//! from version 3 on, with `two_phase`:
//! Begin Prepare      'b'  Int64 prepare_lsn  Int64 end_lsn  Int64 prepare_time  Int32 xid  String gid
//! Prepare            'P'  Byte flags (0)  Int64 prepare_lsn  Int64 end_lsn  Int64 prepare_time  Int32 xid  String gid
//! Commit Prepared    'K'  Byte flags (0)  Int64 commit_lsn  Int64 end_lsn  Int64 commit_time  Int32 xid  String gid
//! Rollback Prepared  'r'  Byte flags (0)  Int64 prepare_end_lsn  Int64 rollback_end_lsn  Int64 prepare_time
//!                         Int64 rollback_time  Int32 xid  String gid
//! Stream Prepare     'p'  Byte flags (0)  Int64 prepare_lsn  Int64 end_lsn  Int64 prepare_time  Int32 xid  String gid
//! ```
//!
//! Integers are big-endian, strings are UTF-8 and end with a zero byte. Positions are bytes of the source's WAL,
//! `final_lsn` and `commit_lsn` at the commit record's start, `end_lsn` just after it; times are microseconds since
//! 2000-01-01 UTC by the source's clock.
//!
//! Two things in the layout depend on what came before, and are told by a [`Layout`]: `[Int32 xid]` is there between
//! Stream Start and Stream Stop, and names the subtransaction; the last two fields of Stream Abort are there when
//! the connection asked for `streaming 'parallel'` (version 4).
//!
//! What surprises: a Message that is not transactional stands outside Begin and Commit, and may come between two
//! transactions long before the one that wrote it commits. A key tuple (`K`) has as many columns as the relation, those
//! outside the key sent as NULL. Type comes only for types that are not built in; for a domain it has the domain's OID
//! with the base type's name. A server of version 14 sends Begin and Commit of transactions that hold nothing else.
//! Origin has no xid, even where it follows a Stream Start.

mod change;
mod stream;
mod transaction;
mod two_phase;

use byteorder::{BigEndian, ByteOrder as _};
use bytes::{BufMut, Bytes, BytesMut};

use super::{DecodeError, Reader};
use crate::pg::{Relation, Xid};
use crate::proto::writer::put_u32;

pub use change::{Delete, Insert, OldTuple, Truncate, Type, Update};
pub use stream::{AbortPlace, StreamAbort, StreamCommit, StreamStart};
pub use transaction::{Begin, Commit, LogicalMessage, Origin, OriginLsn};
pub use two_phase::{BeginPrepare, CommitPrepared, Prepare, Prepared, RollbackPrepared};

use change::{RELATION_TAG, decode_relation_body, encode_relation_body};
use stream::STREAM_STOP_TAG;

/// One message of pgoutput.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// `B`: a transaction starts.
    Begin(Begin),
    /// `M`: what `pg_logical_emit_message` wrote.
    Message(LogicalMessage),
    /// `C`: the transaction ends.
    Commit(Commit),
    /// `O`: the transaction came to the source from elsewhere.
    Origin(Origin),
    /// `R`: how the tuples of a relation look from here on.
    Relation(Relation),
    /// `Y`: the name of a type that is not built in.
    Type(Type),
    /// `I`: a row is new.
    Insert(Insert),
    /// `U`: a row has changed.
    Update(Update),
    /// `D`: a row is gone.
    Delete(Delete),
    /// `T`: relations are emptied.
    Truncate(Truncate),
    /// `S`: a block of a transaction that has not ended.
    StreamStart(StreamStart),
    /// `E`: the block ends.
    StreamStop,
    /// `c`: a transaction that was streamed in blocks commits.
    StreamCommit(StreamCommit),
    /// `A`: one that was streamed in blocks, or a part of it, is rolled back.
    StreamAbort(StreamAbort),
    /// `b`: a transaction starts that ends with Prepare.
    BeginPrepare(BeginPrepare),
    /// `P`: the transaction is prepared.
    Prepare(Prepare),
    /// `K`: a prepared transaction commits.
    CommitPrepared(CommitPrepared),
    /// `r`: a prepared transaction is rolled back.
    RollbackPrepared(RollbackPrepared),
    /// `p`: a transaction that was streamed in blocks is prepared.
    StreamPrepare(Prepare),
}

/// What a message's layout depends on besides its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layout {
    /// It stands between Stream Start and Stream Stop.
    pub in_block: bool,
    /// The connection asked for `streaming 'parallel'`.
    pub parallel: bool,
}

/// A message of a block, before its rows are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocked {
    /// A change in the transaction, or in this subtransaction of it, or the name of a type: not decoded yet.
    Change(Xid),
    /// Anything else, with its subtransaction where it has one.
    Other(Option<Xid>, Message),
}

impl Layout {
    /// Version 1, and outside of blocks.
    pub const PLAIN: Self = Self { in_block: false, parallel: false };
    /// Between Stream Start and Stream Stop.
    pub const BLOCK: Self = Self { in_block: true, parallel: false };
}

impl Message {
    /// Decodes one message: the payload of one XLogData. Inside a block, what has an xid gives it.
    ///
    /// # Errors
    /// When the bytes are no message of that layout.
    pub fn decode(bytes: Bytes, layout: Layout) -> Result<(Option<Xid>, Self), DecodeError> {
        let mut reader = Reader::new(bytes);
        let tag = reader.u8("message tag")?;
        let xid = match has_xid(tag) && layout.in_block {
            true => Some(Xid::new(reader.u32("xid")?)),
            false => None,
        };
        let (message, what) = match tag {
            Begin::TAG => (Self::Begin(Begin::decode_body(&mut reader)?), "Begin"),
            LogicalMessage::TAG => (Self::Message(LogicalMessage::decode_body(&mut reader)?), "Message"),
            Commit::TAG => (Self::Commit(Commit::decode_body(&mut reader)?), "Commit"),
            Origin::TAG => (Self::Origin(Origin::decode_body(&mut reader)?), "Origin"),
            RELATION_TAG => (Self::Relation(decode_relation_body(&mut reader)?), "Relation"),
            Type::TAG => (Self::Type(Type::decode_body(&mut reader)?), "Type"),
            Insert::TAG => (Self::Insert(Insert::decode_body(&mut reader)?), "Insert"),
            Update::TAG => (Self::Update(Update::decode_body(&mut reader)?), "Update"),
            Delete::TAG => (Self::Delete(Delete::decode_body(&mut reader)?), "Delete"),
            Truncate::TAG => (Self::Truncate(Truncate::decode_body(&mut reader)?), "Truncate"),
            StreamStart::TAG => (Self::StreamStart(StreamStart::decode_body(&mut reader)?), "Stream Start"),
            STREAM_STOP_TAG => (Self::StreamStop, "Stream Stop"),
            StreamCommit::TAG => {
                (Self::StreamCommit(StreamCommit::decode_body(&mut reader)?), "Stream Commit")
            }
            StreamAbort::TAG => {
                (Self::StreamAbort(StreamAbort::decode_body(&mut reader, layout.parallel)?), "Stream Abort")
            }
            BeginPrepare::TAG => {
                (Self::BeginPrepare(BeginPrepare::decode_body(&mut reader)?), "Begin Prepare")
            }
            Prepare::TAG => (Self::Prepare(Prepare::decode_body(&mut reader)?), "Prepare"),
            CommitPrepared::TAG => {
                (Self::CommitPrepared(CommitPrepared::decode_body(&mut reader)?), "Commit Prepared")
            }
            RollbackPrepared::TAG => {
                (Self::RollbackPrepared(RollbackPrepared::decode_body(&mut reader)?), "Rollback Prepared")
            }
            Prepare::STREAM_TAG => {
                (Self::StreamPrepare(Prepare::decode_body(&mut reader)?), "Stream Prepare")
            }
            tag => return Err(DecodeError::Tag { tag, what: "message" }),
        };
        reader.finish(what)?;
        Ok((xid, message))
    }

    /// Tells a change of a block from what else may come there, without decoding the change.
    ///
    /// # Errors
    /// When the bytes are no message of a block. The change itself may still turn out to be none.
    pub fn decode_blocked(bytes: &Bytes) -> Result<Blocked, DecodeError> {
        match bytes.split_first() {
            Some((&(Type::TAG | Insert::TAG | Update::TAG | Delete::TAG | Truncate::TAG), rest)) => {
                let xid = rest.first_chunk::<4>().ok_or(DecodeError::Missing { field: "xid" })?;
                Ok(Blocked::Change(Xid::new(BigEndian::read_u32(xid))))
            }
            _ => {
                Self::decode(bytes.clone(), Layout::BLOCK).map(|(xid, message)| Blocked::Other(xid, message))
            }
        }
    }

    /// Whether a message begins or ends a block, or ends a transaction that came in blocks, by its tag alone.
    pub fn is_of_stream(bytes: &[u8]) -> bool {
        let of_stream = |tag| {
            matches!(
                tag,
                StreamStart::TAG
                    | STREAM_STOP_TAG
                    | StreamCommit::TAG
                    | StreamAbort::TAG
                    | Prepare::STREAM_TAG
            )
        };
        bytes.first().is_some_and(|&tag| of_stream(tag))
    }

    /// Appends the message as the server would send it; with an `xid` where it stands in a block and has one.
    ///
    /// # Panics
    /// If a name holds a zero byte, or there is more of something than its count or length can say.
    pub fn encode(&self, xid: Option<Xid>, out: &mut BytesMut) {
        out.put_u8(self.tag());
        if let Some(xid) = xid.filter(|_| has_xid(self.tag())) {
            put_u32(out, xid.get());
        }
        match self {
            Self::Begin(begin) => begin.encode_body(out),
            Self::Message(message) => message.encode_body(out),
            Self::Commit(commit) => commit.encode_body(out),
            Self::Origin(origin) => origin.encode_body(out),
            Self::Relation(relation) => encode_relation_body(relation, out),
            Self::Type(type_) => type_.encode_body(out),
            Self::Insert(insert) => insert.encode_body(out),
            Self::Update(update) => update.encode_body(out),
            Self::Delete(delete) => delete.encode_body(out),
            Self::Truncate(truncate) => truncate.encode_body(out),
            Self::StreamStart(start) => start.encode_body(out),
            Self::StreamStop => {}
            Self::StreamCommit(commit) => commit.encode_body(out),
            Self::StreamAbort(abort) => abort.encode_body(out),
            Self::BeginPrepare(begin) => begin.encode_body(out),
            Self::Prepare(prepare) | Self::StreamPrepare(prepare) => prepare.encode_body(out),
            Self::CommitPrepared(commit) => commit.encode_body(out),
            Self::RollbackPrepared(rollback) => rollback.encode_body(out),
        }
    }

    /// Whether it has an xid when it stands between Stream Start and Stream Stop.
    pub const fn has_xid(&self) -> bool {
        has_xid(self.tag())
    }

    const fn tag(&self) -> u8 {
        match self {
            Self::Begin(_) => Begin::TAG,
            Self::Message(_) => LogicalMessage::TAG,
            Self::Commit(_) => Commit::TAG,
            Self::Origin(_) => Origin::TAG,
            Self::Relation(_) => RELATION_TAG,
            Self::Type(_) => Type::TAG,
            Self::Insert(_) => Insert::TAG,
            Self::Update(_) => Update::TAG,
            Self::Delete(_) => Delete::TAG,
            Self::Truncate(_) => Truncate::TAG,
            Self::StreamStart(_) => StreamStart::TAG,
            Self::StreamStop => STREAM_STOP_TAG,
            Self::StreamCommit(_) => StreamCommit::TAG,
            Self::StreamAbort(_) => StreamAbort::TAG,
            Self::BeginPrepare(_) => BeginPrepare::TAG,
            Self::Prepare(_) => Prepare::TAG,
            Self::CommitPrepared(_) => CommitPrepared::TAG,
            Self::RollbackPrepared(_) => RollbackPrepared::TAG,
            Self::StreamPrepare(_) => Prepare::STREAM_TAG,
        }
    }
}

const fn has_xid(tag: u8) -> bool {
    matches!(
        tag,
        LogicalMessage::TAG
            | RELATION_TAG
            | Type::TAG
            | Insert::TAG
            | Update::TAG
            | Delete::TAG
            | Truncate::TAG
    )
}

/// Reads flags of which none is defined yet.
fn no_flags(reader: &mut Reader, field: &'static str) -> Result<(), DecodeError> {
    match reader.u8(field)? {
        NO_FLAGS => Ok(()),
        value => Err(DecodeError::Flag { field, value }),
    }
}

const NO_FLAGS: u8 = 0;
