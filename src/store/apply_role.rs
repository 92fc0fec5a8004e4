//! `walferry.apply_role`: the role that writes a migration's rows where its user should not; and the functions by which it
//! writes what belongs in the same transaction as rows.
//!
//! They run as the owner of the schema, and do one thing each. Code of the rows' owners runs as the role, too, and could call
//! them; so those that change something want a key that only the engine knows: see [`crate::apply::Writer`].

use super::{Store, failure};
use crate::config::Secret;
use crate::error::Result;
use crate::pg::Sql;

/// The progress of a batch: key, migration, and the parameters of the engine's own statement. Fails with a division by zero
/// if the row is not where this engine left it, or the key is another's.
pub const MOVE_PROGRESS: &str = "SELECT walferry.move_progress($9, $1, $2, $3, $4, $5, $6, $7, $8)";

/// What became of a copy: see [`super::set_relation`].
pub const RECORD_COPY: &str =
    "SELECT walferry.record_copy($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";

/// Whether a run is still the migration's, and stays it to the end of the transaction: gives a row, or none.
pub const HOLD_ATTEMPT: &str = "SELECT walferry.hold_attempt($1, $2)";

/// One at a time takes constraints away: see `migrate::copy::unchecked`.
pub const HOLD_CONSTRAINTS: &str = "SELECT walferry.hold_constraints()";

/// Becomes a replica, by the way that the schema's owner has.
pub const BECOME_REPLICA: &str = "SELECT walferry.become_replica()";

const FUNCTIONS: &str = "
CREATE OR REPLACE FUNCTION walferry.move_progress(text, text, pg_lsn, pg_lsn, float8, pg_lsn, pg_lsn, int8, int8)
    RETURNS int8 LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
    WITH moved AS (UPDATE walferry.progress SET end_lsn = $4, updated_at = clock_timestamp(),
        commit_time = coalesce(to_timestamp($5), commit_time), last_commit_lsn = coalesce($6, last_commit_lsn),
        last_end_lsn = coalesce($7, last_end_lsn), last_xid = coalesce($8, last_xid),
        last_commit_micros = coalesce($9, last_commit_micros)
        WHERE migration = $2 AND end_lsn = $3
            AND EXISTS (SELECT FROM walferry.apply_role r WHERE r.migration = $2 AND r.key = $1 AND $1 <> '')
        RETURNING 1)
    SELECT 1 / count(*) FROM moved $f$;
CREATE OR REPLACE FUNCTION walferry.record_copy(text, text, text, text, text, oid, oid, int2, jsonb, pg_lsn, int8, int8)
    RETURNS int8 LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
    WITH recorded AS (UPDATE walferry.relation SET state = $5, source_oid = $6, source_filenode = $7,
        source_attributes = $8, source_definition = $9, target_oid = to_regclass(format('%I.%I', $3, $4))::oid,
        copy_lsn = $10, rows_copied = $11, bytes_copied = $12
        WHERE migration = $2 AND schema_name = $3 AND table_name = $4
            AND EXISTS (SELECT FROM walferry.apply_role r WHERE r.migration = $2 AND r.key = $1 AND $1 <> '')
        RETURNING 1)
    SELECT 1 / count(*) FROM recorded $f$;
CREATE OR REPLACE FUNCTION walferry.hold_attempt(text, int8)
    RETURNS SETOF int LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
    SELECT 1 FROM walferry.migration WHERE name = $1 AND attempt = $2 FOR SHARE $f$;
CREATE OR REPLACE FUNCTION walferry.hold_constraints()
    RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
    LOCK TABLE walferry.replica_identity IN SHARE UPDATE EXCLUSIVE MODE $f$;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA walferry FROM PUBLIC";

impl Store<'_> {
    /// Whether the migration has a role that writes its rows, as it was seen to do; `None` where none was made.
    pub async fn apply_role(&self) -> Result<Option<bool>> {
        let there = "SELECT pg_catalog.to_regclass('walferry.apply_role') IS NOT NULL";
        if !self.one(there, &[]).await?.get::<_, bool>(0) {
            return Ok(None);
        }
        let sql = "SELECT proven FROM walferry.apply_role WHERE migration = $1";
        let row = self.client.query_opt(sql, &[&self.name]).await.map_err(failure)?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Makes what the role needs in the schema; `become_replica` is the statement by which the schema's owner becomes one.
    pub async fn create_for_apply_role(&self, become_replica: &Sql) -> Result<()> {
        let replica =
            Sql::new("CREATE OR REPLACE FUNCTION walferry.become_replica() RETURNS void LANGUAGE sql ")
                .text("SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS ")
                .literal(become_replica.as_str());
        let sql = replica.text(";").text(FUNCTIONS);
        self.client.batch_execute(sql.as_str()).await.map_err(failure)
    }

    /// The statement that notes that there is a role, for the transaction that makes it.
    pub fn note_apply_role(&self) -> Sql {
        Sql::new("INSERT INTO walferry.apply_role (migration) VALUES (")
            .literal(self.name)
            .text(") ON CONFLICT DO NOTHING")
    }

    /// Gives the role its rights here, and this key; the one that it had before is void.
    pub async fn set_apply_role(&self, role: &str, key: &Secret) -> Result<()> {
        let sql = "UPDATE walferry.apply_role SET key = $2 WHERE migration = $1";
        self.execute(sql, &[&self.name, &key.expose()]).await?;
        let grant = Sql::new("GRANT USAGE ON SCHEMA walferry TO ")
            .ident(role)
            .text("; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA walferry TO ")
            .ident(role)
            .text("; GRANT INSERT ON walferry.conflict TO ")
            .ident(role);
        self.client.batch_execute(grant.as_str()).await.map_err(failure)
    }

    /// Notes that the role has logged in: from now on nobody else writes the rows.
    pub async fn prove_apply_role(&self) -> Result<()> {
        self.execute("UPDATE walferry.apply_role SET proven = true WHERE migration = $1", &[&self.name]).await
    }

    /// Forgets the role.
    pub async fn forget_apply_role(&self) -> Result<()> {
        self.execute("DELETE FROM walferry.apply_role WHERE migration = $1", &[&self.name]).await
    }
}
