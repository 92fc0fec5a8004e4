//! `walferry.large_object`: the large objects that a migration made, noted by the transaction that made them.

use super::{Store, failure};
use crate::error::Result;
use crate::limits::LARGE_OBJECTS_PER_STEP;

impl Store<'_> {
    /// Whether there are any.
    pub async fn has_large_objects(&self) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT FROM walferry.large_object WHERE migration = $1)";
        Ok(self.one(sql, &[&self.name]).await?.get(0))
    }

    /// Those of `ids` that are noted.
    pub async fn large_objects_among(&self, ids: &[u32]) -> Result<Vec<u32>> {
        let sql = "SELECT id FROM walferry.large_object WHERE migration = $1 AND id = ANY ($2)";
        let rows = self.client.query(sql, &[&self.name, &ids]).await.map_err(failure)?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Those between `after` and `last`, which is one of them, that are not `here`: the first [`LARGE_OBJECTS_PER_STEP`].
    pub async fn large_objects_but(&self, after: u32, last: u32, here: &[u32]) -> Result<Vec<u32>> {
        let sql = "SELECT id FROM walferry.large_object WHERE migration = $1 AND id > $2 AND id <= $3
                       AND NOT id = ANY ($4) ORDER BY id LIMIT $5";
        let limit = i64::try_from(LARGE_OBJECTS_PER_STEP).unwrap_or(i64::MAX);
        let rows = self.client.query(sql, &[&self.name, &after, &last, &here, &limit]).await;
        Ok(rows.map_err(failure)?.iter().map(|row| row.get(0)).collect())
    }

    /// Notes that these are made.
    pub async fn add_large_objects(&self, ids: &[u32]) -> Result<()> {
        let sql = "INSERT INTO walferry.large_object (migration, id)
                   SELECT $1, t.id FROM unnest($2::oid[]) t(id) ON CONFLICT DO NOTHING";
        self.execute(sql, &[&self.name, &ids]).await
    }

    /// Notes that these are gone.
    pub async fn forget_large_objects(&self, ids: &[u32]) -> Result<()> {
        let sql = "DELETE FROM walferry.large_object WHERE migration = $1 AND id = ANY ($2)";
        self.execute(sql, &[&self.name, &ids]).await
    }
}
