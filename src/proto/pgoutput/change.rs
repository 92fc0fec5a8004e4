//! What happens to rows, and how the tables look that they belong to.

use bytes::{BufMut, BytesMut};

use crate::limits::{COLUMNS_MAX, TRUNCATE_RELATIONS_MAX};
use crate::pg::{Column, Oid, QualifiedName, Relation, RelationId, ReplicaIdentity};
use crate::proto::writer::{put_c_string, put_count_i16, put_count_i32, put_i32, put_u32};
use crate::proto::{DecodeError, Reader, Tuple};

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

impl Type {
    pub(super) const TAG: u8 = b'Y';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            oid: Oid::new(reader.u32("Type.oid")?),
            name: decode_name(reader, "Type.schema", "Type.name")?,
        })
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        put_u32(out, self.oid.get());
        encode_name(&self.name, out);
    }
}

impl Insert {
    pub(super) const TAG: u8 = b'I';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        let relation = RelationId::new(reader.u32("Insert.relation")?);
        match reader.u8("Insert.new tag")? {
            NEW_TAG => Ok(Self { relation, new: Tuple::decode(reader)? }),
            tag => Err(DecodeError::Tag { tag, what: "Insert.new" }),
        }
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        put_u32(out, self.relation.get());
        out.put_u8(NEW_TAG);
        self.new.encode(out);
    }
}

impl Update {
    pub(super) const TAG: u8 = b'U';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
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

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        put_u32(out, self.relation.get());
        if let Some(old) = &self.old {
            old.encode(out);
        }
        out.put_u8(NEW_TAG);
        self.new.encode(out);
    }
}

impl Delete {
    pub(super) const TAG: u8 = b'D';

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
        let relation = RelationId::new(reader.u32("Delete.relation")?);
        match reader.u8("Delete.old tag")? {
            OldTuple::KEY_TAG => Ok(Self { relation, old: OldTuple::Key(Tuple::decode(reader)?) }),
            OldTuple::FULL_TAG => Ok(Self { relation, old: OldTuple::Full(Tuple::decode(reader)?) }),
            tag => Err(DecodeError::Tag { tag, what: "Delete.old" }),
        }
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        put_u32(out, self.relation.get());
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
    pub(super) const TAG: u8 = b'T';
    const CASCADE: u8 = 1;
    const RESTART_IDENTITY: u8 = 2;

    pub(super) fn decode_body(reader: &mut Reader) -> Result<Self, DecodeError> {
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

    pub(super) fn encode_body(&self, out: &mut BytesMut) {
        let cascade = if self.cascade { Self::CASCADE } else { 0 };
        let restart_identity = if self.restart_identity { Self::RESTART_IDENTITY } else { 0 };
        put_count_i32(out, self.relations.len());
        out.put_u8(cascade | restart_identity);
        for relation in &self.relations {
            put_u32(out, relation.get());
        }
    }
}

pub(super) fn decode_relation_body(reader: &mut Reader) -> Result<Relation, DecodeError> {
    let id = RelationId::new(reader.u32("Relation.id")?);
    let name = decode_name(reader, "Relation.schema", "Relation.name")?;
    let tag = reader.u8("Relation.identity")?;
    let identity =
        ReplicaIdentity::from_byte(tag).ok_or(DecodeError::Tag { tag, what: "Relation.identity" })?;
    let count = reader.count_i16("Relation.column_count", COLUMN_BYTES_MIN, COLUMNS_MAX)?;
    let columns = (0..count).map(|_| decode_column(reader)).collect::<Result<Vec<_>, _>>()?;
    Ok(Relation { id, name, identity, columns })
}

pub(super) fn encode_relation_body(relation: &Relation, out: &mut BytesMut) {
    put_u32(out, relation.id.get());
    encode_name(&relation.name, out);
    out.put_u8(relation.identity.as_byte());
    put_count_i16(out, relation.columns.len());
    for column in &relation.columns {
        out.put_u8(column.key.into());
        put_c_string(out, &column.name);
        put_u32(out, column.type_oid.get());
        put_i32(out, column.type_modifier);
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

pub(super) const RELATION_TAG: u8 = b'R';

/// Before the row as it is now.
const NEW_TAG: u8 = b'N';

/// The schema that the server leaves out.
const EMPTY_SCHEMA: &str = "pg_catalog";

/// The smallest column of a Relation: flags, an empty name, a type and its modifier.
const COLUMN_BYTES_MIN: usize = 1 + 1 + 4 + 4;
