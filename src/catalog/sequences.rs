//! Sequences and where they stand.

use super::{Error, SourceClient, ask, dialect};
use crate::limits::SEQUENCES_PER_QUERY;
use crate::pg::{Oid, QualifiedName, Sql};

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
pub async fn sequences(client: &SourceClient) -> Result<Vec<Sequence>, Error> {
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
pub async fn sequence_values(client: &SourceClient) -> Result<SequenceValues, Error> {
    let mut found = SequenceValues::default();
    let mut readable = Vec::new();
    for sequence in sequences(client).await? {
        if sequence.readable {
            readable.push((sequence.oid.get(), sequence.name));
        } else {
            found.unreadable.push(sequence.name);
        }
    }
    let locks = !dialect(client).await?.refuses_views();
    for some in readable.chunks(SEQUENCES_PER_QUERY) {
        match read(client, some, locks).await? {
            Some(values) => found.values.extend(values),
            None => one_by_one(client, some, locks, &mut found).await?,
        }
    }
    Ok(found)
}

/// Their values; `None` where one of them cannot be read.
async fn read(
    client: &SourceClient,
    sequences: &[(u32, QualifiedName)],
    locks: bool,
) -> Result<Option<Vec<SequenceValue>>, Error> {
    let values = if locks {
        values_locked(client, sequences).await
    } else {
        values(client, sequences).await.map(Some)
    };
    match values {
        Err(error) if cannot_be_read(&error) => Ok(None),
        values => values,
    }
}

async fn one_by_one(
    client: &SourceClient,
    sequences: &[(u32, QualifiedName)],
    locks: bool,
    found: &mut SequenceValues,
) -> Result<(), Error> {
    for sequence in sequences {
        match read(client, std::slice::from_ref(sequence), locks).await? {
            Some(values) => found.values.extend(values),
            None => found.unreadable.push(sequence.1.clone()),
        }
    }
    Ok(())
}

/// For a server that would read a view, too, under a name that was a sequence's: they are locked by their identifiers, which
/// keeps them what they are, and read if they still have their names. `None` where one has not.
async fn values_locked(
    client: &SourceClient,
    sequences: &[(u32, QualifiedName)],
) -> Result<Option<Vec<SequenceValue>>, Error> {
    let failed = client.failed(VALUES);
    client.run(VALUES, &Sql::new("BEGIN")).await?;
    let read = async {
        let oids: Vec<u32> = sequences.iter().map(|(oid, _)| *oid).collect();
        let names: Vec<String> =
            sequences.iter().map(|(_, name)| Sql::default().name(name).to_string()).collect();
        // The one function that takes a sequence's lock and needs no more than SELECT.
        let lock = "SELECT count(pg_sequence_last_value(oid)) FROM unnest($1::oid[]) oid";
        client.query_one(lock, &[&oids]).await.map_err(&failed)?;
        let same = "SELECT bool_and(to_regclass(name)::oid IS NOT DISTINCT FROM oid)
                    FROM unnest($1::oid[], $2::text[]) s (oid, name)";
        let same: Option<bool> = client.query_one(same, &[&oids, &names]).await.map_err(&failed)?.get(0);
        if same == Some(true) { values(client, sequences).await.map(Some) } else { Ok(None) }
    };
    let read = read.await;
    client.run(VALUES, &Sql::new("ROLLBACK")).await?;
    read
}

/// No privilege, or no such table or schema (any more); or something else has its name by now: a view, which is not read, or
/// a relation of other columns.
fn cannot_be_read(error: &Error) -> bool {
    matches!(error.state(), Some("42501" | "42P01" | "3F000" | "55000" | "42703" | "42804" | "42809"))
}

const VALUES: &str = "the sequences' values";

async fn values(
    client: &SourceClient,
    sequences: &[(u32, QualifiedName)],
) -> Result<Vec<SequenceValue>, Error> {
    let sql = Sql::new("").list(sequences, " UNION ALL ", |sql, (_, name)| {
        sql.text("SELECT ")
            .literal(&name.schema)
            .text("::text AS schema, ")
            .literal(&name.name)
            .text("::text AS name, last_value, is_called FROM ")
            .name(name)
    });
    let rows = ask::rows(client, VALUES, &sql, &[]).await?;
    let value = |row: &ask::Answer| {
        let (last_value, is_called) = (row.get("last_value")?, row.get("is_called")?);
        Ok(SequenceValue { name: row.name()?, last_value, is_called })
    };
    rows.iter().map(value).collect()
}
