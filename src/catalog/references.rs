//! Foreign keys.

use std::collections::HashSet;

use super::{Error, SourceClient, TargetClient, ask};
use crate::pg::{Oid, QualifiedName, Sql};

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `pg_constraint.oid`.
    pub oid: Oid,
    /// The constraint's name.
    pub name: String,
    /// The table that has it.
    pub from: QualifiedName,
    /// The table that it refers to.
    pub to: QualifiedName,
}

/// Every foreign key of the current database, those of partitions included, by table and name.
///
/// # Errors
/// When the server does not answer.
pub async fn references(client: &SourceClient) -> Result<Vec<Reference>, Error> {
    let sql = Sql::new(
        "SELECT k.oid, k.conname::text AS constraint, n.nspname::text AS schema, c.relname::text AS name, \
         rn.nspname::text AS to_schema, r.relname::text AS to_name FROM pg_constraint k \
         JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace \
         WHERE k.contype = 'f' ORDER BY 3, 4, 2",
    );
    let rows = ask::rows(client, "the foreign keys", &sql, &[]).await?;
    let reference = |row: &ask::Answer| {
        Ok(Reference {
            oid: Oid::new(row.get("oid")?),
            name: row.get("constraint")?,
            from: row.name()?,
            to: QualifiedName::new(row.get::<String>("to_schema")?, row.get::<String>("to_name")?),
        })
    };
    rows.iter().map(reference).collect()
}

/// Which tables have foreign keys that refer to these, each pair once: the one that has it, and the one that it refers
/// to. Those of a table to itself are left out.
///
/// # Errors
/// When the server does not answer.
pub async fn references_to(
    client: &TargetClient,
    tables: &[QualifiedName],
) -> Result<Vec<(QualifiedName, QualifiedName)>, Error> {
    let sql = Sql::new(
        "SELECT DISTINCT n.nspname::text AS schema, c.relname::text AS name, w.schema AS to_schema, w.name AS to_name \
         FROM unnest($1::text[], $2::text[]) AS w (schema, name) JOIN pg_namespace rn ON rn.nspname = w.schema \
         JOIN pg_class r ON r.relnamespace = rn.oid AND r.relname = w.name \
         JOIN pg_constraint k ON k.confrelid = r.oid AND k.contype = 'f' AND k.conrelid <> r.oid \
         JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace",
    );
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        tables.iter().map(|table| (table.schema.as_str(), table.name.as_str())).unzip();
    let rows = ask::rows(client, "who refers to the tables", &sql, &[&schemas, &names]).await?;
    let pair = |row: &ask::Answer| {
        let to = QualifiedName::new(row.get::<String>("to_schema")?, row.get::<String>("to_name")?);
        Ok((row.name()?, to))
    };
    rows.iter().map(pair).collect()
}

/// `pg_constraint.oid` of every foreign key of the current database.
///
/// # Errors
/// When the server does not answer.
pub async fn foreign_keys(client: &SourceClient) -> Result<HashSet<Oid>, Error> {
    let sql = Sql::new("SELECT k.oid FROM pg_constraint k WHERE k.contype = 'f'");
    let rows = ask::rows(client, "which foreign keys there are", &sql, &[]).await?;
    rows.iter().map(|row| row.get("oid").map(Oid::new)).collect()
}
