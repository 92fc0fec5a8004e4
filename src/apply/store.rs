//! What Walferry remembers, all of it on the target: the schema `walferry` of each database.
//!
//! | table | one row for | written by |
//! |---|---|---|
//! | `migration` | a migration of this database | `migrate`, at each step |
//! | `relation` | a table of it | the copy; then constant |
//! | `progress` | a migration | each apply transaction, and rarely a keepalive |
//! | `conflict` | a change that did not fit | apply |
//! | `replica_identity` | a table of the source whose replica identity was changed | `migrate`, before it is |
//! | `large_object` | a large object that it made | the transaction that made it |
//! | `request` | something asked of the running engine | commands |
//!
//! `relation` also says which table of the source a name means: its identifier, which a new name does not change, and
//! from before the copy its file and the number of its columns, which tell whether it was rewritten since. They may be
//! NULL where an older Walferry began.
//!
//! `conflict` has rows: the change's key, its row as the source has it and the target's row that is in its way, each an
//! object of the values' text. They are of type `json`, which takes what `jsonb` would not: values above 256 MB.
//!
//! Nothing else is needed to go on: a run may end on one machine and go on from another.

use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use crate::config::{Method, Selection};
use crate::error::{Definite, Failure, Result, Side};
use crate::pg::{EndLsn, PgTimestamp, QualifiedName, RelationId, SlotName, SourceLsn, Sql, SystemId};
use crate::source;

/// Bumped when the tables below change in a way that an older Walferry cannot live with.
const FORMAT: i32 = 1;

const CREATE: &str = "
CREATE SCHEMA IF NOT EXISTS walferry;
CREATE TABLE IF NOT EXISTS walferry.migration (
    name          text PRIMARY KEY,
    format        int NOT NULL,
    dbname        text NOT NULL,
    phase         text NOT NULL,
    method        text NOT NULL,
    ended         text NOT NULL DEFAULT '',
    attempt       bigint NOT NULL DEFAULT 0,
    error         text NOT NULL DEFAULT '',
    system_id     text NOT NULL,
    slot_name     text NOT NULL,
    publications  text[] NOT NULL,
    post_data     text[] NOT NULL DEFAULT '{}',
    started_at    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE TABLE IF NOT EXISTS walferry.relation (
    migration     text NOT NULL REFERENCES walferry.migration ON DELETE CASCADE,
    schema_name   text NOT NULL,
    table_name    text NOT NULL,
    state         text NOT NULL,
    copy_lsn      pg_lsn,
    rows_copied   bigint NOT NULL DEFAULT 0,
    bytes_copied  bigint NOT NULL DEFAULT 0,
    rows_estimated  bigint NOT NULL DEFAULT 0,
    bytes_estimated bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (migration, schema_name, table_name)
);
CREATE TABLE IF NOT EXISTS walferry.progress (
    migration     text PRIMARY KEY REFERENCES walferry.migration ON DELETE CASCADE,
    end_lsn       pg_lsn NOT NULL,
    commit_time   timestamptz,
    updated_at    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
) WITH (fillfactor = 10);
CREATE TABLE IF NOT EXISTS walferry.conflict (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration     text NOT NULL REFERENCES walferry.migration ON DELETE CASCADE,
    recorded_at   timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    commit_lsn    pg_lsn NOT NULL,
    schema_name   text NOT NULL,
    table_name    text NOT NULL,
    kind          text NOT NULL,
    statement     text NOT NULL
);
CREATE TABLE IF NOT EXISTS walferry.replica_identity (
    migration     text NOT NULL REFERENCES walferry.migration ON DELETE CASCADE,
    source_oid    oid NOT NULL,
    schema_name   text NOT NULL,
    table_name    text NOT NULL,
    previous      text NOT NULL,
    PRIMARY KEY (migration, source_oid)
);
CREATE TABLE IF NOT EXISTS walferry.large_object (
    migration     text NOT NULL REFERENCES walferry.migration ON DELETE CASCADE,
    id            oid NOT NULL,
    PRIMARY KEY (migration, id)
);
CREATE TABLE IF NOT EXISTS walferry.request (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration     text NOT NULL REFERENCES walferry.migration ON DELETE CASCADE,
    command       text NOT NULL,
    arguments     jsonb NOT NULL DEFAULT '{}',
    requested_at  timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    answered_at   timestamptz,
    answer        jsonb
);
ALTER TABLE walferry.migration ADD COLUMN IF NOT EXISTS method_reason text NOT NULL DEFAULT '';
ALTER TABLE walferry.migration ADD COLUMN IF NOT EXISTS selection jsonb NOT NULL DEFAULT '{}';
ALTER TABLE walferry.relation ADD COLUMN IF NOT EXISTS source_oid oid;
ALTER TABLE walferry.relation ADD COLUMN IF NOT EXISTS source_filenode oid;
ALTER TABLE walferry.relation ADD COLUMN IF NOT EXISTS source_attributes int2;
ALTER TABLE walferry.conflict DROP COLUMN IF EXISTS parameters;
ALTER TABLE walferry.conflict ADD COLUMN IF NOT EXISTS resolution text NOT NULL DEFAULT 'stopped';
ALTER TABLE walferry.conflict ADD COLUMN IF NOT EXISTS key json;
ALTER TABLE walferry.conflict ADD COLUMN IF NOT EXISTS source_row json;
ALTER TABLE walferry.conflict ADD COLUMN IF NOT EXISTS target_row json;
REVOKE ALL ON ALL TABLES IN SCHEMA walferry FROM PUBLIC";

/// `walferry.migration`'s row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationRow {
    /// The migration's name.
    pub name: String,
    /// The database, by its name on the source.
    pub dbname: String,
    /// The phase that the work is in.
    pub phase: String,
    /// How the last run ended: `failed`, `stopped`, or empty while one is at work (or was killed).
    pub ended: String,
    /// How it is moved.
    pub method: Method,
    /// Why it is moved by [`Method::PgDump`] though nobody asked for that; else empty.
    pub method_reason: String,
    /// What ended the last run, if a failure did.
    pub error: String,
    /// The source cluster.
    pub system_id: SystemId,
    /// The slot on the source.
    pub slot: SlotName,
    /// The publications on the source.
    pub publications: Vec<String>,
    /// The entries of the dump's post-data section that are already made.
    pub post_data: Vec<String>,
    /// What was chosen to be moved when it was begun.
    pub selection: Selection,
    /// When it was begun, by the target's clock; `None` before.
    pub started_at: Option<PgTimestamp>,
}

/// `walferry.relation`'s row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationRow {
    /// The table.
    pub name: QualifiedName,
    /// Where it is.
    pub state: RelationState,
    /// The snapshot that its copy was made on: later transactions are streamed.
    pub copy_lsn: Option<SourceLsn>,
    /// Rows copied.
    pub rows_copied: i64,
    /// Bytes copied, as they went over the wire.
    pub bytes_copied: i64,
    /// Rows that were expected.
    pub rows_estimated: i64,
    /// Bytes that were expected, as the table takes on disk.
    pub bytes_estimated: i64,
    /// What the table was on the source before it was copied; `None` where that is not known.
    pub origin: Option<Origin>,
}

/// Which table of the source it is, and what it was before it was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// `pg_class.oid`.
    pub id: RelationId,
    /// `pg_class.relfilenode`: another one now means that the table was rewritten or emptied since.
    pub filenode: u32,
    /// `pg_class.relnatts`: columns with greater numbers were added since.
    pub attributes: i16,
}

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

/// Where one table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RelationState {
    /// Not begun.
    Waiting,
    /// Being copied; after a restart it is copied afresh.
    Copying,
    /// Copied; changes after `copy_lsn` are streamed to it.
    Copied,
}

impl RelationState {
    /// The name, as stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Copying => "copying",
            Self::Copied => "copied",
        }
    }

    fn parse(text: &str) -> Result<Self> {
        [Self::Waiting, Self::Copying, Self::Copied]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| damaged(format!("walferry.relation holds the unknown state {text:?}")))
    }
}

/// Reads and writes one migration's rows.
#[derive(Debug)]
pub struct Store<'a> {
    client: &'a Client,
    name: &'a str,
}

impl<'a> Store<'a> {
    /// Speaks for the migration `name`, through `client`.
    pub fn new(client: &'a Client, name: &'a str) -> Self {
        Self { client, name }
    }

    /// Whether the schema is there.
    pub async fn exists(&self) -> Result<bool> {
        let row = self.one("SELECT pg_catalog.to_regclass('walferry.migration') IS NOT NULL", &[]).await?;
        Ok(row.get(0))
    }

    /// Makes the schema and its tables, where they are not there yet.
    pub async fn create(&self) -> Result<()> {
        self.client.batch_execute(CREATE).await.map_err(failure)
    }

    /// The migration, if it was begun.
    pub async fn migration(&self) -> Result<Option<MigrationRow>> {
        // `status` may look at what an older Walferry made, where a column is missing.
        let sql = "SELECT name, format, dbname, phase, ended, method, error, system_id, slot_name, publications, post_data,
                       coalesce(to_jsonb(m) ->> 'method_reason', '') AS method_reason,
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
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 10] = [
            &self.name,
            &FORMAT,
            &row.dbname,
            &row.phase,
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

    /// Records the phase.
    pub async fn set_phase(&self, phase: &str) -> Result<()> {
        let sql = "UPDATE walferry.migration SET phase = $2, updated_at = pg_catalog.clock_timestamp() WHERE name = $1";
        self.execute(sql, &[&self.name, &phase]).await
    }

    /// Records how the run ended.
    pub async fn set_ended(&self, ended: &str, error: &str) -> Result<()> {
        let sql =
            "UPDATE walferry.migration SET ended = $2, error = $3, updated_at = pg_catalog.clock_timestamp()
                   WHERE name = $1";
        self.execute(sql, &[&self.name, &ended, &error]).await
    }

    /// Records the position that the stream starts from: the slot's consistent point.
    pub async fn begin_progress(&self, at: EndLsn) -> Result<()> {
        let sql = "INSERT INTO walferry.progress (migration, end_lsn) VALUES ($1, $2)";
        self.execute(sql, &[&self.name, &PgLsn::from(at.get())]).await
    }

    /// The position to resume from, and when its transaction committed; `None` before the slot was made.
    pub async fn progress(&self) -> Result<Option<(EndLsn, Option<PgTimestamp>)>> {
        let sql = "SELECT end_lsn, (extract(epoch FROM commit_time) * 1000000)::bigint
                   FROM walferry.progress WHERE migration = $1";
        let row = self.client.query_opt(sql, &[&self.name]).await.map_err(failure)?;
        Ok(row.map(|row| {
            let time = row.get::<_, Option<i64>>(1).map(PgTimestamp::from_unix_micros);
            (EndLsn::new(u64::from(row.get::<_, PgLsn>(0))), time)
        }))
    }

    /// The tables.
    pub async fn relations(&self) -> Result<Vec<RelationRow>> {
        // `status` may look at what an older Walferry made, where the last columns are missing.
        let sql = "SELECT schema_name, table_name, state, copy_lsn, rows_copied, bytes_copied, rows_estimated, bytes_estimated,
                       (to_jsonb(r) ->> 'source_oid')::oid, (to_jsonb(r) ->> 'source_filenode')::oid,
                       (to_jsonb(r) ->> 'source_attributes')::int2
                   FROM walferry.relation r WHERE migration = $1 ORDER BY schema_name, table_name";
        let rows = self.client.query(sql, &[&self.name]).await.map_err(failure)?;
        rows.iter().map(relation).collect()
    }

    /// Records the tables to copy; those that are recorded already stay as they are.
    pub async fn begin_relations(&self, rows: &[RelationRow]) -> Result<()> {
        let sql = "INSERT INTO walferry.relation
                       (migration, schema_name, table_name, state, rows_estimated, bytes_estimated, source_oid,
                        source_filenode, source_attributes)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING";
        for row in rows {
            let (schema, table, state) = (&row.name.schema, &row.name.name, row.state.as_str());
            let (oid, filenode, attributes) = origin_params(row.origin);
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 9] = [
                &self.name,
                schema,
                table,
                &state,
                &row.rows_estimated,
                &row.bytes_estimated,
                &oid,
                &filenode,
                &attributes,
            ];
            self.execute(sql, &params).await?;
        }
        Ok(())
    }

    /// Records which table of the source a name means now, and what it is before it is copied.
    pub async fn set_origin(&self, name: &QualifiedName, origin: Origin) -> Result<()> {
        let sql = "UPDATE walferry.relation SET source_oid = $4, source_filenode = $5, source_attributes = $6
                   WHERE migration = $1 AND schema_name = $2 AND table_name = $3";
        let (oid, filenode, attributes) = origin_params(Some(origin));
        self.execute(sql, &[&self.name, &name.schema, &name.name, &oid, &filenode, &attributes]).await
    }

    /// Records which table of the source a name means, where that is not known yet.
    pub async fn set_identity(&self, name: &QualifiedName, id: RelationId) -> Result<()> {
        let sql = "UPDATE walferry.relation SET source_oid = $4
                   WHERE migration = $1 AND schema_name = $2 AND table_name = $3 AND source_oid IS NULL";
        self.execute(sql, &[&self.name, &name.schema, &name.name, &id.get()]).await
    }

    /// Records that a table was renamed on both sides.
    pub async fn rename_relation(&self, from: &QualifiedName, to: &QualifiedName) -> Result<()> {
        let sql = "UPDATE walferry.relation SET schema_name = $4, table_name = $5
                   WHERE migration = $1 AND schema_name = $2 AND table_name = $3";
        self.execute(sql, &[&self.name, &from.schema, &from.name, &to.schema, &to.name]).await
    }

    /// Records that a table has to be copied again, emptied before.
    pub async fn copy_again(&self, name: &QualifiedName) -> Result<()> {
        let sql = "UPDATE walferry.relation SET state = 'copying'
                   WHERE migration = $1 AND schema_name = $2 AND table_name = $3 AND state <> 'waiting'";
        self.execute(sql, &[&self.name, &name.schema, &name.name]).await
    }

    /// How many changes were left out since they did not fit.
    pub async fn skipped_conflicts(&self) -> Result<i64> {
        let sql = "SELECT count(*) FROM walferry.conflict WHERE migration = $1 AND resolution = 'skipped'";
        Ok(self.one(sql, &[&self.name]).await?.get(0))
    }

    /// Records that the tables that were copied again are as they should be.
    pub async fn keep_copied_again(&self) -> Result<()> {
        let sql = "UPDATE walferry.relation SET state = 'copied'
                   WHERE migration = $1 AND state = 'copying' AND copy_lsn IS NOT NULL";
        self.execute(sql, &[&self.name]).await
    }

    /// Records what became of a table's copy.
    pub async fn set_relation(&self, row: &RelationRow) -> Result<()> {
        self.client.batch_execute(set_relation(self.name, row).as_str()).await.map_err(failure)
    }

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

    /// Forgets the migration, and drops the schema when no other is left in it.
    pub async fn remove(&self) -> Result<()> {
        self.execute("DELETE FROM walferry.migration WHERE name = $1", &[&self.name]).await?;
        let others = self.one("SELECT count(*) FROM walferry.migration", &[]).await?;
        if others.get::<_, i64>(0) == 0 {
            self.client.batch_execute("DROP SCHEMA walferry CASCADE").await.map_err(failure)?;
        }
        Ok(())
    }

    pub(super) fn client(&self) -> &'a Client {
        self.client
    }

    pub(super) fn name(&self) -> &'a str {
        self.name
    }

    pub(super) async fn one(
        &self,
        sql: &str,
        params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Row> {
        self.client.query_one(sql, params).await.map_err(failure)
    }

    pub(super) async fn execute(
        &self,
        sql: &str,
        params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<()> {
        self.client.execute(sql, params).await.map(|_| ()).map_err(failure)
    }
}

/// The statement that records what became of a table's copy, for the transaction that copies it.
pub fn set_relation(migration: &str, row: &RelationRow) -> Sql {
    let sql = Sql::new("UPDATE walferry.relation SET state = ").literal(row.state.as_str());
    let sql = match row.copy_lsn {
        Some(lsn) => sql.text(", copy_lsn = ").literal(&lsn.to_string()),
        None => sql.text(", copy_lsn = NULL"),
    };
    sql.text(", rows_copied = ")
        .number(row.rows_copied)
        .text(", bytes_copied = ")
        .number(row.bytes_copied)
        .text(" WHERE migration = ")
        .literal(migration)
        .text(" AND schema_name = ")
        .literal(&row.name.schema)
        .text(" AND table_name = ")
        .literal(&row.name.name)
}

fn migration(row: &Row) -> Result<MigrationRow> {
    let format: i32 = row.get("format");
    if format != FORMAT {
        return Err(Definite::new("the migration was begun by another version of walferry")
            .detail(format!("schema walferry has format {format}, this version knows {FORMAT}"))
            .hint("go on with the version that began it, or start afresh after `walferry remove --force`")
            .into());
    }
    let system_id = row.get::<_, &str>("system_id").parse().map(SystemId::new);
    let selection = serde_json::from_str(row.get("selection"));
    Ok(MigrationRow {
        name: row.get("name"),
        dbname: row.get("dbname"),
        phase: row.get("phase"),
        ended: row.get("ended"),
        method: row.get::<_, &str>("method").parse().map_err(damaged)?,
        method_reason: row.get("method_reason"),
        error: row.get("error"),
        system_id: system_id.map_err(|_| damaged("walferry.migration.system_id is no number".to_owned()))?,
        slot: SlotName::new(row.get("slot_name")).map_err(|error| damaged(error.to_string()))?,
        publications: row.get("publications"),
        post_data: row.get("post_data"),
        selection: selection.map_err(|error| damaged(format!("walferry.migration.selection: {error}")))?,
        started_at: Some(PgTimestamp::from_unix_micros(row.get("started_micros"))),
    })
}

fn relation(row: &Row) -> Result<RelationRow> {
    Ok(RelationRow {
        name: QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        state: RelationState::parse(row.get(2))?,
        copy_lsn: row.get::<_, Option<PgLsn>>(3).map(|lsn| SourceLsn::new(lsn.into())),
        rows_copied: row.get(4),
        bytes_copied: row.get(5),
        rows_estimated: row.get(6),
        bytes_estimated: row.get(7),
        origin: origin(row),
    })
}

/// All of it or nothing, but for the identifier, which alone says nothing of a rewritten file: zero is no file's.
fn origin(row: &Row) -> Option<Origin> {
    let id = row.get::<_, Option<u32>>(8).map(RelationId::new)?;
    let (filenode, attributes): (Option<u32>, Option<i16>) = (row.get(9), row.get(10));
    Some(Origin { id, filenode: filenode.unwrap_or(0), attributes: attributes.unwrap_or(i16::MAX) })
}

fn origin_params(origin: Option<Origin>) -> (Option<u32>, Option<u32>, Option<i16>) {
    let known = |origin: &Origin| (origin.id.get(), origin.filenode, origin.attributes);
    let known = origin.as_ref().map(known);
    (known.map(|known| known.0), known.map(|known| known.1), known.map(|known| known.2))
}

fn damaged(detail: String) -> Failure {
    Definite::new("walferry's own tables on the target are damaged")
        .detail(detail)
        .hint("start afresh after `walferry remove --force`")
        .into()
}

pub(super) fn failure(error: tokio_postgres::Error) -> Failure {
    source::Error::new("the schema walferry", error).into_failure(Side::Target)
}
