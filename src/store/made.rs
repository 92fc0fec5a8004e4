//! `walferry.made`: what of the schema is made on the target, noted by the transaction that makes it.

use std::collections::HashMap;

use super::{Store, failure};
use crate::error::Result;
use crate::pg::Sql;

impl Store<'_> {
    /// What of the schema is made: the digest of each entry's definition by its key, empty where an older Walferry made it.
    pub async fn made(&self) -> Result<HashMap<String, String>> {
        let sql = "SELECT key, digest FROM walferry.made WHERE migration = $1";
        let rows = self.client.query(sql, &[&self.name]).await.map_err(failure)?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

/// The statement that records that entries of the schema are made, for the transaction that makes them: key and digest.
pub fn note_made<'a>(migration: &str, made: impl IntoIterator<Item = (&'a str, String)>) -> Sql {
    Sql::new("INSERT INTO walferry.made (migration, key, digest) VALUES ")
        .list(made, ", ", |sql, (key, digest)| {
            sql.text("(").literal(migration).text(", ").literal(key).text(", ").literal(&digest).text(")")
        })
        .text(" ON CONFLICT (migration, key) DO UPDATE SET digest = excluded.digest")
}
