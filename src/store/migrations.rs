//! `walferry.migration`: the migration of one database, and which run of it is at work.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::schema::{VERSION, too_new};
use super::{Phase, RunEnd, Store, damaged, failure};
use crate::config::{Method, Selection};
use crate::error::Result;
use crate::pg::{PgTimestamp, SlotName, Sql, SystemId};

/// `walferry.migration`'s row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationRow {
    /// The migration's name.
    pub name: String,
    /// The database, by its name on the source.
    pub dbname: String,
    /// The phase that the work is in.
    pub phase: Phase,
    /// How the last run ended; `None` while one is at work, or was killed.
    pub ended: Option<RunEnd>,
    /// How it is moved.
    pub method: Method,
    /// Why it is moved by [`Method::PgDump`] though nobody asked for that; else empty.
    pub method_reason: String,
    /// Of [`Method::PgDump`], once its rows are there: when its snapshot was taken, by the source's clock; else empty.
    pub dumped_at: String,
    /// What ended the last run, if a failure did.
    pub error: String,
    /// The source cluster.
    pub system_id: SystemId,
    /// The slot on the source.
    pub slot: SlotName,
    /// The publications on the source.
    pub publications: Vec<String>,
    /// What was chosen to be moved when it was begun.
    pub selection: Selection,
    /// When it was begun, by the target's clock; `None` before.
    pub started_at: Option<PgTimestamp>,
}

impl MigrationRow {
    /// What is shown of it while nothing else is known.
    pub fn shown_phase(&self) -> Phase {
        self.ended.map_or(self.phase, RunEnd::phase)
    }
}

impl Store<'_> {
    /// The migration, if it was begun.
    pub async fn migration(&self) -> Result<Option<MigrationRow>> {
        // `status` may look at what an older Walferry made, where a column is missing.
        let sql =
            "SELECT name, format, dbname, phase, ended, method, error, system_id, slot_name, publications,
                       coalesce(to_jsonb(m) ->> 'method_reason', '') AS method_reason,
                       coalesce(to_jsonb(m) ->> 'dumped_at', '') AS dumped_at,
                       coalesce(to_jsonb(m) ->> 'selection', '{}') AS selection,
                       (extract(epoch FROM started_at) * 1000000)::bigint AS started_micros
                   FROM walferry.migration m WHERE name = $1";
        let row = self.client.query_opt(sql, &[&self.name]).await.map_err(failure)?;
        row.map(|row| migration(&row)).transpose()
    }

    /// Begins the migration.
    pub async fn begin(&self, row: &MigrationRow) -> Result<()> {
        let sql = "INSERT INTO walferry.migration
                       (name, format, dbname, phase, method, system_id, slot_name, publications, method_reason, selection)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::jsonb)";
        let (system_id, slot, method) = (row.system_id.to_string(), row.slot.as_str(), row.method.as_str());
        let selection = serde_json::to_string(&row.selection);
        let selection =
            selection.map_err(|error| damaged(format!("walferry.migration.selection: {error}")))?;
        let params: [&(dyn ToSql + Sync); 10] = [
            &self.name,
            &VERSION,
            &row.dbname,
            &row.phase.as_str(),
            &method,
            &system_id,
            &slot,
            &row.publications,
            &row.method_reason,
            &selection,
        ];
        self.execute(sql, &params).await
    }

    /// Records that a run is at work, and numbers it: what an earlier one still has under way is void from now on.
    ///
    /// This waits for copies that have looked at the number and are about to commit.
    pub async fn begin_attempt(&self) -> Result<i64> {
        let sql = "UPDATE walferry.migration SET attempt = attempt + 1, ended = '', error = '',
                       updated_at = pg_catalog.clock_timestamp()
                   WHERE name = $1 RETURNING attempt";
        Ok(self.one(sql, &[&self.name]).await?.get(0))
    }

    /// Whether the run of this number is still the last one, which stays so until the transaction ends.
    pub async fn lock_attempt(&self, attempt: i64) -> Result<bool> {
        let sql = attempt_lock(self.name, attempt);
        Ok(self.client.query_opt(sql.as_str(), &[]).await.map_err(failure)?.is_some())
    }

    /// Records when the snapshot was taken that was dumped.
    pub async fn set_dumped_at(&self, at: &str) -> Result<()> {
        self.execute("UPDATE walferry.migration SET dumped_at = $2 WHERE name = $1", &[&self.name, &at]).await
    }

    /// Records how the run ended.
    pub async fn set_ended(&self, ended: RunEnd, error: &str) -> Result<()> {
        let sql =
            "UPDATE walferry.migration SET ended = $2, error = $3, updated_at = pg_catalog.clock_timestamp()
                   WHERE name = $1";
        self.execute(sql, &[&self.name, &RunEnd::name_of(Some(ended)), &error]).await
    }

    /// Forgets the migration, and drops the schema when no other is left in it.
    pub async fn remove(&self) -> Result<()> {
        self.execute("DELETE FROM walferry.migration WHERE name = $1", &[&self.name]).await?;
        let others = self.one("SELECT count(*) FROM walferry.migration", &[]).await?;
        if others.get::<_, i64>(0) == 0 {
            self.client.batch_execute("DROP SCHEMA walferry CASCADE").await.map_err(failure)?;
        }
        Ok(())
    }
}

/// Gives a row where the run of this number is still the last one, and keeps it so until the transaction ends.
pub fn attempt_lock(migration: &str, attempt: i64) -> Sql {
    let sql = Sql::new("SELECT FROM walferry.migration WHERE name = ").literal(migration);
    sql.text(" AND attempt = ").number(attempt).text(" FOR SHARE")
}

fn migration(row: &Row) -> Result<MigrationRow> {
    let format: i32 = row.get("format");
    if format > VERSION {
        return Err(too_new(format));
    }
    let system_id = row.get::<_, &str>("system_id").parse().map(SystemId::new);
    let selection = serde_json::from_str(row.get("selection"));
    Ok(MigrationRow {
        name: row.get("name"),
        dbname: row.get("dbname"),
        phase: Phase::parse(row.get("phase"))?,
        ended: RunEnd::parse(row.get("ended"))?,
        method: row.get::<_, &str>("method").parse().map_err(damaged)?,
        method_reason: row.get("method_reason"),
        dumped_at: row.get("dumped_at"),
        error: row.get("error"),
        system_id: system_id.map_err(|_| damaged("walferry.migration.system_id is no number".to_owned()))?,
        slot: SlotName::new(row.get("slot_name")).map_err(|error| damaged(error.to_string()))?,
        publications: row.get("publications"),
        selection: selection.map_err(|error| damaged(format!("walferry.migration.selection: {error}")))?,
        started_at: Some(PgTimestamp::from_unix_micros(row.get("started_micros"))),
    })
}
