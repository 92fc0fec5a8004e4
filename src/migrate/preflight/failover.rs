//! Whether the migration survives a failover of the source.
//!
//! The migration's slot is made with FAILOVER where the server knows that (17). A standby keeps a copy of such a slot if it
//! is told to, and lacks no commit that the stream has sent if the source is told to wait for it. Standbys are known by
//! their physical slots: other roles' walsenders show nothing of themselves. Manual: "Logical Replication Failover".

use super::report::listed;
use super::{Finding, hints};
use crate::catalog::ServerFacts;
use crate::source::SlotInfo;

const ID: &str = "source-failover";

/// `None` where no standby is to be seen.
pub(super) fn failover(source: &ServerFacts, slots: &[SlotInfo]) -> Option<Finding> {
    let physical = slots.iter().filter(|slot| slot.slot_type == "physical" && !slot.temporary);
    let (connected, away): (Vec<&SlotInfo>, Vec<&SlotInfo>) = physical.partition(|slot| slot.active);
    let names = |slots: &[&SlotInfo]| slots.iter().map(|slot| slot.name.clone()).collect::<Vec<_>>();
    let (standbys, away) = (names(&connected), names(&away));
    if standbys.is_empty() {
        return None;
    }
    let subject = "standbys of the source";
    let names = listed(&standbys);
    if source.version.major() < 17 {
        let cause = format!(
            "by their slots: {names}; none keeps a copy of the migration's slot (17 can): after a failover the migration \
             starts afresh"
        );
        return Some(Finding::info(ID, subject, cause));
    }
    let waited_for = source.synchronized_standby_slots.as_deref().unwrap_or_default();
    let waited_for: Vec<&str> = waited_for.split(',').map(|name| name.trim().trim_matches('"')).collect();
    if standbys.iter().all(|name| waited_for.contains(&name.as_str())) {
        let cause = format!(
            "the stream waits for {names}: a failover to one that has sync_replication_slots is followed"
        );
        return Some(Finding::ok(ID, subject, cause));
    }
    let cause = format!(
        "by their slots: {names}; the stream does not wait for all of them: after a failover to one that lacks the \
         migration's slot, or a commit that the target has, the migration starts afresh"
    );
    // The stream would stand still for one that does not come back.
    let away =
        if away.is_empty() { String::new() } else { format!(" (not connected now: {})", listed(&away)) };
    let wait = hints::parameter(source.provider, "synchronized_standby_slots", &standbys.join(", "), false);
    let hint = format!(
        "leave out what is no standby, and have the stream wait for the rest{away}:\n{wait}\non each standby, with a dbname in \
         its primary_conninfo:\nALTER SYSTEM SET sync_replication_slots = on;\nALTER SYSTEM SET hot_standby_feedback = \
         on;\nSELECT pg_reload_conf();"
    );
    Some(Finding::warning(ID, subject, cause).hint(hint))
}
