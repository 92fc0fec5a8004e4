//! `walferry.role`: the roles that a migration made on the target, and which of them wait for their LOGIN.

use super::{Store, failure};
use crate::error::Result;

impl Store<'_> {
    /// Their names.
    pub async fn roles(&self) -> Result<Vec<String>> {
        if !self.remembers_roles().await? {
            return Ok(Vec::new());
        }
        let sql = "SELECT name FROM walferry.role WHERE migration = $1 ORDER BY 1";
        let rows = self.client.query(sql, &[&self.name]).await.map_err(failure)?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Notes roles that were made; those in `shut` may log in on the source, and not yet here. One that is noted already was
    /// dropped and made anew, or comes from another database of the migration.
    pub async fn add_roles(&self, names: &[String], shut: &[String]) -> Result<()> {
        let sql = "INSERT INTO walferry.role (migration, name, shut)
                   SELECT $1, name, name = ANY ($3) FROM unnest($2::text[]) name ON CONFLICT (migration, name)
                   DO UPDATE SET shut = role.shut OR excluded.shut";
        self.execute(sql, &[&self.name, &names, &shut]).await
    }

    /// Those that wait for their LOGIN.
    pub async fn shut_roles(&self) -> Result<Vec<String>> {
        if !self.remembers_roles().await? {
            return Ok(Vec::new());
        }
        let sql = "SELECT name FROM walferry.role r WHERE migration = $1 AND (to_jsonb(r) ->> 'shut')::bool ORDER BY 1";
        let rows = self.client.query(sql, &[&self.name]).await.map_err(failure)?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// What an older Walferry made has neither the table nor the column.
    async fn remembers_roles(&self) -> Result<bool> {
        let row = self.one("SELECT pg_catalog.to_regclass('walferry.role') IS NOT NULL", &[]).await?;
        Ok(row.get(0))
    }

    /// The same, and nobody else gives it to them before the transaction ends.
    pub async fn lock_shut_roles(&self) -> Result<Vec<String>> {
        let sql = "SELECT name FROM walferry.role WHERE migration = $1 AND shut ORDER BY 1 FOR UPDATE";
        let rows = self.client.query(sql, &[&self.name]).await.map_err(failure)?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Notes that these have it.
    pub async fn opened_roles(&self, names: &[String]) -> Result<()> {
        let sql = "UPDATE walferry.role SET shut = false WHERE migration = $1 AND name = ANY ($2)";
        self.execute(sql, &[&self.name, &names]).await
    }
}
