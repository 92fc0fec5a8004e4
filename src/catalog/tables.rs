//! User tables, their columns, and what identifies their rows.

use std::collections::{HashMap, HashSet};

use super::extensions::{self, ExtensionTable};
use super::{Error, SideClient, SourceClient, ask, dialect};
use crate::pg::{Oid, QualifiedName, ReplicaIdentity, Sql};
use crate::source::Dialect;

/// A table of a user: neither of the system, nor Walferry's own, nor temporary; of an extension's, those alone that it has
/// for its users' rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// `pg_class.oid`.
    pub oid: Oid,
    /// Schema and name.
    pub name: QualifiedName,
    /// Whether rows are in it or in its partitions.
    pub kind: TableKind,
    /// The topmost table that this is a partition of, at any depth.
    pub partition_of: Option<QualifiedName>,
    /// The tables that it inherits from directly, partitioning aside.
    pub inherits: Vec<QualifiedName>,
    /// What it inherits from directly, or is a partition of: `pg_class.oid`, in order.
    pub parents: Vec<Oid>,
    /// A partition's bounds as SQL: `FOR VALUES …`, `DEFAULT`.
    pub bounds: Option<String>,
    /// Whether others inherit from it, partitioning aside: then `ONLY` makes a difference.
    pub inherited: bool,
    /// Whether its changes are in the WAL.
    pub persistence: Persistence,
    /// `REPLICA IDENTITY`.
    pub replica_identity: ReplicaIdentity,
    /// The columns that identify a row of an UPDATE or DELETE, in the index's order. Empty: nothing does, and a
    /// publication of updates would make the server reject them. A DEFERRABLE primary key counts as nothing; with
    /// FULL it is every column but generated ones.
    ///
    /// Nothing, too, where the identity has a generated column, which is not published: 18 rejects the UPDATE, and so it
    /// does with FULL as soon as the table has one; older servers send what is left of the key, which may mean several
    /// rows or none.
    pub identity_columns: Vec<String>,
    /// Has a primary key, but a DEFERRABLE one.
    pub deferrable_primary_key: bool,
    /// Nothing identifies its rows since its identity has a generated column.
    pub generated_identity: bool,
    /// Whether REPLICA IDENTITY FULL would give it an identity, for the time being: what it has now can be put back.
    pub takes_full: bool,
    /// An index that `REPLICA IDENTITY USING INDEX` would take; the primary key first.
    pub identity_index: Option<String>,
    /// Columns in order, without dropped ones.
    pub columns: Vec<TableColumn>,
    /// Its file: another one after the table was rewritten or emptied. Zero for a partitioned table.
    pub filenode: u32,
    /// Columns that it ever had, dropped ones included.
    pub attributes: i16,
    /// Pages of the main fork, as the storage has them now.
    pub pages: u64,
    /// `reltuples`; -1 for unknown.
    pub row_estimate: f64,
    /// Bytes of the table and its TOAST, without indexes.
    pub bytes: u64,
    /// The owner's name.
    pub owner: String,
    /// Whether the current user is the owner or has its privileges: a publication needs that.
    pub owned_by_me: bool,
    /// Whether the current user may read it.
    pub readable: bool,
    /// Row-level security is enabled.
    pub has_rls: bool,
    /// Row-level security is enabled and applies to the current user.
    pub rls_applies: bool,
    /// Has a trigger that is enabled, a foreign key's included (on either side of it).
    pub has_triggers: bool,
    /// An extension made it, for rows of its users.
    pub extension: Option<ExtensionTable>,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableColumn {
    /// `attnum`: 1 and more, with gaps where columns were dropped.
    pub number: i16,
    /// Its name, not quoted.
    pub name: String,
    /// Its type's identifier on this server.
    pub type_oid: Oid,
    /// Its type's schema.
    pub type_schema: String,
    /// The bare type as SQL, schema-qualified outside `pg_catalog`, safe to cast to: no length is meant, so `bpchar`
    /// and `"bit"`, which without quotes would be `bit(1)`.
    pub type_name: String,
    /// `atttypmod`; -1 for none.
    pub type_modifier: i32,
    /// NOT NULL.
    pub not_null: bool,
    /// Has a default of its own (a generated column's expression counts).
    pub has_default: bool,
    /// Of a domain, at whatever depth: the type below it and its modifier.
    pub base: Option<(QualifiedName, i32)>,
    /// The type's own name, without its schema; [`TableColumn::type_name`] is SQL.
    pub type_own_name: String,
    /// The type has an array type, whose literals have commas between elements, and `unnest` gives it as it is: a row type's
    /// fields it gives one by one, which the casts of that type's owner would put together.
    pub in_arrays: bool,
    /// It is an array type itself, and no domain; its elements are of one of the server's own types.
    pub is_built_in_array: bool,
    /// GENERATED ALWAYS AS (expression).
    pub generated: Generated,
    /// GENERATED … AS IDENTITY.
    pub identity: Identity,
    /// `xmin` of its row in `pg_attribute`: another one after ALTER COLUMN.
    pub version: u32,
}

/// Where a table's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// `r`: in the table.
    Plain,
    /// `p`: in its partitions.
    Partitioned,
}

/// Whether a table's changes are in the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Persistence {
    /// `p`: they are.
    Permanent,
    /// `u`: they are not.
    Unlogged,
}

/// Whether and where a column's value is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Generated {
    /// An ordinary column.
    No,
    /// Computed when written (12).
    Stored,
    /// Computed when read (18).
    Virtual,
}

impl Generated {
    /// `pg_attribute.attgenerated`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "",
            Self::Stored => "s",
            Self::Virtual => "v",
        }
    }
}

impl Identity {
    /// `pg_attribute.attidentity`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "",
            Self::Always => "a",
            Self::ByDefault => "d",
        }
    }
}

/// Whether a column is an identity column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Identity {
    /// An ordinary column.
    No,
    /// GENERATED ALWAYS: an INSERT needs OVERRIDING SYSTEM VALUE, and an UPDATE cannot set it.
    Always,
    /// GENERATED BY DEFAULT.
    ByDefault,
}

impl Table {
    /// Whether rows are in the table itself: it is not partitioned.
    pub fn is_leaf(&self) -> bool {
        self.kind == TableKind::Plain
    }

    /// Whether an UPDATE or DELETE can be published.
    pub fn has_identity(&self) -> bool {
        !self.identity_columns.is_empty()
    }

    /// Whether it is an extension's, and the current user does not see all of its rows.
    pub fn is_hidden(&self) -> bool {
        self.extension.is_some() && (!self.readable || self.rls_applies)
    }

    /// Whether its changes are followed: they are in the WAL, and of an extension's table we want and may publish all.
    pub fn is_followed(&self) -> bool {
        let whole = |of: &ExtensionTable| {
            of.condition.is_empty() && !of.acts() && self.owned_by_me && self.has_identity()
        };
        self.persistence == Persistence::Permanent && self.extension.as_ref().is_none_or(whole)
    }
}

/// Every user table of the current database, by schema and name.
///
/// # Errors
/// When the server does not answer.
pub async fn tables(client: &SideClient) -> Result<Vec<Table>, Error> {
    let sizes = "coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::int8 AS pages, \
                 coalesce(pg_table_size(c.oid), 0) AS bytes, ";
    tables_with(client, sizes).await
}

/// The same without their sizes, which are 0: who asks for a size waits for whoever has locked the table.
///
/// # Errors
/// When the server does not answer.
pub async fn tables_unsized(client: &SideClient) -> Result<Vec<Table>, Error> {
    tables_with(client, "0::int8 AS pages, 0::int8 AS bytes, ").await
}

async fn tables_with(client: &SideClient, sizes: &'static str) -> Result<Vec<Table>, Error> {
    let dialect = dialect(client).await?;
    let sql = Sql::new(
        "SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind, \
         c.relpersistence::text AS persistence, c.relreplident::text AS replica_identity, c.relispartition, \
         c.relfilenode AS filenode, c.relnatts AS attributes, pg_get_expr(c.relpartbound, c.oid) AS bounds, \
         c.relrowsecurity, row_security_active(c.oid) AS rls_applies, \
         pg_get_userbyid(c.relowner)::text AS owner, pg_has_role(c.relowner, 'USAGE') AS owned_by_me, \
         coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), false) AS readable, \
         EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgenabled <> 'D' AND ",
    )
    .text(FIRES_ON_CHANGES)
    .text(") AS has_triggers, ")
    .text(sizes)
    .text(dialect.row_estimate())
    .text(" AS row_estimate FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE ")
    .text(Scope::User.filter())
    .text(" ORDER BY 2, 3");
    // All are asked at once, and take one round trip.
    let (rows, mut columns, mut indexes, parents, mut extensions) = tokio::try_join!(
        ask::rows(client, "the tables", &sql, &[]),
        columns(client, dialect, Scope::User),
        indexes(client, dialect, Scope::User),
        parents(client),
        extensions::extension_tables(client),
    )?;

    let mut tables = Vec::with_capacity(rows.len());
    for row in &rows {
        let oid: u32 = row.get("oid")?;
        let columns = columns.remove(&oid).unwrap_or_default();
        let table = table(row, dialect, columns, indexes.remove(&oid).unwrap_or_default())?;
        tables.push(Table { extension: extensions.remove(&oid), ..table });
    }
    let with_children: HashSet<u32> = parents.values().flatten().copied().collect();
    let names: HashMap<u32, QualifiedName> = tables.iter().map(|t| (t.oid.get(), t.name.clone())).collect();
    for (table, row) in tables.iter_mut().zip(&rows) {
        let partition: bool = row.get("relispartition")?;
        let above = parents.get(&table.oid.get()).map(Vec::as_slice).unwrap_or_default();
        table.parents = above.iter().copied().map(Oid::new).collect();
        if partition {
            table.partition_of = names.get(&root(&parents, table.oid.get())).cloned();
        } else {
            table.inherits = above.iter().filter_map(|parent| names.get(parent).cloned()).collect();
        }
        table.inherited = table.is_leaf() && with_children.contains(&table.oid.get());
    }
    Ok(tables)
}

/// The names of every user table of the current database, by schema and name.
///
/// # Errors
/// When the server does not answer.
pub async fn table_names(client: &SourceClient) -> Result<Vec<QualifiedName>, Error> {
    let sql = Sql::new("SELECT n.nspname::text AS schema, c.relname::text AS name FROM pg_class c ")
        .text("JOIN pg_namespace n ON n.oid = c.relnamespace WHERE ")
        .text(Scope::User.filter())
        .text(" ORDER BY 1, 2");
    ask::rows(client, "the tables' names", &sql, &[]).await?.iter().map(ask::Answer::name).collect()
}

/// Every user table of the current database, by its identifier. Waits for no lock on a table, unlike [`tables`], which
/// asks for sizes.
///
/// # Errors
/// When the server does not answer.
pub async fn tables_by_id(client: &SideClient) -> Result<HashMap<Oid, QualifiedName>, Error> {
    let sql = Sql::new("SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name FROM pg_class c ")
        .text("JOIN pg_namespace n ON n.oid = c.relnamespace WHERE ")
        .text(Scope::User.filter());
    let rows = ask::rows(client, "the tables' names", &sql, &[]).await?;
    rows.iter().map(|row| Ok((Oid::new(row.get("oid")?), row.name()?))).collect()
}

fn table(
    row: &ask::Answer,
    dialect: Dialect,
    columns: Vec<TableColumn>,
    indexes: Vec<Index>,
) -> Result<Table, Error> {
    let replica_identity = ReplicaIdentity::from_byte(row.byte("replica_identity")?)
        .ok_or_else(|| row.unexpected("replica_identity"))?;
    let identifies = |index: &Index| index.identifies() && index.is_sent(&columns);
    let chosen = match replica_identity {
        ReplicaIdentity::Default => indexes.iter().find(|index| index.primary && identifies(index)),
        ReplicaIdentity::Index => indexes.iter().find(|index| index.replica_identity && identifies(index)),
        ReplicaIdentity::Nothing | ReplicaIdentity::Full => None,
    };
    let has_generated = columns.iter().any(|column| column.generated != Generated::No);
    let identity_columns = match replica_identity {
        ReplicaIdentity::Full if has_generated && dialect.rejects_generated_identity() => Vec::new(),
        ReplicaIdentity::Full => {
            let sent = columns.iter().filter(|column| column.generated == Generated::No);
            sent.map(|column| column.name.clone()).collect()
        }
        _ => chosen.map(|index| index.column_names(&columns)).unwrap_or_default(),
    };
    let candidate = |index: &&Index| identifies(index) && index.not_null(&columns);
    Ok(Table {
        oid: Oid::new(row.get("oid")?),
        name: row.name()?,
        kind: kind(row)?,
        partition_of: None,
        inherits: Vec::new(),
        parents: Vec::new(),
        bounds: row.get("bounds")?,
        inherited: false,
        persistence: match row.byte("persistence")? {
            b'p' => Persistence::Permanent,
            b'u' => Persistence::Unlogged,
            _ => return Err(row.unexpected("persistence")),
        },
        replica_identity,
        deferrable_primary_key: indexes.iter().any(|index| index.primary && !index.immediate),
        generated_identity: match replica_identity {
            ReplicaIdentity::Full => identity_columns.is_empty(),
            ReplicaIdentity::Default => indexes.iter().any(|index| index.primary && !index.is_sent(&columns)),
            ReplicaIdentity::Index => {
                indexes.iter().any(|index| index.replica_identity && !index.is_sent(&columns))
            }
            ReplicaIdentity::Nothing => false,
        },
        takes_full: !(has_generated && dialect.rejects_generated_identity()
            || replica_identity == ReplicaIdentity::Index
                && indexes.iter().any(|index| index.replica_identity)),
        identity_index: indexes.iter().find(candidate).map(|index| index.name.clone()),
        identity_columns,
        filenode: row.get("filenode")?,
        attributes: row.get("attributes")?,
        pages: row.count("pages")?,
        row_estimate: row.get("row_estimate")?,
        bytes: row.count("bytes")?,
        owner: row.get("owner")?,
        owned_by_me: row.get("owned_by_me")?,
        readable: row.get("readable")?,
        has_rls: row.get("relrowsecurity")?,
        rls_applies: row.get("rls_applies")?,
        has_triggers: row.get("has_triggers")?,
        extension: None,
        columns,
    })
}

pub(super) fn kind(row: &ask::Answer) -> Result<TableKind, Error> {
    match row.byte("kind")? {
        b'r' => Ok(TableKind::Plain),
        b'p' => Ok(TableKind::Partitioned),
        _ => Err(row.unexpected("kind")),
    }
}

/// `pg_trigger g`: made by a user, or by a foreign key. The rest are the rechecks of deferrable unique constraints.
pub(super) const FIRES_ON_CHANGES: &str = "(NOT g.tgisinternal OR EXISTS (SELECT FROM pg_constraint k \
                                           WHERE k.oid = g.tgconstraint AND k.contype = 'f'))";

/// Which relations a question is about; `pg_class c` and `pg_namespace n` are in reach of the filter.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scope<'a> {
    /// Every user table.
    User,
    /// One table, whoever made it.
    Named(&'a QualifiedName),
}

impl<'a> Scope<'a> {
    pub(super) const fn filter(self) -> &'static str {
        match self {
            Self::User => {
                "c.relkind IN ('r', 'p') AND c.relpersistence <> 't' \
                 AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'walferry', 'aiven_extras') \
                 AND (NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
                 AND d.deptype = 'e') OR EXISTS (SELECT FROM pg_extension e WHERE c.oid = ANY (e.extconfig)))"
            }
            Self::Named(_) => "c.relkind IN ('r', 'p') AND n.nspname = $1::text AND c.relname = $2::text",
        }
    }

    pub(super) fn params(self) -> Vec<ask::Param<'a>> {
        match self {
            Self::User => Vec::new(),
            Self::Named(name) => vec![&name.schema, &name.name],
        }
    }
}

#[cfg(test)]
impl Table {
    /// An ordinary table of one page in `public`, without columns, for tests to begin with.
    pub fn example(name: &str) -> Self {
        Self {
            oid: Oid::new(1),
            name: QualifiedName::new("public", name),
            kind: TableKind::Plain,
            partition_of: None,
            inherits: Vec::new(),
            parents: Vec::new(),
            bounds: None,
            inherited: false,
            persistence: Persistence::Permanent,
            replica_identity: ReplicaIdentity::Default,
            identity_columns: Vec::new(),
            deferrable_primary_key: false,
            generated_identity: false,
            takes_full: true,
            identity_index: None,
            columns: Vec::new(),
            filenode: 0,
            attributes: 0,
            pages: 1,
            row_estimate: 1.0,
            bytes: 8192,
            owner: "app".to_owned(),
            owned_by_me: true,
            readable: true,
            has_rls: false,
            rls_applies: false,
            has_triggers: false,
            extension: None,
        }
    }
}

#[cfg(test)]
impl TableColumn {
    /// A column that may be NULL, of a builtin type without modifier, for tests to begin with.
    pub fn example(number: i16, name: &str, type_oid: u32) -> Self {
        Self {
            number,
            name: name.to_owned(),
            type_oid: Oid::new(type_oid),
            type_schema: "pg_catalog".to_owned(),
            type_name: "t".to_owned(),
            type_modifier: -1,
            not_null: false,
            has_default: false,
            base: None,
            type_own_name: "t".to_owned(),
            in_arrays: true,
            is_built_in_array: false,
            generated: Generated::No,
            identity: Identity::No,
            version: 1,
        }
    }
}

/// A table as it is now, as far as rows that were read of it depend on that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableNow {
    /// Schema and name.
    pub name: QualifiedName,
    /// Its file.
    pub filenode: u32,
    /// Number, name, type and its modifier of each column, without dropped ones.
    pub columns: Vec<(i16, String, Oid, i32)>,
}

/// The table with this identifier as it is now, if there still is one.
///
/// # Errors
/// When the server does not answer.
pub async fn table_now(client: &SourceClient, oid: Oid) -> Result<Option<TableNow>, Error> {
    let sql = Sql::new(
        "SELECT n.nspname::text AS schema, c.relname::text AS name, c.relfilenode AS filenode, a.attnum, \
         a.attname::text AS column, a.atttypid, a.atttypmod FROM pg_class c \
         JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_attribute a ON a.attrelid = c.oid \
         AND a.attnum > 0 AND NOT a.attisdropped WHERE c.oid = $1::oid ORDER BY a.attnum",
    );
    let rows = ask::rows(client, "a table as it is now", &sql, &[&oid.get()]).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let (name, filenode) = (first.name()?, first.get("filenode")?);
    let mut columns = Vec::with_capacity(rows.len());
    for row in &rows {
        let Some(number) = row.get::<Option<i16>>("attnum")? else { continue };
        columns.push((number, row.get("column")?, Oid::new(row.get("atttypid")?), row.get("atttypmod")?));
    }
    Ok(Some(TableNow { name, filenode, columns }))
}

/// The columns of every table in `scope`, by the table's oid.
pub(super) async fn columns(
    client: &SideClient,
    dialect: Dialect,
    scope: Scope<'_>,
) -> Result<HashMap<u32, Vec<TableColumn>>, Error> {
    // With a type modifier of -1, format_type() writes bpchar and "bit", which mean any length; with NULL it writes
    // "character" and "bit", which as SQL mean a length of one.
    let sql = Sql::new(
        "SELECT a.attrelid, a.attnum, a.attname::text AS name, a.atttypid, format_type(a.atttypid, -1) AS type_name, \
         tn.nspname::text AS type_schema, a.atttypmod, a.attnotnull, a.atthasdef, t.typname::text AS own_name, \
         b.schema AS base_schema, b.name AS base_name, b.modifier AS base_modifier, a.attidentity::text AS identity, \
         a.xmin::text AS version, \
         t.typarray <> 0 AND t.typdelim = ',' AND 'c' NOT IN (t.typtype, coalesce(b.kind, '')) AS in_arrays, \
         t.typtype = 'b' AND t.typelem <> 0 AND t.typlen = -1 AND t.typarray = 0 AND t.typelem < 16384 \
         AS is_built_in_array, ",
    )
    .text(dialect.generated())
    .text(
        " AS generated FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_type t ON t.oid = a.atttypid \
         JOIN pg_namespace tn ON tn.oid = t.typnamespace LEFT JOIN LATERAL (WITH RECURSIVE below AS (\
         SELECT t.typbasetype AS oid, t.typtypmod AS modifier WHERE t.typtype = 'd' UNION ALL SELECT d.typbasetype, \
         CASE WHEN l.modifier = -1 THEN d.typtypmod ELSE l.modifier END \
         FROM below l JOIN pg_type d ON d.oid = l.oid WHERE d.typtype = 'd') \
         SELECT bn.nspname::text AS schema, bt.typname::text AS name, l.modifier, bt.typtype AS kind FROM below l \
         JOIN pg_type bt ON bt.oid = l.oid AND bt.typtype <> 'd' JOIN pg_namespace bn ON bn.oid = bt.typnamespace) b \
         ON true WHERE a.attnum > 0 AND NOT a.attisdropped AND ",
    )
    .text(scope.filter())
    .text(" ORDER BY a.attrelid, a.attnum");
    let mut columns: HashMap<u32, Vec<TableColumn>> = HashMap::new();
    for row in ask::rows(client, "the tables' columns", &sql, &scope.params()).await? {
        columns.entry(row.get("attrelid")?).or_default().push(column(&row)?);
    }
    Ok(columns)
}

fn base(row: &ask::Answer) -> Result<Option<(QualifiedName, i32)>, Error> {
    let (schema, name): (Option<String>, Option<String>) = (row.get("base_schema")?, row.get("base_name")?);
    let modifier: Option<i32> = row.get("base_modifier")?;
    Ok(schema
        .zip(name)
        .zip(modifier)
        .map(|((schema, name), modifier)| (QualifiedName::new(schema, name), modifier)))
}

fn column(row: &ask::Answer) -> Result<TableColumn, Error> {
    Ok(TableColumn {
        number: row.get("attnum")?,
        name: row.get("name")?,
        type_oid: Oid::new(row.get("atttypid")?),
        type_schema: row.get("type_schema")?,
        type_name: row.get("type_name")?,
        type_modifier: row.get("atttypmod")?,
        not_null: row.get("attnotnull")?,
        has_default: row.get("atthasdef")?,
        base: base(row)?,
        type_own_name: row.get("own_name")?,
        in_arrays: row.get("in_arrays")?,
        is_built_in_array: row.get("is_built_in_array")?,
        generated: generated(row)?,
        identity: identity(row)?,
        version: row.parse("version")?,
    })
}

pub(super) fn generated(row: &ask::Answer) -> Result<Generated, Error> {
    match row.byte("generated")? {
        b's' => Ok(Generated::Stored),
        b'v' => Ok(Generated::Virtual),
        b' ' => Ok(Generated::No),
        _ => Err(row.unexpected("generated")),
    }
}

pub(super) fn identity(row: &ask::Answer) -> Result<Identity, Error> {
    match row.byte("identity")? {
        b'a' => Ok(Identity::Always),
        b'd' => Ok(Identity::ByDefault),
        b' ' => Ok(Identity::No),
        _ => Err(row.unexpected("identity")),
    }
}

/// A unique index.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) name: String,
    pub(super) primary: bool,
    /// Not DEFERRABLE.
    pub(super) immediate: bool,
    replica_identity: bool,
    valid: bool,
    partial: bool,
    /// `attnum` of each key column; 0 for an expression.
    keys: Vec<i16>,
    /// The operator class of each key column.
    pub(super) operator_classes: Vec<u32>,
}

impl Index {
    /// Whether the server would find old rows by it: as in `RelationGetIndexList`.
    pub(super) fn identifies(&self) -> bool {
        self.valid && self.immediate && self.covers_all()
    }

    /// Whether it is an index over plain columns of every row.
    pub(super) fn covers_all(&self) -> bool {
        !self.partial && !self.keys.is_empty() && self.keys.iter().all(|&key| key > 0)
    }

    /// Whether the values of all of its columns are published: generated ones are not.
    fn is_sent(&self, columns: &[TableColumn]) -> bool {
        let generated = |key: &i16| {
            columns.iter().any(|column| column.number == *key && column.generated != Generated::No)
        };
        !self.keys.iter().any(generated)
    }

    pub(super) fn not_null(&self, columns: &[TableColumn]) -> bool {
        self.keys.iter().all(|&key| columns.iter().any(|column| column.number == key && column.not_null))
    }

    pub(super) fn column_names(&self, columns: &[TableColumn]) -> Vec<String> {
        let named = |key: &i16| columns.iter().find(|column| column.number == *key).map(|c| c.name.clone());
        self.keys.iter().filter_map(named).collect()
    }
}

/// The unique indexes of every table in `scope`, by the table's oid; primary keys first, then narrow ones, then old
/// ones.
pub(super) async fn indexes(
    client: &SideClient,
    dialect: Dialect,
    scope: Scope<'_>,
) -> Result<HashMap<u32, Vec<Index>>, Error> {
    let sql = Sql::new(
        "SELECT i.indrelid, x.relname::text AS name, i.indisprimary, i.indimmediate, i.indisreplident, \
         i.indisvalid, i.indpred IS NOT NULL AS partial, i.indkey::int2[] AS keys, i.indclass::oid[] AS classes, ",
    )
    .text(dialect.key_columns())
    .text(
        "::int8 AS key_columns FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid \
         JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE i.indisunique AND i.indislive AND ",
    )
    .text(scope.filter())
    .text(" ORDER BY i.indrelid, i.indisprimary DESC, key_columns, i.indexrelid");
    let mut indexes: HashMap<u32, Vec<Index>> = HashMap::new();
    for row in ask::rows(client, "the tables' unique indexes", &sql, &scope.params()).await? {
        let mut keys: Vec<i16> = row.get("keys")?;
        keys.truncate(usize::try_from(row.count("key_columns")?).unwrap_or(0));
        let index = Index {
            name: row.get("name")?,
            primary: row.get("indisprimary")?,
            immediate: row.get("indimmediate")?,
            replica_identity: row.get("indisreplident")?,
            valid: row.get("indisvalid")?,
            partial: row.get("partial")?,
            keys,
            operator_classes: row.get("classes")?,
        };
        indexes.entry(row.get("indrelid")?).or_default().push(index);
    }
    Ok(indexes)
}

/// Bytes of each index, by the catalog and identifier that an archive of `pg_dump` knows it by: `1259 16400` for an
/// index, `2606 16401` for a constraint that is made of one.
///
/// # Errors
/// When the server does not answer.
pub async fn index_bytes(client: &SourceClient) -> Result<HashMap<String, u64>, Error> {
    let sql = Sql::new(
        "SELECT '1259 ' || i.indexrelid AS key, coalesce(pg_relation_size(i.indexrelid), 0) AS bytes FROM pg_index i \
         UNION ALL SELECT '2606 ' || k.oid, coalesce(pg_relation_size(k.conindid), 0) FROM pg_constraint k \
         WHERE k.contype IN ('p', 'u', 'x')",
    );
    let rows = ask::rows(client, "the indexes' sizes", &sql, &[]).await?;
    rows.iter().map(|row| Ok((row.get("key")?, row.count("bytes")?))).collect()
}

/// What each table inherits from directly, partitioning included.
async fn parents(client: &SideClient) -> Result<HashMap<u32, Vec<u32>>, Error> {
    let sql = Sql::new("SELECT inhrelid, inhparent FROM pg_inherits ORDER BY inhrelid, inhseqno");
    let mut parents: HashMap<u32, Vec<u32>> = HashMap::new();
    for row in ask::rows(client, "the tables' parents", &sql, &[]).await? {
        parents.entry(row.get("inhrelid")?).or_default().push(row.get("inhparent")?);
    }
    Ok(parents)
}

/// The topmost table above a partition, which has one parent at most.
fn root(parents: &HashMap<u32, Vec<u32>>, mut oid: u32) -> u32 {
    while let Some(&above) = parents.get(&oid).and_then(|above| above.first()) {
        oid = above;
    }
    oid
}
