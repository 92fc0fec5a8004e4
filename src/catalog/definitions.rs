//! How one table is defined, as far as ALTER TABLE on another server has to say it again.

use super::tables::{Generated, Identity};
use super::{Error, SideClient, SourceClient, ask, dialect};
use crate::pg::{Oid, QualifiedName, RelationId, Sql};
use crate::source::Dialect;

/// A table's definition as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Schema and name, now.
    pub name: QualifiedName,
    /// Its file: another one after the table was rewritten or emptied.
    pub filenode: u32,
    /// It is a partition, inherits, or is inherited from.
    pub in_hierarchy: bool,
    /// For a partition: the topmost table above it.
    pub root: Option<QualifiedName>,
    /// Columns by number, dropped ones included.
    pub columns: Vec<DefinedColumn>,
}

/// A column of a [`Definition`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefinedColumn {
    /// `attnum`.
    pub number: i16,
    /// Its name, not quoted; of no meaning for a dropped one.
    pub name: String,
    /// It is no more.
    pub dropped: bool,
    /// Its type's identifier.
    pub type_oid: Oid,
    /// `atttypmod`; -1 for none.
    pub type_modifier: i32,
    /// Its type is a domain.
    pub domain: bool,
    /// NOT NULL.
    pub not_null: bool,
    /// Whether and where its value is computed.
    pub generated: Generated,
    /// Whether it is an identity column.
    pub identity: Identity,
    /// Its default, or what it is computed by, as SQL.
    pub default: Option<String>,
    /// `attmissingval` (11): what rows have that are older than the column, where that is not NULL.
    pub missing: Option<String>,
    /// Its collation as SQL, where that is not its type's.
    pub collation: Option<String>,
    /// Has a constraint or index of its own: what ADD COLUMN would have to say besides.
    pub constrained: bool,
}

impl Definition {
    /// The column that has this name now.
    pub fn column(&self, name: &str) -> Option<&DefinedColumn> {
        self.columns.iter().find(|column| !column.dropped && column.name == name)
    }
}

/// The definition of the table with this identifier, if there still is one.
///
/// # Errors
/// When the server does not answer.
pub async fn definition(client: &SideClient, id: RelationId) -> Result<Option<Definition>, Error> {
    let dialect = dialect(client).await?;
    // The columns first: a table that is rewritten in between then has another file than what they say goes with.
    let columns = columns(client, dialect, id).await?;
    let sql = Sql::new(
        "WITH RECURSIVE above AS (SELECT oid, relispartition FROM pg_class WHERE oid = $1::oid \
         UNION ALL SELECT c.oid, c.relispartition FROM above a JOIN pg_inherits i ON i.inhrelid = a.oid \
         JOIN pg_class c ON c.oid = i.inhparent WHERE a.relispartition) \
         SELECT n.nspname::text AS schema, c.relname::text AS name, c.relfilenode AS filenode, \
         EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)) AS in_hierarchy, \
         rn.nspname::text AS root_schema, r.relname::text AS root_name \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN (SELECT oid FROM above WHERE NOT relispartition AND oid <> $1::oid LIMIT 1) t ON true \
         LEFT JOIN pg_class r ON r.oid = t.oid LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace \
         WHERE c.oid = $1::oid",
    );
    let found = ask::rows(client, "a table's definition", &sql, &[&id.get()]).await?;
    let Some(row) = found.first() else { return Ok(None) };
    let root: (Option<String>, Option<String>) = (row.get("root_schema")?, row.get("root_name")?);
    Ok(Some(Definition {
        name: row.name()?,
        filenode: row.get("filenode")?,
        in_hierarchy: row.get("in_hierarchy")?,
        root: root.0.zip(root.1).map(|(schema, name)| QualifiedName::new(schema, name)),
        columns,
    }))
}

async fn columns(client: &SideClient, dialect: Dialect, id: RelationId) -> Result<Vec<DefinedColumn>, Error> {
    let sql = Sql::new(
        "SELECT a.attnum, a.attname::text AS name, a.attisdropped, a.atttypid, a.atttypmod, \
         coalesce(t.typtype = 'd', false) AS domain, a.attnotnull, a.attidentity::text AS identity, \
         pg_get_expr(d.adbin, d.adrelid) AS default, \
         CASE WHEN a.attcollation <> t.typcollation THEN quote_ident(ln.nspname) || '.' || quote_ident(l.collname) END \
         AS collation, EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = a.attrelid AND k.contype <> 'n' \
         AND a.attnum = ANY (k.conkey)) \
         OR EXISTS (SELECT FROM pg_index x WHERE x.indrelid = a.attrelid AND a.attnum = ANY (x.indkey::int2[])) \
         AS constrained, ",
    )
    .text(dialect.generated())
    .text(" AS generated, ")
    .text(dialect.missing())
    .text(
        " AS missing FROM pg_attribute a LEFT JOIN pg_type t ON t.oid = a.atttypid \
         LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
         LEFT JOIN pg_collation l ON l.oid = a.attcollation LEFT JOIN pg_namespace ln ON ln.oid = l.collnamespace \
         WHERE a.attrelid = $1::oid AND a.attnum > 0 ORDER BY a.attnum",
    );
    let rows = ask::rows(client, "a table's columns", &sql, &[&id.get()]).await?;
    let column = |row: &ask::Answer| {
        Ok(DefinedColumn {
            number: row.get("attnum")?,
            name: row.get("name")?,
            dropped: row.get("attisdropped")?,
            type_oid: Oid::new(row.get("atttypid")?),
            type_modifier: row.get("atttypmod")?,
            domain: row.get("domain")?,
            not_null: row.get("attnotnull")?,
            generated: super::tables::generated(row)?,
            identity: super::tables::identity(row)?,
            default: row.get("default")?,
            missing: row.get("missing")?,
            collation: row.get("collation")?,
            constrained: row.get("constrained")?,
        })
    };
    rows.iter().map(column).collect()
}

/// A type as SQL, with its length or precision; `None` where there is no such type any more.
///
/// # Errors
/// When the server does not answer.
pub async fn type_text(client: &SourceClient, oid: Oid, modifier: i32) -> Result<Option<String>, Error> {
    let sql = Sql::new(
        "SELECT CASE WHEN EXISTS (SELECT FROM pg_type WHERE oid = $1::oid) \
         THEN format_type($1::oid, $2::int4) END AS type",
    );
    ask::row(client, "a type's name", &sql, &[&oid.get(), &modifier]).await?.get("type")
}

/// What the types are called, those that are there.
///
/// # Errors
/// When the server does not answer.
pub async fn type_names(client: &SourceClient, oids: &[Oid]) -> Result<Vec<(Oid, QualifiedName)>, Error> {
    let sql = Sql::new(
        "SELECT t.oid, n.nspname::text AS schema, t.typname::text AS name FROM pg_type t \
         JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = ANY ($1::oid[])",
    );
    let oids: Vec<u32> = oids.iter().map(|oid| oid.get()).collect();
    let rows = ask::rows(client, "the types' names", &sql, &[&oids]).await?;
    rows.iter().map(|row| Ok((Oid::new(row.get("oid")?), row.name()?))).collect()
}

/// What the table with this identifier is called now, if it is still there.
///
/// # Errors
/// When the server does not answer.
pub async fn table_name(client: &SourceClient, id: RelationId) -> Result<Option<QualifiedName>, Error> {
    let sql = Sql::new(
        "SELECT n.nspname::text AS schema, c.relname::text AS name FROM pg_class c \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::oid",
    );
    let rows = ask::rows(client, "a table's name", &sql, &[&id.get()]).await?;
    rows.first().map(ask::Answer::name).transpose()
}
