//! Replication slots, WAL positions and walsenders.
//!
//! All of it comes from views that show the same to every user: `pg_replication_slots`, and of `pg_stat_replication`
//! only which processes there are (its positions are hidden from the unprivileged).

use super::{Error, SourceClient, ask, dialect};
use crate::pg::{SourceLsn, Sql};
use crate::source::SlotInfo;

/// Room for replication on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicationRoom {
    /// Slots that can still be made.
    pub slots: u64,
    /// Walsenders that can still begin.
    pub wal_senders: u64,
}

/// Every slot of the cluster.
///
/// # Errors
/// When the server does not answer.
pub async fn slots(client: &SourceClient) -> Result<Vec<SlotInfo>, Error> {
    read(client, "", &[]).await
}

/// The slot `name`, if there is one.
///
/// # Errors
/// When the server does not answer.
pub async fn slot(client: &SourceClient, name: &str) -> Result<Option<SlotInfo>, Error> {
    Ok(read(client, " WHERE s.slot_name = $1::text", &[&name]).await?.pop())
}

/// Slots of the current database that are not temporary and whose names match `pattern`, each with whether it is in use.
///
/// # Errors
/// When the server does not answer.
pub async fn slots_named(client: &SourceClient, pattern: &str) -> Result<Vec<(String, bool)>, Error> {
    let sql = Sql::new(
        "SELECT slot_name::text AS name, active FROM pg_replication_slots \
         WHERE slot_name ~ $1::text AND database = current_database() AND NOT temporary ORDER BY 1",
    );
    let rows = ask::rows(client, "the replication slots", &sql, &[&pattern]).await?;
    rows.iter().map(|row| Ok((row.get("name")?, row.get("active")?))).collect()
}

/// How many temporary slots there are for copies of ours, of any migration: they go away by themselves.
///
/// # Errors
/// When the server does not answer.
pub async fn passing_slots(client: &SourceClient) -> Result<u64, Error> {
    let sql = Sql::new(
        "SELECT count(*) AS count FROM pg_replication_slots WHERE temporary AND slot_name LIKE 'walferry\\_%\\_copy'",
    );
    ask::row(client, "the temporary slots", &sql, &[]).await?.count("count")
}

/// Drops a slot.
///
/// # Errors
/// When it is in use or not there, or the server does not answer.
pub async fn drop_slot(client: &SourceClient, name: &str) -> Result<(), Error> {
    let sql = Sql::new("SELECT pg_drop_replication_slot($1::text)");
    ask::rows(client, "the end of a slot", &sql, &[&name]).await.map(|_| ())
}

/// Ends the session that has a temporary slot; says whether there is one.
///
/// # Errors
/// When the session is not the current user's to end, or the server does not answer.
pub async fn end_temporary_slot(client: &SourceClient, name: &str) -> Result<bool, Error> {
    let sql = Sql::new(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1::text AND temporary",
    );
    Ok(!ask::rows(client, "an old temporary slot", &sql, &[&name]).await?.is_empty())
}

/// How far the source's WAL is flushed; on a standby, replayed.
///
/// # Errors
/// When the server does not answer.
pub async fn current_wal(client: &SourceClient) -> Result<SourceLsn, Error> {
    let sql = Sql::new(
        "SELECT coalesce(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
         ELSE pg_current_wal_flush_lsn() END, '0/0')::text AS lsn",
    );
    ask::row(client, "the WAL position", &sql, &[]).await?.parse("lsn")
}

/// How many walsenders there are, of any user.
///
/// # Errors
/// When the server does not answer.
pub async fn wal_senders_used(client: &SourceClient) -> Result<u64, Error> {
    let sql = Sql::new("SELECT count(*) AS used FROM pg_stat_replication");
    ask::row(client, "the walsenders", &sql, &[]).await?.count("used")
}

/// What is left of `max_replication_slots`, and of `max_wal_senders`.
///
/// # Errors
/// When the server does not answer.
pub async fn replication_room(client: &SourceClient) -> Result<ReplicationRoom, Error> {
    let sql = Sql::new(
        "SELECT greatest(0, current_setting('max_replication_slots')::int8 \
         - (SELECT count(*) FROM pg_replication_slots)) AS slots, \
         greatest(0, current_setting('max_wal_senders')::int8 \
         - (SELECT count(*) FROM pg_stat_replication)) AS wal_senders",
    );
    let row = ask::row(client, "the room for another slot", &sql, &[]).await?;
    Ok(ReplicationRoom { slots: row.count("slots")?, wal_senders: row.count("wal_senders")? })
}

async fn read(
    client: &SourceClient,
    filter: &'static str,
    params: &[ask::Param<'_>],
) -> Result<Vec<SlotInfo>, Error> {
    let sql = Sql::new(
        "SELECT s.slot_name::text AS name, s.plugin::text AS plugin, s.slot_type, s.database::text AS database, \
         s.temporary, s.active, s.active_pid, s.restart_lsn::text AS restart_lsn, \
         s.confirmed_flush_lsn::text AS confirmed_flush_lsn, \
         greatest(0, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
         ELSE pg_current_wal_lsn() END, s.restart_lsn))::text AS retained, s.restart_lsn IS NULL AS unreserved, ",
    )
    .text(dialect(client).await?.slot_state())
    .text(" FROM pg_replication_slots s")
    .text(filter)
    .text(" ORDER BY s.slot_name");
    let rows = ask::rows(client, "the replication slots", &sql, params).await?;
    rows.iter().map(info).collect()
}

fn info(row: &ask::Answer) -> Result<SlotInfo, Error> {
    // greatest() passes over the NULL that an unreserved slot has.
    let retained = if row.get("unreserved")? { None } else { row.parse_opt("retained")? };
    Ok(SlotInfo {
        name: row.get("name")?,
        plugin: row.get("plugin")?,
        slot_type: row.get("slot_type")?,
        database: row.get("database")?,
        temporary: row.get("temporary")?,
        active: row.get("active")?,
        active_pid: row.get("active_pid")?,
        restart_lsn: row.parse_opt("restart_lsn")?,
        confirmed_flush_lsn: row.parse_opt("confirmed_flush_lsn")?,
        wal_status: row.get("wal_status")?,
        safe_wal_size: row.get("safe_wal_size")?,
        invalidation_reason: row.get("invalidation_reason")?,
        retained_bytes: retained,
    })
}
