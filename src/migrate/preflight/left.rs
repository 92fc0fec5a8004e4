//! Findings about what a migration of this name left on the source that the target knows nothing of.
//!
//! A target that failed over may have lost what it knew. Whoever begins afresh then would leave a slot that nobody reads,
//! which keeps WAL until the source's disk is full.

use super::{Finding, PreflightInput, Report, Sides, hints};
use crate::error::{Failure, Side};
use crate::migrate::fenced;
use crate::migrate::leftovers::Leftovers;

pub(super) async fn check(report: &mut Report, sides: &Sides<'_>, input: &PreflightInput) {
    if input.resuming {
        return;
    }
    fence(report, sides).await;
    let (id, database) = ("source-leftovers", &sides.source_facts.database);
    let found = match Leftovers::find(sides.source, &input.migration).await {
        Ok(found) => found,
        Err(Failure::Definite(definite)) => {
            return report.push(Finding::fail(id, Side::Source.as_str(), definite.cause));
        }
        Err(failure) => return report.push(Finding::unreachable(Side::Source, &failure)),
    };
    let subject = format!("migration {}", input.migration);
    if found.is_empty() {
        return report.push(Finding::ok(id, subject, format!("has left nothing in database {database}")));
    }
    let list = found.list();
    if found.is_all_in_use() {
        let cause =
            format!("another one of this name runs in database {database}, to another target: {list}");
        return report.push(Finding::info(id, subject, cause));
    }
    let cause = format!(
        "the target knows of none, but database {database} of the source has what one of this name made: {list}; a slot \
         that nobody reads keeps WAL until the source's disk is full"
    );
    let hint = format!(
        "another --name if they are of a migration to another target; else `walferry remove --force --name {} --database {}`, or \
         in database {database} of the source:\n{}",
        input.migration,
        hints::option_name(database),
        found.by_hand()
    );
    report.push(Finding::fail(id, subject, cause).hint(hint));
}

/// A source that is read only is copied and followed all the same: nobody may write to it.
async fn fence(report: &mut Report, sides: &Sides<'_>) {
    let (id, database) = ("source-fenced", &sides.source_facts.database);
    report.push(match fenced::unrecorded(sides.source, database).await {
        Ok(None) => Finding::ok(id, format!("database {database}"), "may be written to on the source"),
        Ok(Some(fenced)) => {
            Finding::warning(id, format!("database {database}"), fenced.cause).hint(fenced.hint)
        }
        Err(Failure::Definite(definite)) => Finding::fail(id, Side::Source.as_str(), definite.cause),
        Err(failure) => Finding::unreachable(Side::Source, &failure),
    });
}
