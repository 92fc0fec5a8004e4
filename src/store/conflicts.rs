//! `walferry.conflict`: the changes that did not fit the target's rows.

use super::Store;
use crate::error::Result;
use crate::pg::Sql;

impl Store<'_> {
    /// How many changes were left out since they did not fit.
    pub async fn skipped_conflicts(&self) -> Result<i64> {
        let sql = "SELECT count(*) FROM walferry.conflict WHERE migration = $1 AND resolution = 'skipped'";
        Ok(self.one(sql, &[&self.name]).await?.get(0))
    }
}

/// Records a conflict, for the transaction that resolves it. The parameters are text: migration, commit position, schema,
/// table, kind, resolution, statement, and key, source's row and target's row as JSON.
pub fn record_conflict() -> Sql {
    Sql::new(
        "INSERT INTO walferry.conflict \
         (migration, commit_lsn, schema_name, table_name, kind, resolution, statement, key, source_row, target_row) \
         VALUES ($1, $2::text::pg_lsn, $3, $4, $5, $6, $7, $8::text::json, $9::text::json, $10::text::json)",
    )
}
