//! What Walferry remembers, all of it on the target: the schema `walferry` of each database.
//!
//! | table | one row for | written by |
//! |---|---|---|
//! | `migration` | a migration of this database | `migrate`, at each step |
//! | `made` | an object of the schema that is made | the transaction that made it |
//! | `relation` | a table of it | the copy; then constant |
//! | `progress` | a migration | each apply transaction, and rarely a keepalive |
//! | `definition` | an object of the source's schema, beside its tables | `migrate`, when the schema is made |
//! | `conflict` | a change that did not fit | apply |
//! | `replica_identity` | a table of the source whose replica identity was changed | `migrate`, before it is |
//! | `published` | a publication, or a table in one | `migrate`, when it publishes it |
//! | `large_object` | a large object that it made | the transaction that made it |
//! | `apply_role` | a migration whose rows a role of their own writes | `migrate` |
//! | `request` | something asked of the running engine | commands |
//!
//! `relation` also says which table of the source a name means: its identifier, which a new name does not change, and
//! from its copy its file and its definition, which tell whether it was rewritten or redefined since ([`AsCopied`]). They
//! may be NULL where an older Walferry began. `target_oid` is the target's table, whatever that is called by now.
//!
//! `conflict` has rows: the change's key, its row as the source has it and the target's row that is in its way, each an
//! object of the values' text. They are of type `json`, which takes what `jsonb` would not: values above 256 MB.
//!
//! Nothing else is needed to go on: a run may end on one machine and go on from another.

pub mod apply_role;
mod as_copied;
mod definitions;
mod leftovers;
pub(crate) mod lock;
mod progress;
mod requests;
mod roles;

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;

use crate::catalog::{self, Stranger, TargetClient};
use crate::config::{Method, Selection};
use crate::error::{Definite, Failure, Result, Side};
use crate::limits::ROWS_PER_STATEMENT;
use crate::pg::{Oid, PgTimestamp, QualifiedName, RelationId, SlotName, SourceLsn, Sql, SystemId};

pub use as_copied::{AsCopied, Drift};
pub use definitions::{RecordedObject, SchemaChange, SchemaDrift};
pub use requests::Request;

/// Bumped when the tables below change in a way that an older Walferry cannot live with.
const FORMAT: i32 = 1;

const CREATE: &str = "
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
CREATE TABLE IF NOT EXISTS walferry.made (
    migration     text NOT NULL REFERENCES walferry.migration ON DELETE CASCADE,
    key           text NOT NULL,
    digest        text NOT NULL DEFAULT '',
    PRIMARY KEY (migration, key)
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
    updated_at    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    last_commit_lsn    pg_lsn,
    last_end_lsn       pg_lsn,
    last_xid           bigint,
    last_commit_micros bigint,
    timeline           bigint
) WITH (fillfactor = 10);
CREATE TABLE IF NOT EXISTS walferry.role (
    migration     text NOT NULL REFERENCES walferry.migration ON DELETE CASCADE,
    name          text NOT NULL,
    PRIMARY KEY (migration, name)
);
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
CREATE TABLE IF NOT EXISTS walferry.published (
    migration     text NOT NULL REFERENCES walferry.migration ON DELETE CASCADE,
    publication   text NOT NULL,
    source_oid    oid NOT NULL,
    version       text NOT NULL,
    PRIMARY KEY (migration, publication, source_oid)
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
INSERT INTO walferry.made (migration, key)
    SELECT name, pg_catalog.unnest(post_data) FROM walferry.migration ON CONFLICT DO NOTHING;
ALTER TABLE walferry.migration ADD COLUMN IF NOT EXISTS method_reason text NOT NULL DEFAULT '';
ALTER TABLE walferry.migration ADD COLUMN IF NOT EXISTS selection jsonb NOT NULL DEFAULT '{}';
ALTER TABLE walferry.migration ADD COLUMN IF NOT EXISTS dumped_at text NOT NULL DEFAULT '';
ALTER TABLE walferry.role ADD COLUMN IF NOT EXISTS shut boolean NOT NULL DEFAULT false;
ALTER TABLE walferry.relation ADD COLUMN IF NOT EXISTS source_oid oid;
ALTER TABLE walferry.relation ADD COLUMN IF NOT EXISTS source_filenode oid;
ALTER TABLE walferry.relation ADD COLUMN IF NOT EXISTS source_attributes int2;
ALTER TABLE walferry.relation ADD COLUMN IF NOT EXISTS source_definition jsonb;
ALTER TABLE walferry.relation ADD COLUMN IF NOT EXISTS target_oid oid;
DO $do$ BEGIN
    -- Only where they are missing: the statement would wait for whoever holds a row of it.
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute
                   WHERE attrelid = 'walferry.progress'::regclass AND attname = 'timeline') THEN
        ALTER TABLE walferry.progress ADD COLUMN last_commit_lsn pg_lsn, ADD COLUMN last_end_lsn pg_lsn,
            ADD COLUMN last_xid bigint, ADD COLUMN last_commit_micros bigint, ADD COLUMN timeline bigint;
    END IF;
END $do$;
ALTER TABLE walferry.conflict DROP COLUMN IF EXISTS parameters;
ALTER TABLE walferry.conflict ADD COLUMN IF NOT EXISTS resolution text NOT NULL DEFAULT 'stopped';
ALTER TABLE walferry.conflict ADD COLUMN IF NOT EXISTS key json;
ALTER TABLE walferry.conflict ADD COLUMN IF NOT EXISTS source_row json;
ALTER TABLE walferry.conflict ADD COLUMN IF NOT EXISTS target_row json;
";

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
    /// What the table was on the source when it was copied; `None` where that is not known.
    pub origin: Option<Origin>,
    /// Its definition then; `None` before the copy, and where an older Walferry copied it.
    pub definition: Option<AsCopied>,
    /// The target's table: `pg_class.oid`, from the copy on.
    pub target_oid: Option<Oid>,
}

/// Which table of the source it is, and what it was when it was copied.
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
    client: &'a TargetClient,
    name: &'a str,
}

impl<'a> Store<'a> {
    /// Speaks for the migration `name`, through `client`.
    pub fn new(client: &'a TargetClient, name: &'a str) -> Self {
        Self { client, name }
    }

    /// The migration, if it was begun. This is what is asked first of a database: nothing of a stranger's is read.
    ///
    /// # Errors
    /// When the schema, or anything that is read in it, is a stranger's.
    pub async fn begun(&self) -> Result<Option<MigrationRow>> {
        self.refuse_stranger().await?;
        if self.exists().await? { self.migration().await } else { Ok(None) }
    }

    /// Who else's the schema, or anything that is read in it, is.
    pub async fn stranger(&self) -> Result<Option<Stranger>> {
        let found = catalog::stranger_with_our_schema(self.client).await;
        found.map_err(Failure::from)
    }

    /// # Errors
    /// When the schema, or anything that is read in it, is a stranger's.
    pub async fn refuse_stranger(&self) -> Result<()> {
        match self.stranger().await? {
            None => Ok(()),
            Some(stranger) => Err(Definite::new(stranger.cause()).hint(stranger.hint()).into()),
        }
    }

    /// Whether the schema is there.
    async fn exists(&self) -> Result<bool> {
        let row = self.one("SELECT pg_catalog.to_regclass('walferry.migration') IS NOT NULL", &[]).await?;
        Ok(row.get(0))
    }

    /// Makes the schema and its tables, where they are not there yet.
    ///
    /// # Errors
    /// When somebody else was faster, too.
    pub async fn create(&self) -> Result<()> {
        self.client.batch_execute("CREATE SCHEMA IF NOT EXISTS walferry").await.map_err(failure)?;
        // From here on nobody else can put anything there.
        self.refuse_stranger().await?;
        self.client.batch_execute(CREATE).await.map_err(failure)?;
        self.client.batch_execute(definitions::CREATE).await.map_err(failure)
    }

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

    /// What of the schema is made: the digest of each entry's definition by its key, empty where an older Walferry made it.
    pub async fn made(&self) -> Result<HashMap<String, String>> {
        let sql = "SELECT key, digest FROM walferry.made WHERE migration = $1";
        let rows = self.client.query(sql, &[&self.name]).await.map_err(failure)?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
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

    /// Records when the snapshot was taken that was dumped.
    pub async fn set_dumped_at(&self, at: &str) -> Result<()> {
        self.execute("UPDATE walferry.migration SET dumped_at = $2 WHERE name = $1", &[&self.name, &at]).await
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

    /// The tables.
    pub async fn relations(&self) -> Result<Vec<RelationRow>> {
        // `status` may look at what an older Walferry made, where the last columns are missing.
        let sql = "SELECT schema_name, table_name, state, copy_lsn, rows_copied, bytes_copied, rows_estimated, bytes_estimated,
                       (to_jsonb(r) ->> 'source_oid')::oid, (to_jsonb(r) ->> 'source_filenode')::oid,
                       (to_jsonb(r) ->> 'source_attributes')::int2, to_jsonb(r) ->> 'source_definition',
                       (to_jsonb(r) ->> 'target_oid')::oid
                   FROM walferry.relation r WHERE migration = $1 ORDER BY schema_name, table_name";
        let rows = self.client.query(sql, &[&self.name]).await.map_err(failure)?;
        rows.iter().map(relation).collect()
    }

    /// Records the tables to copy; those that are recorded already stay as they are.
    pub async fn begin_relations(&self, rows: &[RelationRow]) -> Result<()> {
        let sql = "INSERT INTO walferry.relation
                       (migration, schema_name, table_name, state, rows_estimated, bytes_estimated, source_oid,
                        source_filenode, source_attributes)
                   SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::oid[],
                       $8::oid[], $9::int2[]) ON CONFLICT DO NOTHING";
        for rows in rows.chunks(ROWS_PER_STATEMENT) {
            let (mut schemas, mut tables, mut states) = (Vec::new(), Vec::new(), Vec::new());
            let (mut estimates, mut bytes) = (Vec::new(), Vec::new());
            let (mut oids, mut filenodes, mut attributes) = (Vec::new(), Vec::new(), Vec::new());
            for row in rows {
                schemas.push(row.name.schema.as_str());
                tables.push(row.name.name.as_str());
                states.push(row.state.as_str());
                estimates.push(row.rows_estimated);
                bytes.push(row.bytes_estimated);
                let (oid, filenode, count) = origin_params(row.origin);
                oids.push(oid);
                filenodes.push(filenode);
                attributes.push(count);
            }
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 9] =
                [&self.name, &schemas, &tables, &states, &estimates, &bytes, &oids, &filenodes, &attributes];
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

    /// Records what a copied table is now on the source: its rows are those that were copied, and what the stream brought.
    pub async fn set_definition(
        &self,
        name: &QualifiedName,
        origin: Origin,
        definition: &AsCopied,
    ) -> Result<()> {
        let sql =
            "UPDATE walferry.relation SET source_oid = $4, source_filenode = $5, source_attributes = $6,
                       source_definition = $7::text::jsonb, target_oid = pg_catalog.to_regclass($8)::oid
                   WHERE migration = $1 AND schema_name = $2 AND table_name = $3 AND state = 'copied'";
        let (oid, filenode, attributes) = origin_params(Some(origin));
        let (definition, quoted) = (definition_text(definition), Sql::default().name(name).to_string());
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 8] =
            [&self.name, &name.schema, &name.name, &oid, &filenode, &attributes, &definition, &quoted];
        self.execute(sql, &params).await
    }

    /// Forgets a table: it is no part of the migration any more.
    pub async fn remove_relation(&self, name: &QualifiedName) -> Result<()> {
        let sql =
            "DELETE FROM walferry.relation WHERE migration = $1 AND schema_name = $2 AND table_name = $3";
        self.execute(sql, &[&self.name, &name.schema, &name.name]).await
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

    /// Records that tables were renamed, all at once: names may go round among them.
    pub async fn rename_relations(&self, renamed: &[(&QualifiedName, &QualifiedName)]) -> Result<()> {
        let mut sql = Sql::new("BEGIN");
        let rename = |sql: Sql, from: (&str, &str), to: (&str, &str)| {
            let sql = sql.text("; UPDATE walferry.relation SET schema_name = ").literal(to.0);
            let sql =
                sql.text(", table_name = ").literal(to.1).text(" WHERE migration = ").literal(self.name);
            sql.text(" AND schema_name = ").literal(from.0).text(" AND table_name = ").literal(from.1)
        };
        // No table has an empty schema.
        let places: Vec<String> = (0..renamed.len()).map(|place| place.to_string()).collect();
        for (place, (from, _)) in places.iter().zip(renamed) {
            sql = rename(sql, (&from.schema, &from.name), ("", place));
        }
        for (place, (_, to)) in places.iter().zip(renamed) {
            sql = rename(sql, ("", place), (&to.schema, &to.name));
        }
        self.client.batch_execute(sql.text("; COMMIT").as_str()).await.map_err(failure)
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

    /// Records that these tables are as the stream goes on with them, though they were to be copied again.
    pub async fn keep(&self, names: &[QualifiedName]) -> Result<()> {
        let sql = "UPDATE walferry.relation r SET state = 'copied' FROM unnest($2::text[], $3::text[]) k (schema_name, table_name)
                   WHERE r.migration = $1 AND r.state = 'copying' AND r.copy_lsn IS NOT NULL
                       AND r.schema_name = k.schema_name AND r.table_name = k.table_name";
        let (schemas, tables): (Vec<&str>, Vec<&str>) =
            names.iter().map(|name| (name.schema.as_str(), name.name.as_str())).unzip();
        self.execute(sql, &[&self.name, &schemas, &tables]).await
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

    /// Forgets the migration, and drops the schema when no other is left in it.
    pub async fn remove(&self) -> Result<()> {
        self.execute("DELETE FROM walferry.migration WHERE name = $1", &[&self.name]).await?;
        let others = self.one("SELECT count(*) FROM walferry.migration", &[]).await?;
        if others.get::<_, i64>(0) == 0 {
            self.client.batch_execute("DROP SCHEMA walferry CASCADE").await.map_err(failure)?;
        }
        Ok(())
    }

    pub(super) fn client(&self) -> &'a TargetClient {
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

/// The statement that records that entries of the schema are made, for the transaction that makes them: key and digest.
pub fn note_made<'a>(migration: &str, made: impl IntoIterator<Item = (&'a str, String)>) -> Sql {
    Sql::new("INSERT INTO walferry.made (migration, key, digest) VALUES ")
        .list(made, ", ", |sql, (key, digest)| {
            sql.text("(").literal(migration).text(", ").literal(key).text(", ").literal(&digest).text(")")
        })
        .text(" ON CONFLICT (migration, key) DO UPDATE SET digest = excluded.digest")
}

/// The statement that records what became of a table's copy, for the transaction that copies it: what the source's table
/// was, and which one of the target has its rows.
pub fn set_relation(migration: &str, row: &RelationRow) -> Sql {
    let sql = Sql::new("UPDATE walferry.relation SET state = ").literal(row.state.as_str());
    let sql = match row.origin {
        Some(origin) => sql
            .text(", source_oid = ")
            .number(origin.id.get())
            .text(", source_filenode = ")
            .number(origin.filenode)
            .text(", source_attributes = ")
            .number(origin.attributes),
        None => sql,
    };
    let sql = match &row.definition {
        Some(definition) => sql.text(", source_definition = ").literal(&definition_text(definition)),
        None => sql.text(", source_definition = NULL"),
    };
    let name = Sql::default().name(&row.name).to_string();
    let sql = sql.text(", target_oid = pg_catalog.to_regclass(").literal(&name).text(")::oid");
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
        dumped_at: row.get("dumped_at"),
        error: row.get("error"),
        system_id: system_id.map_err(|_| damaged("walferry.migration.system_id is no number".to_owned()))?,
        slot: SlotName::new(row.get("slot_name")).map_err(|error| damaged(error.to_string()))?,
        publications: row.get("publications"),
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
        definition: match row.get::<_, Option<&str>>(11).map(serde_json::from_str).transpose() {
            Ok(definition) => definition,
            Err(error) => return Err(damaged(format!("walferry.relation.source_definition: {error}"))),
        },
        target_oid: row.get::<_, Option<u32>>(12).map(Oid::new),
    })
}

/// As `walferry.relation` has it.
pub fn definition_text(definition: &AsCopied) -> String {
    serde_json::to_string(definition).expect("plain data becomes JSON")
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

pub(super) fn damaged(detail: String) -> Failure {
    Definite::new("walferry's own tables on the target are damaged")
        .detail(detail)
        .hint("start afresh after `walferry remove --force`")
        .into()
}

pub(super) fn failure(error: tokio_postgres::Error) -> Failure {
    if matches!(error.code(), Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME)) {
        return forgotten(error.as_db_error().map_or("", |error| error.message())).into();
    }
    catalog::Error::new(Side::Target, "the schema walferry", error).into()
}

/// What a migration was begun with is not there any more. To begin afresh would leave its slot on the source, and count as
/// whole what the target has of the rows.
pub(crate) fn forgotten(detail: &str) -> Definite {
    Definite::new("the target has lost what it knew of this migration: schema walferry")
        .detail(if detail.is_empty() {
            "a failover to a standby that lacked it, or somebody dropped it"
        } else {
            detail
        })
        .hint(
            "drop what is left on the source: `walferry remove --force`, with the --name of the migration; then empty the target's \
             database, and start afresh: `walferry migrate`",
        )
}
