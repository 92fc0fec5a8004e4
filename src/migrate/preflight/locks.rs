//! Finding about the locks that the source has room for. `pg_dump` holds one on each table until it ends, and method
//! `pg_dump` holds another one as long as it copies. All else that Walferry does on either side locks some tables at a time.

use super::report::counted;
use super::{Finding, Report, Sides, hints};
use crate::catalog::{self, Table};

const ID: &str = "source-locks";

/// What a setting is raised to is a multiple of its default.
const STEP: u64 = 64;

pub(super) async fn check(report: &mut Report, sides: &Sides<'_>, tables: &[Table]) {
    let needed = tables.iter().filter(|table| table.extension.is_none()).count();
    let needed = u64::try_from(needed).unwrap_or(u64::MAX);
    let room = catalog::lock_room(sides.source).await;
    report.add(ID, room.map(|room| [finding(sides, room, needed)]));
}

fn finding(sides: &Sides<'_>, room: catalog::LockRoom, needed: u64) -> Finding {
    const SETTING: &str = "max_locks_per_transaction";
    let tables = counted(usize::try_from(needed).unwrap_or(usize::MAX), "table");
    let sessions = room.sessions.max(1);
    let cause = format!(
        "pg_dump locks {tables} at once; {} for each of {sessions} sessions make {}",
        room.per_session,
        room.locks()
    );
    if needed <= room.locks() {
        return Finding::ok(ID, SETTING, cause);
    }
    // Others need locks, too.
    let enough = needed.saturating_mul(2).div_ceil(sessions).next_multiple_of(STEP);
    let raise = hints::parameter(sides.source_facts.provider, SETTING, &enough.to_string(), true);
    let cause = format!("{cause}: it fails where there is no more, and so may what others do meanwhile");
    Finding::warning(ID, SETTING, cause).hint(raise)
}
