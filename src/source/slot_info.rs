//! What a server shows of a replication slot.

use crate::pg::SourceLsn;

/// A replication slot, physical or logical: a row of `pg_replication_slots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotInfo {
    /// The slot's name.
    pub name: String,
    /// The output plugin of a logical slot.
    pub plugin: Option<String>,
    /// `physical` or `logical`.
    pub slot_type: String,
    /// The database of a logical slot.
    pub database: Option<String>,
    /// Whether it goes away with its session.
    pub temporary: bool,
    /// Whether a session streams from it.
    pub active: bool,
    /// That session's process.
    pub active_pid: Option<i32>,
    /// The oldest WAL that is kept for it; `None` where nothing is (any more).
    pub restart_lsn: Option<SourceLsn>,
    /// What its reader confirmed; a logical slot's only.
    pub confirmed_flush_lsn: Option<SourceLsn>,
    /// `reserved`, `extended`, `unreserved` or `lost` (13).
    pub wal_status: Option<String>,
    /// WAL in bytes that can still be written before the slot is in danger (13); `None` where there is no limit.
    pub safe_wal_size: Option<i64>,
    /// Why the slot cannot be used any more (17).
    pub invalidation_reason: Option<String>,
    /// WAL in bytes that is kept for it now.
    pub retained_bytes: Option<u64>,
}

#[cfg(test)]
impl SlotInfo {
    /// One of ours, not in use: the WAL is kept from `restart` on, and all before `confirmed` is confirmed.
    pub fn example(restart: u64, confirmed: u64) -> Self {
        Self {
            name: "walferry_default".to_owned(),
            plugin: Some("pgoutput".to_owned()),
            slot_type: "logical".to_owned(),
            database: Some("shop".to_owned()),
            temporary: false,
            active: false,
            active_pid: None,
            restart_lsn: Some(SourceLsn::new(restart)),
            confirmed_flush_lsn: Some(SourceLsn::new(confirmed)),
            wal_status: Some("reserved".to_owned()),
            safe_wal_size: None,
            invalidation_reason: None,
            retained_bytes: Some(50),
        }
    }
}
