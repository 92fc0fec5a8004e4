//! The tables of schema `walferry`, and how they are made.

use super::{Store, definitions, failure};
use crate::error::Result;

/// Bumped when the tables below change in a way that an older Walferry cannot live with.
pub(super) const FORMAT: i32 = 1;

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

impl Store<'_> {
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
}
