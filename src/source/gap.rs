//! Whether the stream can go on from the stored position without a gap.
//!
//! The server does not refuse what would lose changes: it skips silently from behind the slot's
//! `confirmed_flush_lsn`, and accepts a start beyond the end of WAL. So everything is compared first, on every connect.

use super::catalog::SlotInfo;
use super::replication::Identity;
use crate::error::Definite;
use crate::pg::{EndLsn, SlotName, SystemId};

/// What is known on our side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The cluster that the migration was begun on.
    pub system_id: SystemId,
    /// The migration's slot.
    pub slot: SlotName,
    /// The database that the slot must belong to.
    pub dbname: String,
    /// The position stored on the target.
    pub stored: EndLsn,
}

/// Refuses when changes would be lost.
///
/// # Errors
/// A definite failure that says what happened and what resynchronises.
pub fn refuse_gap(expected: &Expected, identity: &Identity, slot: Option<&SlotInfo>) -> Result<(), Definite> {
    let Expected { system_id, slot: name, dbname, stored } = expected;
    let gap = |cause: &str, detail: String| {
        let hint = "to go on, changes would be lost; start afresh: `walferry remove --force`, empty the target's \
                    database, then `walferry migrate`";
        Err(Definite::new(cause).detail(detail).hint(hint))
    };
    if identity.system_id != *system_id {
        let detail = format!("begun on system {system_id}, this is system {}", identity.system_id);
        return gap("the source is another cluster than the migration was begun on", detail);
    }
    let Some(slot) = slot else {
        return gap("the replication slot is gone", format!("slot {name} does not exist on the source"));
    };
    if slot.plugin.as_deref() != Some("pgoutput") || slot.database.as_deref() != Some(dbname) {
        let detail = format!("slot {name} is not a pgoutput slot of database {dbname}");
        return gap("the replication slot is not ours", detail);
    }
    if let Some(reason) = &slot.invalidation_reason {
        return gap("the replication slot is invalidated", format!("slot {name}: {reason}"));
    }
    if slot.wal_status.as_deref() == Some("lost") || slot.restart_lsn.is_none() {
        let detail = format!("the source has removed WAL that slot {name} needs (max_slot_wal_keep_size)");
        return gap("the replication slot is lost", detail);
    }
    if let Some(confirmed) = slot.confirmed_flush_lsn.filter(|confirmed| *confirmed > stored.position()) {
        let detail = format!(
            "slot {name} is confirmed to {confirmed}, the target holds what ended by {stored}: another consumer moved \
             the slot, or the target lost its last commits"
        );
        return gap("the replication slot is ahead of the target", detail);
    }
    if stored.position() > identity.flushed {
        let detail = format!(
            "the target holds what ended by {stored}, the source's WAL ends at {}: the source was restored or failed \
             over, and lost commits that the target has",
            identity.flushed
        );
        return gap("the target is ahead of the source", detail);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{SourceLsn, TimelineId};

    fn slot() -> SlotInfo {
        SlotInfo {
            name: "walferry_default".to_owned(),
            plugin: Some("pgoutput".to_owned()),
            slot_type: "logical".to_owned(),
            database: Some("shop".to_owned()),
            temporary: false,
            active: false,
            active_pid: None,
            restart_lsn: Some(SourceLsn::new(50)),
            confirmed_flush_lsn: Some(SourceLsn::new(100)),
            wal_status: Some("reserved".to_owned()),
            safe_wal_size: None,
            invalidation_reason: None,
            retained_bytes: Some(50),
        }
    }

    #[test]
    fn each_gap_is_refused() {
        let check = |stored: u64, system: u64, slot: Option<SlotInfo>, refused: Option<&str>| {
            let name = SlotName::new("walferry_default").expect("a name");
            let system_id = SystemId::new(7);
            let stored = EndLsn::new(stored);
            let expected = Expected { system_id, slot: name, dbname: "shop".to_owned(), stored };
            let flushed = SourceLsn::new(200);
            let identity =
                Identity { system_id: SystemId::new(system), timeline: TimelineId::new(1), flushed };
            let cause = refuse_gap(&expected, &identity, slot.as_ref()).err().map(|definite| definite.cause);
            assert_eq!(cause.as_deref(), refused);
        };
        check(100, 7, Some(slot()), None);
        check(150, 7, Some(slot()), None);
        check(200, 7, Some(slot()), None);
        check(99, 7, Some(slot()), Some("the replication slot is ahead of the target"));
        check(201, 7, Some(slot()), Some("the target is ahead of the source"));
        check(100, 8, Some(slot()), Some("the source is another cluster than the migration was begun on"));
        check(100, 7, None, Some("the replication slot is gone"));
        let lost = SlotInfo { wal_status: Some("lost".to_owned()), restart_lsn: None, ..slot() };
        check(100, 7, Some(lost), Some("the replication slot is lost"));
        let invalid = SlotInfo { invalidation_reason: Some("idle_timeout".to_owned()), ..slot() };
        check(100, 7, Some(invalid), Some("the replication slot is invalidated"));
        let other = SlotInfo { plugin: Some("wal2json".to_owned()), ..slot() };
        check(100, 7, Some(other), Some("the replication slot is not ours"));
    }
}
