//! Sequences and where they stand.

use tokio_postgres::Client;

use crate::limits::SEQUENCES_PER_QUERY;
use crate::pg::{Oid, QualifiedName, Sql};
use crate::source::{Error, ask};

/// A user's sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// `pg_class.oid`.
    pub oid: Oid,
    /// Schema and name.
    pub name: QualifiedName,
    /// `smallint`, `integer` or `bigint`.
    pub data_type: String,
    /// What it belongs to.
    pub owner: SequenceOwner,
    /// Whether the current user may read where it stands.
    pub readable: bool,
}

/// What a sequence belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SequenceOwner {
    /// Nothing.
    Nobody,
    /// The column that it is OWNED BY, as serial ones are.
    Column(QualifiedName, String),
    /// The identity column that it counts for.
    Identity(QualifiedName, String),
}

/// Where a sequence stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceValue {
    /// Schema and name.
    pub name: QualifiedName,
    /// The value that it gave last, or will give first.
    pub last_value: i64,
    /// Whether it gave `last_value` already.
    pub is_called: bool,
}

/// Where all sequences stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SequenceValues {
    /// Those that could be read.
    pub values: Vec<SequenceValue>,
    /// Those that could not: no privilege, or dropped meanwhile.
    pub unreadable: Vec<QualifiedName>,
}

/// Every user sequence of the current database, by schema and name.
///
/// # Errors
/// When the server does not answer.
pub async fn sequences(client: &Client) -> Result<Vec<Sequence>, Error> {
    let sql = Sql::new(
        "SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, format_type(s.seqtypid, -1) AS data_type, \
         coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_sequence_privilege(c.oid, 'SELECT'), false) AS readable, \
         o.deptype::text AS ownership, tn.nspname::text AS table_schema, t.relname::text AS table_name, \
         a.attname::text AS column_name \
         FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_depend o ON o.classid = 'pg_class'::regclass AND o.objid = c.oid AND o.objsubid = 0 \
         AND o.refclassid = 'pg_class'::regclass AND o.refobjsubid > 0 AND o.deptype IN ('a', 'i') \
         LEFT JOIN pg_class t ON t.oid = o.refobjid LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace \
         LEFT JOIN pg_attribute a ON a.attrelid = o.refobjid AND a.attnum = o.refobjsubid \
         WHERE c.relpersistence <> 't' \
         AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'walferry', 'aiven_extras') \
         AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
         AND d.deptype = 'e') ORDER BY 2, 3",
    );
    ask::rows(client, "the sequences", &sql, &[]).await?.iter().map(sequence).collect()
}

fn sequence(row: &ask::Answer) -> Result<Sequence, Error> {
    let ownership: Option<String> = row.get("ownership")?;
    let owner = match ownership {
        None => SequenceOwner::Nobody,
        Some(kind) => {
            let table =
                QualifiedName::new(row.get::<String>("table_schema")?, row.get::<String>("table_name")?);
            let column = row.get("column_name")?;
            if kind == "i" {
                SequenceOwner::Identity(table, column)
            } else {
                SequenceOwner::Column(table, column)
            }
        }
    };
    Ok(Sequence {
        oid: Oid::new(row.get("oid")?),
        name: row.name()?,
        data_type: row.get("data_type")?,
        owner,
        readable: row.get("readable")?,
    })
}

/// Where every user sequence of the current database stands, read from the sequences themselves: the view
/// `pg_sequences` cannot tell a sequence set with `is_called = false` from an untouched one.
///
/// # Errors
/// When the server does not answer. A sequence that may not be read is no error.
pub async fn sequence_values(client: &Client) -> Result<SequenceValues, Error> {
    let mut found = SequenceValues::default();
    let mut readable = Vec::new();
    for sequence in sequences(client).await? {
        if sequence.readable { readable.push(sequence.name) } else { found.unreadable.push(sequence.name) }
    }
    for names in readable.chunks(SEQUENCES_PER_QUERY) {
        match values(client, names).await {
            Ok(values) => found.values.extend(values),
            Err(error) if cannot_be_read(&error) => one_by_one(client, names, &mut found).await?,
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

async fn one_by_one(
    client: &Client,
    names: &[QualifiedName],
    found: &mut SequenceValues,
) -> Result<(), Error> {
    for name in names {
        match values(client, std::slice::from_ref(name)).await {
            Ok(values) => found.values.extend(values),
            Err(error) if cannot_be_read(&error) => found.unreadable.push(name.clone()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// No privilege, or no such table or schema (any more); or something else has its name by now: a view, which is not read, or
/// a relation of other columns.
fn cannot_be_read(error: &Error) -> bool {
    matches!(error.state(), Some("42501" | "42P01" | "3F000" | "55000" | "42703" | "42804"))
}

async fn values(client: &Client, names: &[QualifiedName]) -> Result<Vec<SequenceValue>, Error> {
    let sql = Sql::new("").list(names, " UNION ALL ", |sql, name| {
        sql.text("SELECT ")
            .literal(&name.schema)
            .text("::text AS schema, ")
            .literal(&name.name)
            .text("::text AS name, last_value, is_called FROM ")
            .name(name)
    });
    let rows = ask::rows(client, "the sequences' values", &sql, &[]).await?;
    let value = |row: &ask::Answer| {
        let (last_value, is_called) = (row.get("last_value")?, row.get("is_called")?);
        Ok(SequenceValue { name: row.name()?, last_value, is_called })
    };
    rows.iter().map(value).collect()
}
