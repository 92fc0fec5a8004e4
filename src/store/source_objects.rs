//! What a migration made or changed on the source: `walferry.replica_identity` and `walferry.published`.

use tokio_postgres::Row;

use super::{Store, failure};
use crate::error::Result;
use crate::pg::{QualifiedName, RelationId, Sql};

/// A table of the source that has REPLICA IDENTITY FULL for the migration's sake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedIdentity {
    /// `pg_class.oid`.
    pub id: RelationId,
    /// Its name when that was done.
    pub name: QualifiedName,
    /// Whether it had REPLICA IDENTITY NOTHING before, or what amounts to it; else DEFAULT.
    pub was_nothing: bool,
}

/// What stands for a publication of the source, or for a table in one, in the source's catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedRow {
    /// The publication.
    pub publication: String,
    /// `pg_class.oid` of the table; 0 for the publication itself.
    pub table: u32,
    /// Another one when another row stands for it.
    pub version: String,
}

impl Store<'_> {
    /// Records tables whose replica identity is about to be changed; those that are recorded already stay as they are.
    pub async fn begin_identities(&self, changed: &[ChangedIdentity]) -> Result<()> {
        let sql =
            "INSERT INTO walferry.replica_identity (migration, source_oid, schema_name, table_name, previous)
                   VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
        for ChangedIdentity { id, name, was_nothing } in changed {
            let previous = if *was_nothing { "nothing" } else { "default" };
            self.execute(sql, &[&self.name, &id.get(), &name.schema, &name.name, &previous]).await?;
        }
        Ok(())
    }

    /// The tables whose replica identity was changed.
    pub async fn identities(&self) -> Result<Vec<ChangedIdentity>> {
        // What an older Walferry made has no such table.
        let there =
            self.one("SELECT pg_catalog.to_regclass('walferry.replica_identity') IS NOT NULL", &[]).await?;
        if !there.get::<_, bool>(0) {
            return Ok(Vec::new());
        }
        let sql =
            "SELECT source_oid, schema_name, table_name, previous = 'nothing' FROM walferry.replica_identity
                   WHERE migration = $1 ORDER BY schema_name, table_name";
        let rows = self.client.query(sql, &[&self.name]).await.map_err(failure)?;
        let changed = |row: &Row| ChangedIdentity {
            id: RelationId::new(row.get(0)),
            name: QualifiedName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
            was_nothing: row.get(3),
        };
        Ok(rows.iter().map(changed).collect())
    }

    /// Remembers what stands for publications and their tables.
    pub async fn remember_published(&self, rows: &[PublishedRow]) -> Result<()> {
        let sql = "INSERT INTO walferry.published (migration, publication, source_oid, version)
                   SELECT $1, * FROM unnest($2::text[], $3::oid[], $4::text[])
                   ON CONFLICT (migration, publication, source_oid) DO UPDATE SET version = excluded.version";
        let publications: Vec<&str> = rows.iter().map(|row| row.publication.as_str()).collect();
        let tables: Vec<u32> = rows.iter().map(|row| row.table).collect();
        let versions: Vec<&str> = rows.iter().map(|row| row.version.as_str()).collect();
        self.execute(sql, &[&self.name, &publications, &tables, &versions]).await
    }

    /// What stood for publications and their tables when that was remembered.
    pub async fn published(&self) -> Result<Vec<PublishedRow>> {
        let sql = "SELECT publication, source_oid, version FROM walferry.published WHERE migration = $1";
        let rows = self.client.query(sql, &[&self.name]).await.map_err(failure)?;
        let row =
            |row: &Row| PublishedRow { publication: row.get(0), table: row.get(1), version: row.get(2) };
        Ok(rows.iter().map(row).collect())
    }
}

/// Keeps whoever else takes constraints away waiting until the transaction ends. It locks a table of ours, which keeps nobody
/// from its rows: anybody could hold an advisory lock.
pub fn hold_constraints() -> Sql {
    Sql::new("LOCK TABLE walferry.replica_identity IN SHARE UPDATE EXCLUSIVE MODE")
}
