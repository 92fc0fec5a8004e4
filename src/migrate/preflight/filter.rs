//! Findings about tables that are not moved.

use std::collections::HashSet;

use super::report::{counted, listed};
use super::{Finding, PreflightInput, Report, Sides};
use crate::catalog::{self, Reference, Table};
use crate::migrate::filter::broken;
use crate::pg::Oid;

pub(super) async fn check(
    report: &mut Report,
    sides: &Sides<'_>,
    tables: &[Table],
    moved: &[Table],
    input: &PreflightInput,
) {
    if input.tables.takes_all() {
        return;
    }
    let ids: HashSet<Oid> = moved.iter().map(|table| table.oid).collect();
    let left = tables.iter().filter(|table| table.is_leaf() && !ids.contains(&table.oid));
    let left: Vec<_> = left.map(|table| &table.name).collect();
    if !left.is_empty() {
        let cause = format!("their definition is carried, their rows and changes are not: {}", listed(&left));
        let subject = format!("{} not moved", counted(left.len(), "table"));
        report.push(Finding::info("source-tables-skipped", subject, cause));
    }
    let found = catalog::references(sides.source).await;
    report.add("source-references-skipped", found.map(|found| references(&broken(&found, tables, moved))));
}

fn references(broken: &[&Reference]) -> Option<Finding> {
    if broken.is_empty() {
        return None;
    }
    let each: Vec<String> = broken
        .iter()
        .map(|reference| format!("{} of {} to {}", reference.name, reference.from, reference.to))
        .collect();
    let cause = format!(
        "they refer to tables that are not moved, so they are not made on the target: {}",
        listed(&each)
    );
    let subject = counted(broken.len(), "foreign key");
    let hint = "move those tables, too, or make the keys yourself once their rows are there";
    Some(Finding::warning("source-references-skipped", subject, cause).hint(hint))
}
