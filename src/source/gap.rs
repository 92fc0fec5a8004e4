//! Whether the stream can go on from the stored position without a gap.
//!
//! The server does not refuse what would lose changes: it skips silently from behind the slot's
//! `confirmed_flush_lsn`, and accepts a start beyond the end of WAL. So everything is compared first, on every connect.

use super::SlotInfo;
use super::history::TimelineHistory;
use super::replication::Identity;
use crate::error::Definite;
use crate::pg::{Resume, SlotName, SourceLsn, SystemId};

/// What is known on our side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The cluster that the migration was begun on.
    pub system_id: SystemId,
    /// The migration's slot.
    pub slot: SlotName,
    /// The database that the slot must belong to.
    pub dbname: String,
    /// What the target holds.
    pub stored: Resume,
    /// Where the last copy of a table was made: the target holds what that table had by then.
    pub copied: SourceLsn,
}

/// The refusal of a source whose history is not the one that was applied.
pub fn other_history(detail: impl Into<String>) -> Definite {
    Definite::new("the source's history is another than the one that was applied").detail(detail).hint(HINT)
}

const HINT: &str = "to go on, changes would be lost; start afresh: `walferry remove --force`, empty the target's \
                    database, then `walferry migrate`";

/// Refuses when changes would be lost; says what to go on from. `history` is that of the source's timeline where it is not
/// the one that was noted.
///
/// # Errors
/// A definite failure that says what happened and what resynchronises.
pub fn refuse_gap(
    expected: &Expected,
    identity: &Identity,
    slot: Option<&SlotInfo>,
    history: Option<&TimelineHistory>,
) -> Result<Resume, Definite> {
    let Expected { system_id, slot: name, dbname, .. } = expected;
    let gap = |cause: &str, detail: String| Err(Definite::new(cause).detail(detail).hint(HINT));
    if identity.system_id != *system_id {
        let detail = format!("begun on system {system_id}, this is system {}", identity.system_id);
        return gap("the source is another cluster than the migration was begun on", detail);
    }
    let stored = on_timeline(expected, identity, history)?;
    let end = stored.end;
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
    if let Some(confirmed) = slot.confirmed_flush_lsn.filter(|confirmed| *confirmed > stored.opened_at()) {
        let detail = format!(
            "slot {name} is confirmed to {confirmed}, the target holds what ended by {end}: another consumer moved \
             the slot, or the target lost its last commits"
        );
        return gap("the replication slot is ahead of the target", detail);
    }
    if end.position() > identity.flushed {
        let detail = format!(
            "the target holds what ended by {end}, the source's WAL ends at {}: the source was restored or failed \
             over, and lost commits that the target has",
            identity.flushed
        );
        return gap("the target is ahead of the source", detail);
    }
    Ok(stored)
}

/// What is stored, on the source's timeline.
///
/// A standby that is promoted begins a timeline where its WAL ended. All that the target has was there by then, or this is
/// another history, however far it has come meanwhile.
fn on_timeline(
    expected: &Expected,
    identity: &Identity,
    history: Option<&TimelineHistory>,
) -> Result<Resume, Definite> {
    let Expected { stored, copied, .. } = expected;
    let now = identity.timeline;
    let Some(before) = stored.timeline.filter(|before| *before != now) else {
        return Ok(Resume { timeline: Some(now), ..*stored });
    };
    let Some(left) = history.and_then(|history| history.left(before)) else {
        let detail = format!("begun on timeline {before}, which timeline {now} does not come from");
        return Err(other_history(detail));
    };
    let followed = stored.on_timeline(now, left).filter(|_| *copied <= left);
    followed.ok_or_else(|| {
        let held = stored.held().position().max(*copied);
        other_history(format!(
            "timeline {now} begins at {left}, the target holds what the source had at {held}: a standby was promoted \
             that lacked commits"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{CommitLsn, EndLsn, Landmark, PgTimestamp, TimelineId, Xid};

    fn slot() -> SlotInfo {
        SlotInfo::example(50, 100)
    }

    #[test]
    fn each_gap_is_refused() {
        let check = |stored: u64, system: u64, slot: Option<SlotInfo>, refused: Option<&str>| {
            let name = SlotName::new("walferry_default").expect("a name");
            let system_id = SystemId::new(7);
            let stored = Resume::at(EndLsn::new(stored));
            let copied = SourceLsn::new(90);
            let expected = Expected { system_id, slot: name, dbname: "shop".to_owned(), stored, copied };
            let flushed = SourceLsn::new(200);
            let identity =
                Identity { system_id: SystemId::new(system), timeline: TimelineId::new(1), flushed };
            let cause =
                refuse_gap(&expected, &identity, slot.as_ref(), None).err().map(|definite| definite.cause);
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

    #[test]
    fn a_timeline_is_followed_or_refused() {
        let landmark = Landmark {
            commit_lsn: CommitLsn::new(110),
            end: EndLsn::new(120),
            xid: Xid::new(5),
            commit_time: PgTimestamp::from_micros(1),
        };
        let timeline = Some(TimelineId::new(1));
        let applied = Resume { end: EndLsn::new(180), landmark: Some(landmark), timeline };
        let check = |stored: Resume, copied: u64, history: &str, expected: Result<u64, &str>| {
            let expected_here = Expected {
                system_id: SystemId::new(7),
                slot: SlotName::new("walferry_default").expect("a name"),
                dbname: "shop".to_owned(),
                stored,
                copied: SourceLsn::new(copied),
            };
            let (timeline, flushed) = (TimelineId::new(3), SourceLsn::new(170));
            let identity = Identity { system_id: SystemId::new(7), timeline, flushed };
            let history = TimelineHistory::parse(history).expect("a history");
            let found = refuse_gap(&expected_here, &identity, Some(&slot()), Some(&history));
            let found = found.map(|resume| (resume.end.get(), resume.timeline));
            match (found, expected) {
                (Ok(found), Ok(end)) => assert_eq!(found, (end, Some(timeline))),
                (Err(definite), Err(detail)) => {
                    let said = definite.detail;
                    assert!(said.contains(detail), "{said}");
                }
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        };
        let there = "1\t0/78\tpromoted\n2\t0/90\tpromoted\n";
        // What keepalives said beyond the last transaction was of the timeline that was left.
        check(applied, 100, there, Ok(120));
        check(applied, 120, there, Ok(120));
        let lacks = "timeline 3 begins at 0/77, the target holds what the source had at 0/78";
        check(applied, 100, "1\t0/77\tpromoted\n", Err(lacks));
        check(applied, 121, there, Err("holds what the source had at 0/79"));
        check(applied, 100, "2\t0/90\tpromoted\n", Err("timeline 1, which timeline 3 does not come from"));
        // Without a transaction to go by, a keepalive's word is all that there is.
        let idle = Resume { landmark: None, ..applied };
        check(idle, 100, there, Err("at 0/B4"));
        check(Resume { end: EndLsn::new(120), ..idle }, 100, there, Ok(120));
        // Noted for the first time, or the same.
        let new = Resume { timeline: None, end: EndLsn::new(160), ..applied };
        check(new, 100, "", Ok(160));
        check(Resume { timeline: Some(TimelineId::new(3)), ..new }, 100, "", Ok(160));
    }
}
