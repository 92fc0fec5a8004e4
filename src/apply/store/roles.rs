//! `walferry.role`: the roles that a migration made on the target.

use super::{Store, failure};
use crate::error::Result;

impl Store<'_> {
    /// Their names.
    pub async fn roles(&self) -> Result<Vec<String>> {
        let sql = "SELECT name FROM walferry.role WHERE migration = $1 ORDER BY 1";
        let rows = self.client.query(sql, &[&self.name]).await.map_err(failure)?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Notes roles that were made.
    pub async fn add_roles(&self, names: &[String]) -> Result<()> {
        let sql = "INSERT INTO walferry.role (migration, name) SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING";
        self.execute(sql, &[&self.name, &names]).await
    }
}
