//! Which method a database is moved by.
//!
//! Replication, where nobody says otherwise and the source can do it. Where it cannot before it is restarted or upgraded,
//! and nobody forces a method, one dump and restore: what stands in the way of replication is a warning then, and so is
//! that later changes are not carried. What can be mended while the source runs (a privilege, a slot that is free) is no
//! reason to fall back: it stays a failure, and its hint names the option that has a database dumped.

use super::hints::option_name;
use super::{Finding, Report, Severity};
use crate::config::Method;
use crate::error::Side;

/// Takes the method, and makes of the findings what they mean for it.
pub(super) fn settle(report: &mut Report, wanted: Option<Method>, databases: &[String]) {
    match wanted {
        Some(Method::Replication) => name_the_dump(report, databases),
        None => {
            let reasons: Vec<String> = report.findings.iter().filter(|it| impossible(it)).map(text).collect();
            if reasons.is_empty() {
                name_the_dump(report, databases);
            } else {
                fall_back(report, reasons.join("; "));
            }
        }
        Some(Method::PgDump) => {
            report.method = Method::PgDump;
            report.findings.retain(|finding| !is_about_replication(finding));
            report.push(Finding::warning("method", "pg_dump", NOT_CARRIED).hint(STOP_WRITERS));
        }
    }
}

/// Beside its remedy, what keeps a database from being followed has the option that does without.
fn name_the_dump(report: &mut Report, databases: &[String]) {
    let name = match databases {
        [only] => option_name(only),
        _ => "DB,…".to_owned(),
    };
    let prevents = |finding: &&mut Finding| {
        finding.severity == Severity::Fail && !is_unanswered(finding) && is_only_for_replication(finding)
    };
    for finding in report.findings.iter_mut().filter(prevents) {
        let before = if finding.hint.is_empty() { "" } else { "\nor " };
        finding.hint.push_str(&format!("{before}dump it instead of following it: --dump-db {name}"));
    }
}

fn fall_back(report: &mut Report, reason: String) {
    report.method = Method::PgDump;
    let stands_in_the_way = |finding: &Finding| {
        finding.severity == Severity::Fail && finding.id.starts_with(Side::Source.as_str())
    };
    report.findings.retain(|finding| !is_about_replication(finding) || stands_in_the_way(finding));
    for finding in report.findings.iter_mut().filter(|finding| is_about_replication(finding)) {
        finding.severity = Severity::Warning;
        finding.cause.push_str(": falls back to method pg_dump");
    }
    let hint = format!(
        "mend what keeps replication away, as the warnings beside this one say; or else: {STOP_WRITERS}\n\
         (--method replication makes a failure of it; --dump-db, or --method pg_dump for all databases, says that it is meant)"
    );
    let cause = format!("replication is not possible ({reason}), so it falls back to pg_dump: {NOT_CARRIED}");
    report.push(Finding::warning("method", "replication", cause).hint(hint));
    report.method_reason = reason;
}

/// Whether it shows that the source, as it is, does not do logical replication for this role.
fn impossible(finding: &Finding) -> bool {
    finding.severity == Severity::Fail && !is_unanswered(finding) && IMPOSSIBLE.contains(&finding.id)
}

/// A question without an answer has the side for its subject: it shows nothing.
fn is_unanswered(finding: &Finding) -> bool {
    [Side::Source, Side::Target].iter().any(|side| finding.subject == side.as_str())
}

fn is_only_for_replication(finding: &Finding) -> bool {
    REPLICATION_ONLY.contains(&finding.id)
}

fn text(finding: &Finding) -> String {
    format!("{}: {}", finding.subject, finding.cause)
}

fn is_about_replication(finding: &Finding) -> bool {
    is_only_for_replication(finding) || REPLICATION_MATTERS.contains(&finding.id)
}

/// What replication needs and a dump does not.
pub(super) const REPLICATION_ONLY: [&str; 10] = [
    "source-wal-level",
    "source-slots",
    "source-slot-name",
    "source-wal-senders",
    "source-replication-privilege",
    "source-replication-connection",
    "source-publication-privilege",
    "source-table-owners",
    "source-replica-identity",
    "target-replication-role",
];

/// What is worth knowing for replication alone.
const REPLICATION_MATTERS: [&str; 9] = [
    "source-truncate",
    "source-slot-retention",
    "source-idle-slot-timeout",
    "source-synchronous-standbys",
    "source-failover",
    "source-long-transactions",
    "source-prepared-transactions",
    "source-replica-identity-full",
    "source-fence",
];

/// What rules replication out until the source is restarted.
const IMPOSSIBLE: [&str; 1] = ["source-wal-level"];

const NOT_CARRIED: &str = "one dump and restore; changes made on the source after the start are NOT carried";

const STOP_WRITERS: &str =
    "stop all writers of the source before `walferry migrate`, until the application uses the target";

#[cfg(test)]
mod tests {
    use super::*;

    fn report(fails: &[&'static str]) -> Report {
        let mut report = Report::default();
        for id in fails {
            report.push(Finding::fail(id, "it", "is so").hint("mend it"));
        }
        report.push(Finding::warning("source-slot-retention", "WAL", "limited"));
        report.push(Finding::warning("source-large-objects", "1 large object", "not carried"));
        report
    }

    #[test]
    fn methods() {
        use Method::{PgDump, Replication};
        let check = |fails: &[&'static str], wanted, method: Method, failed: bool, reason: &str| {
            let mut report = report(fails);
            settle(&mut report, wanted, &["shop".to_owned()]);
            assert_eq!((report.method, report.failed()), (method, failed), "{fails:?} {wanted:?}");
            assert_eq!(report.method_reason, reason);
            let warned = report.get("method").is_some_and(|found| found.cause.contains("NOT carried"));
            assert_eq!(warned, method == PgDump, "{report:?}");
            assert_eq!(report.get("source-slot-retention").is_some(), method == Replication);
            assert!(report.get("source-large-objects").is_some());
        };
        check(&[], None, Replication, false, "");
        check(&["source-wal-level"], None, PgDump, false, "it: is so");
        check(&["source-wal-level", "source-table-owners"], None, PgDump, false, "it: is so");
        // What can be mended while the source runs is no reason.
        check(&["source-slots", "source-wal-senders"], None, Replication, true, "");
        check(&["source-replication-privilege"], None, Replication, true, "");
        check(&["source-wal-level", "source-slots"], None, PgDump, false, "it: is so");
        check(&["source-wal-level", "target-replication-role"], None, PgDump, false, "it: is so");
        // What a dump needs, too, stands in its way.
        check(&["source-publication-privilege"], None, Replication, true, "");
        check(&["target-replication-role"], None, Replication, true, "");
        check(&["source-wal-level", "target-empty"], None, PgDump, true, "it: is so");
        check(&["source-wal-level"], Some(Replication), Replication, true, "");
        check(&["source-wal-level", "source-table-owners"], Some(PgDump), PgDump, false, "");
        check(&["target-empty"], Some(PgDump), PgDump, true, "");
    }

    #[test]
    fn a_question_without_an_answer_proves_nothing() {
        let mut report = Report::default();
        report.push(Finding::fail("source-wal-level", "source", "asking for the settings failed"));
        settle(&mut report, None, &[]);
        assert_eq!((report.method, report.failed()), (Method::Replication, true));
    }

    #[test]
    fn a_remedy_comes_with_the_option_that_does_without() {
        let check = |databases: &[&str], option: &str| {
            let mut report = report(&["source-slots", "target-empty"]);
            let databases: Vec<String> = databases.iter().map(|&name| name.to_owned()).collect();
            settle(&mut report, None, &databases);
            let hint = |id| report.get(id).map(|found| found.hint.clone()).unwrap_or_default();
            assert!(hint("source-slots").starts_with("mend it\nor dump it"), "{}", hint("source-slots"));
            assert!(hint("source-slots").ends_with(option), "{}", hint("source-slots"));
            assert_eq!(hint("target-empty"), "mend it");
        };
        check(&["shop"], "--dump-db shop");
        check(&["My App"], "--dump-db 'My App'");
        check(&["a", "b"], "--dump-db DB,…");
    }

    #[test]
    fn what_keeps_replication_away_is_still_told() {
        let mut report = report(&["source-wal-level"]);
        settle(&mut report, None, &[]);
        let found = report.get("source-wal-level").expect("it stays");
        assert_eq!((found.severity, found.hint.as_str()), (Severity::Warning, "mend it"));
        assert_eq!(found.cause, "is so: falls back to method pg_dump");
    }
}
