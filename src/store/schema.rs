//! The versions of schema `walferry`, and what leads from each to the next.
//!
//! `walferry.version` has one row: how many of [`UPGRADES`] the schema has been through. A schema without that table is of a
//! release before versions were counted; the first upgrade makes of it what the last of those releases had. The column
//! `format` of `walferry.migration` repeats the number, since those releases look there, and leave alone what is newer.
//!
//! An engine upgrades the schema when it begins. Commands that only read do not: what they read they find in every version
//! from the first one on, or do without.

use super::{Store, failure};
use crate::error::{Definite, Failure, Result};

/// The version that this program makes and works with.
pub(super) const VERSION: i32 = UPGRADES.len() as i32;

/// From each version to the next; the first one from nothing. What a release had is never changed: another upgrade follows.
const UPGRADES: [&str; 2] = [UNCOUNTED, APPLY_ROLE];

/// Releases before versions were counted made these tables in several shapes: whatever is missing is added.
const UNCOUNTED: &str = "
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
CREATE TABLE IF NOT EXISTS walferry.definition (
    migration     text NOT NULL REFERENCES walferry.migration ON DELETE CASCADE,
    kind          text NOT NULL,
    schema_name   text NOT NULL,
    table_name    text NOT NULL,
    name          text NOT NULL,
    source_oid    oid NOT NULL,
    statement     text
);
ALTER TABLE walferry.migration ADD COLUMN IF NOT EXISTS definitions_at timestamptz;
ALTER TABLE walferry.migration ADD COLUMN IF NOT EXISTS schema_drift jsonb;
";

/// Rows that a role of their own writes.
const APPLY_ROLE: &str = "
CREATE TABLE IF NOT EXISTS walferry.apply_role (
    migration     text PRIMARY KEY REFERENCES walferry.migration ON DELETE CASCADE,
    key           text NOT NULL DEFAULT '',
    proven        boolean NOT NULL DEFAULT false
);
";

impl Store<'_> {
    /// Makes the schema, or makes it of this program's version. All upgrades are one transaction, which runs beside no other
    /// one of its kind. The session is used for nothing else meanwhile.
    ///
    /// # Errors
    /// When the schema is a stranger's, or of a later version: then nothing is changed.
    pub async fn create(&self) -> Result<()> {
        self.run("CREATE SCHEMA IF NOT EXISTS walferry").await?;
        // From here on nobody else can put anything there.
        self.refuse_stranger().await?;
        self.run(
            "CREATE TABLE IF NOT EXISTS walferry.version (only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row), \
             number int NOT NULL)",
        )
        .await?;
        if self.version().await? == VERSION {
            return Ok(());
        }
        self.run("BEGIN; LOCK TABLE walferry.version IN EXCLUSIVE MODE").await?;
        let upgraded = self.upgrade().await;
        let ended = self.run(if upgraded.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
        upgraded.and(ended)
    }

    async fn upgrade(&self) -> Result<()> {
        // Another one may have done it while we waited.
        let found = self.version().await?;
        for (number, upgrade) in (1..).zip(UPGRADES).filter(|(number, _)| *number > found) {
            self.run(upgrade).await?;
            tracing::debug!(version = number, "schema walferry upgraded");
        }
        self.run("REVOKE ALL ON ALL TABLES IN SCHEMA walferry FROM PUBLIC").await?;
        self.execute("UPDATE walferry.migration SET format = $1", &[&VERSION]).await?;
        let sql = "INSERT INTO walferry.version (number) VALUES ($1)
                   ON CONFLICT (only_row) DO UPDATE SET number = excluded.number";
        self.execute(sql, &[&VERSION]).await
    }

    /// Zero where versions were not counted.
    async fn version(&self) -> Result<i32> {
        let row = self.one("SELECT coalesce(max(number), 0) FROM walferry.version", &[]).await?;
        let version = row.get(0);
        if version > VERSION { Err(too_new(version)) } else { Ok(version) }
    }

    async fn run(&self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.map_err(failure)
    }
}

/// Only a later program knows what is remembered there.
pub(super) fn too_new(version: i32) -> Failure {
    Definite::new("the migration was begun by another version of walferry")
        .detail(format!("schema walferry is of version {version}, this program knows up to {VERSION}"))
        .hint("go on with the program that began it, or a later one; or start afresh after `walferry remove --force`")
        .into()
}
