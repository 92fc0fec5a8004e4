//! Foreign keys.

use tokio_postgres::Client;

use crate::pg::{Oid, QualifiedName, Sql};
use crate::source::{Error, ask};

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
pub async fn references(client: &Client) -> Result<Vec<Reference>, Error> {
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
