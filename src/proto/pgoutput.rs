//! What pgoutput says, protocol version 1. Manual: "Logical Replication Message Formats".
//!
//! ```text
//! Begin     'B'  Int64 final_lsn  Int64 commit_time  Int32 xid
//! Message   'M'  Byte flags (1: transactional)  Int64 lsn  String prefix  Int32 length  Byte[length] content
//! Commit    'C'  Byte flags (0)  Int64 commit_lsn  Int64 end_lsn  Int64 commit_time
//! Origin    'O'  Int64 lsn  String name
//! Relation  'R'  Int32 id  String schema ("" is pg_catalog)  String name  Byte replica identity (d, n, f or i)
//!                Int16 column count, then for each column:
//!                Byte flags (1: part of the key)  String name  Int32 type  Int32 type modifier (-1: none)
//! Type      'Y'  Int32 oid  String schema ("" is pg_catalog)  String name
//! Insert    'I'  Int32 relation  'N' TupleData
//! Update    'U'  Int32 relation  ['K' TupleData | 'O' TupleData]  'N' TupleData
//! Delete    'D'  Int32 relation  'K' TupleData | 'O' TupleData
//! Truncate  'T'  Int32 relation count  Byte options (1: CASCADE, 2: RESTART IDENTITY)  Int32 relation each
//! ```
//!
//! Integers are big-endian, strings are UTF-8 and end with a zero byte. Positions are bytes of the source's WAL,
//! `final_lsn` and `commit_lsn` at the commit record's start, `end_lsn` just after it; times are microseconds since
//! 2000-01-01 UTC by the source's clock.
//!
//! What surprises: a Message that is not transactional stands outside Begin and Commit, and may come between two
//! transactions long before the one that wrote it commits. A key tuple (`K`) has as many columns as the relation, those
//! outside the key sent as NULL. Type comes only for types that are not built in; for a domain it has the domain's OID
//! with the base type's name. A server of version 14 sends Begin and Commit of transactions that hold nothing else.
//!
//! Versions 2 to 4 put an Int32 xid between tag and body of what stands in a streamed block, and add tags: bodies are
//! decoded apart from tags for their sake.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::writer::{put_c_string, put_count_i16, put_count_i32, put_counted};
use super::{DecodeError, Reader, Tuple};
use crate::limits::{COLUMNS_MAX, TRUNCATE_RELATIONS_MAX};
use crate::pg::{
    Column, CommitLsn, EndLsn, Oid, PgTimestamp, QualifiedName, Relation, RelationId, ReplicaIdentity,
    SourceLsn, Xid,
};

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
}

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

/// The name of a type that is not built in, sent before the Relation that uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type {
    /// The source's `pg_type.oid`.
    pub oid: Oid,
    /// Schema and name; for a domain, its base type's.
    pub name: QualifiedName,
}

/// A row is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Insert {
    /// Its relation.
    pub relation: RelationId,
    /// The row.
    pub new: Tuple,
}

/// A row has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Its relation.
    pub relation: RelationId,
    /// How the row was before; none where its key is as before, unless the replica identity is FULL.
    pub old: Option<OldTuple>,
    /// How it is now.
    pub new: Tuple,
}

/// A row is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    /// Its relation.
    pub relation: RelationId,
    /// How it was.
    pub old: OldTuple,
}

/// A row before its change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldTuple {
    /// `K`: the replica identity's columns; all others are NULL here, whatever they were.
    Key(Tuple),
    /// `O`: the whole row.
    Full(Tuple),
}

/// Relations are emptied, all at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    /// Those of the publication; the order is the server's.
    pub relations: Vec<RelationId>,
    /// Whether the command said CASCADE.
    pub cascade: bool,
    /// Whether the command said RESTART IDENTITY.
    pub restart_identity: bool,
}

impl Message {
    /// Decodes one message: the payload of one XLogData.
    ///
    /// # Errors
    /// When the bytes are no message of protocol version 1.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let (message, what) = match reader.u8("message tag")? {
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
            tag => return Err(DecodeError::Tag { tag, what: "message" }),
        };
        reader.finish(what)?;
        Ok(message)
    }

    /// Appends the message as the server would send it.
    ///
    /// # Panics
    /// If a name holds a zero byte, or there is more of something than its count or length can say.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Begin(begin) => {
                out.put_u8(Begin::TAG);
                begin.encode_body(out);
            }
            Self::Message(message) => {
                out.put_u8(LogicalMessage::TAG);
                message.encode_body(out);
            }
            Self::Commit(commit) => {
                out.put_u8(Commit::TAG);
                commit.encode_body(out);
            }
            Self::Origin(origin) => {
                out.put_u8(Origin::TAG);
                origin.encode_body(out);
            }
            Self::Relation(relation) => {
                out.put_u8(RELATION_TAG);
                encode_relation_body(relation, out);
            }
            Self::Type(type_) => {
                out.put_u8(Type::TAG);
                type_.encode_body(out);
            }
            Self::Insert(insert) => {
                out.put_u8(Insert::TAG);
                insert.encode_body(out);
            }
            Self::Update(update) => {
                out.put_u8(Update::TAG);
                update.encode_body(out);
            }
            Self::Delete(delete) => {
                out.put_u8(Delete::TAG);
                delete.encode_body(out);
            }
            Self::Truncate(truncate) => {
                out.put_u8(Truncate::TAG);
                truncate.encode_body(out);
            }
        }
    }
}

impl Begin {
    const TAG: u8 = b'B';

    fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            final_lsn: CommitLsn::new(reader.u64("Begin.final_lsn")?),
            commit_time: PgTimestamp::from_micros(reader.i64("Begin.commit_time")?),
            xid: Xid::new(reader.u32("Begin.xid")?),
        })
    }

    fn encode_body(&self, out: &mut BytesMut) {
        out.put_u64(self.final_lsn.get());
        out.put_i64(self.commit_time.micros());
        out.put_u32(self.xid.get());
    }
}

impl LogicalMessage {
    const TAG: u8 = b'M';

    fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            transactional: reader.flag("Message.flags")?,
            lsn: SourceLsn::new(reader.u64("Message.lsn")?),
            prefix: reader.c_string("Message.prefix")?,
            content: reader.bytes_counted("Message.content")?,
        })
    }

    fn encode_body(&self, out: &mut BytesMut) {
        out.put_u8(self.transactional.into());
        out.put_u64(self.lsn.get());
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
    const TAG: u8 = b'C';
    const FLAGS: u8 = 0;

    fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        let field = "Commit.flags";
        match reader.u8(field)? {
            Self::FLAGS => {}
            value => return Err(DecodeError::Flag { field, value }),
        }
        Ok(Self {
            commit_lsn: CommitLsn::new(reader.u64("Commit.commit_lsn")?),
            end_lsn: EndLsn::new(reader.u64("Commit.end_lsn")?),
            commit_time: PgTimestamp::from_micros(reader.i64("Commit.commit_time")?),
        })
    }

    fn encode_body(&self, out: &mut BytesMut) {
        out.put_u8(Self::FLAGS);
        out.put_u64(self.commit_lsn.get());
        out.put_u64(self.end_lsn.get());
        out.put_i64(self.commit_time.micros());
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
    const TAG: u8 = b'O';

    fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { lsn: OriginLsn::new(reader.u64("Origin.lsn")?), name: reader.c_string("Origin.name")? })
    }

    fn encode_body(&self, out: &mut BytesMut) {
        out.put_u64(self.lsn.get());
        put_c_string(out, &self.name);
    }
}

impl Type {
    const TAG: u8 = b'Y';

    fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            oid: Oid::new(reader.u32("Type.oid")?),
            name: decode_name(reader, "Type.schema", "Type.name")?,
        })
    }

    fn encode_body(&self, out: &mut BytesMut) {
        out.put_u32(self.oid.get());
        encode_name(&self.name, out);
    }
}

impl Insert {
    const TAG: u8 = b'I';

    fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        let relation = RelationId::new(reader.u32("Insert.relation")?);
        match reader.u8("Insert.new tag")? {
            NEW_TAG => Ok(Self { relation, new: Tuple::decode(reader)? }),
            tag => Err(DecodeError::Tag { tag, what: "Insert.new" }),
        }
    }

    fn encode_body(&self, out: &mut BytesMut) {
        out.put_u32(self.relation.get());
        out.put_u8(NEW_TAG);
        self.new.encode(out);
    }
}

impl Update {
    const TAG: u8 = b'U';

    fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        let relation = RelationId::new(reader.u32("Update.relation")?);
        let (old, tag) = match reader.u8("Update.old or new tag")? {
            OldTuple::KEY_TAG => (Some(OldTuple::Key(Tuple::decode(reader)?)), reader.u8("Update.new tag")?),
            OldTuple::FULL_TAG => {
                (Some(OldTuple::Full(Tuple::decode(reader)?)), reader.u8("Update.new tag")?)
            }
            tag => (None, tag),
        };
        match tag {
            NEW_TAG => Ok(Self { relation, old, new: Tuple::decode(reader)? }),
            tag => Err(DecodeError::Tag { tag, what: "Update.new" }),
        }
    }

    fn encode_body(&self, out: &mut BytesMut) {
        out.put_u32(self.relation.get());
        if let Some(old) = &self.old {
            old.encode(out);
        }
        out.put_u8(NEW_TAG);
        self.new.encode(out);
    }
}

impl Delete {
    const TAG: u8 = b'D';

    fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        let relation = RelationId::new(reader.u32("Delete.relation")?);
        match reader.u8("Delete.old tag")? {
            OldTuple::KEY_TAG => Ok(Self { relation, old: OldTuple::Key(Tuple::decode(reader)?) }),
            OldTuple::FULL_TAG => Ok(Self { relation, old: OldTuple::Full(Tuple::decode(reader)?) }),
            tag => Err(DecodeError::Tag { tag, what: "Delete.old" }),
        }
    }

    fn encode_body(&self, out: &mut BytesMut) {
        out.put_u32(self.relation.get());
        self.old.encode(out);
    }
}

impl OldTuple {
    const KEY_TAG: u8 = b'K';
    const FULL_TAG: u8 = b'O';

    /// The columns that there are.
    pub const fn tuple(&self) -> &Tuple {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => tuple,
        }
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(match self {
            Self::Key(_) => Self::KEY_TAG,
            Self::Full(_) => Self::FULL_TAG,
        });
        self.tuple().encode(out);
    }
}

impl Truncate {
    const TAG: u8 = b'T';
    const CASCADE: u8 = 1;
    const RESTART_IDENTITY: u8 = 2;

    fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        // The options stand between the count and what it counts, so one byte less than what remains is at hand; the
        // reads below find that out.
        let count = reader.count_i32("Truncate.relation_count", size_of::<u32>(), TRUNCATE_RELATIONS_MAX)?;
        let field = "Truncate.options";
        let options = reader.u8(field)?;
        if options & !(Self::CASCADE | Self::RESTART_IDENTITY) != 0 {
            return Err(DecodeError::Flag { field, value: options });
        }
        let relations = (0..count)
            .map(|_| reader.u32("Truncate.relation").map(RelationId::new))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            relations,
            cascade: options & Self::CASCADE != 0,
            restart_identity: options & Self::RESTART_IDENTITY != 0,
        })
    }

    fn encode_body(&self, out: &mut BytesMut) {
        let cascade = if self.cascade { Self::CASCADE } else { 0 };
        let restart_identity = if self.restart_identity { Self::RESTART_IDENTITY } else { 0 };
        put_count_i32(out, self.relations.len());
        out.put_u8(cascade | restart_identity);
        for relation in &self.relations {
            out.put_u32(relation.get());
        }
    }
}

fn decode_relation_body(reader: &mut Reader) -> Result<Relation, DecodeError> {
    let id = RelationId::new(reader.u32("Relation.id")?);
    let name = decode_name(reader, "Relation.schema", "Relation.name")?;
    let tag = reader.u8("Relation.identity")?;
    let identity =
        ReplicaIdentity::from_byte(tag).ok_or(DecodeError::Tag { tag, what: "Relation.identity" })?;
    let count = reader.count_i16("Relation.column_count", COLUMN_BYTES_MIN, COLUMNS_MAX)?;
    let columns = (0..count).map(|_| decode_column(reader)).collect::<Result<Vec<_>, _>>()?;
    Ok(Relation { id, name, identity, columns })
}

fn encode_relation_body(relation: &Relation, out: &mut BytesMut) {
    out.put_u32(relation.id.get());
    encode_name(&relation.name, out);
    out.put_u8(relation.identity.as_byte());
    put_count_i16(out, relation.columns.len());
    for column in &relation.columns {
        out.put_u8(column.key.into());
        put_c_string(out, &column.name);
        out.put_u32(column.type_oid.get());
        out.put_i32(column.type_modifier);
    }
}

fn decode_column(reader: &mut Reader) -> Result<Column, DecodeError> {
    Ok(Column {
        key: reader.flag("Relation.column.flags")?,
        name: reader.c_string("Relation.column.name")?,
        type_oid: Oid::new(reader.u32("Relation.column.type_oid")?),
        type_modifier: reader.i32("Relation.column.type_modifier")?,
        type_name: None,
    })
}

fn decode_name(
    reader: &mut Reader,
    schema_field: &'static str,
    name_field: &'static str,
) -> Result<QualifiedName, DecodeError> {
    let mut schema = reader.c_string(schema_field)?;
    if schema.is_empty() {
        schema.push_str(EMPTY_SCHEMA);
    }
    Ok(QualifiedName { schema, name: reader.c_string(name_field)? })
}

fn encode_name(name: &QualifiedName, out: &mut BytesMut) {
    put_c_string(out, if name.schema == EMPTY_SCHEMA { "" } else { &name.schema });
    put_c_string(out, &name.name);
}

const RELATION_TAG: u8 = b'R';

/// Before the row as it is now.
const NEW_TAG: u8 = b'N';

/// The schema that the server leaves out.
const EMPTY_SCHEMA: &str = "pg_catalog";

/// The smallest column of a Relation: flags, an empty name, a type and its modifier.
const COLUMN_BYTES_MIN: usize = 1 + 1 + 4 + 4;
