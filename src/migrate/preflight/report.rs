//! What `walferry check` found, for people and for programs.
//!
//! The JSON shape is stable: `{"findings": [{"id", "severity", "subject", "cause", "hint"}], "result"}`. Identifiers
//! are never renamed; texts may be.

use std::fmt;

use comfy_table::{ContentArrangement, Table};
use serde::Serialize;
use serde::ser::SerializeStruct;

use crate::catalog::Error;
use crate::config::Method;
use crate::error::{Failure, Side, Transient};
use crate::limits::{FINDING_LINES_SHOWN, FINDING_NAMES_MAX};
use crate::pg::{plain, plain_under};

use super::method;

/// One thing that was looked at, and how it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: stable, kebab-case.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Which of several databases it is about; `None` where there is one, or the servers are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Which thing it is about: a server, a setting, a role, tables.
    pub subject: String,
    /// How it was found.
    pub cause: String,
    /// What to do, with the commands to run; empty where there is nothing to do.
    pub hint: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing to do.
    Info,
    /// The migration can go on, but somebody should look.
    Warning,
    /// The migration would not work.
    Fail,
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The findings, in the order in which things were looked at.
    pub findings: Vec<Finding>,
    /// How the database is to be moved, now that all was looked at.
    pub method: Method,
    /// Why it is [`Method::PgDump`] though nobody asked for that; else empty.
    pub method_reason: String,
}

impl Finding {
    /// A finding without a hint.
    pub fn new(
        id: &'static str,
        severity: Severity,
        subject: impl Into<String>,
        cause: impl Into<String>,
    ) -> Self {
        let (subject, cause) = (subject.into(), cause.into());
        Self { id, severity, database: None, subject, cause, hint: String::new() }
    }

    /// All is as it should be.
    pub fn ok(id: &'static str, subject: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::new(id, Severity::Ok, subject, cause)
    }

    /// Worth knowing.
    pub fn info(id: &'static str, subject: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::new(id, Severity::Info, subject, cause)
    }

    /// Somebody should look.
    pub fn warning(id: &'static str, subject: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::new(id, Severity::Warning, subject, cause)
    }

    /// The migration would not work.
    pub fn fail(id: &'static str, subject: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::new(id, Severity::Fail, subject, cause)
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Says which of several databases it is about.
    #[must_use]
    pub fn of_database(mut self, name: &str) -> Self {
        self.database = Some(name.to_owned());
        self
    }

    /// Writes it to the log, as loud as it is severe.
    pub(crate) fn log(&self) {
        let Self { id, severity, subject, cause, hint, .. } = self;
        match severity {
            Severity::Ok => tracing::debug!(check = id, subject, "{cause}"),
            Severity::Info => tracing::info!(check = id, subject, %hint, "{cause}"),
            Severity::Warning => tracing::warn!(check = id, subject, %hint, "{cause}"),
            Severity::Fail => tracing::error!(check = id, subject, %hint, "{cause}"),
        }
    }

    /// A side that could not be connected to, or was lost.
    pub fn unreachable(side: Side, failure: &Failure) -> Self {
        let id = match side {
            Side::Source => "source-reachable",
            Side::Target => "target-reachable",
        };
        let (cause, detail, hint) = match failure {
            Failure::Definite(definite) => (&definite.cause, &definite.detail, definite.hint.as_str()),
            Failure::Transient(transient) => (&transient.cause, &transient.detail, ""),
        };
        let cause = if detail.is_empty() { cause.clone() } else { format!("{cause}: {detail}") };
        Self::fail(id, side.as_str(), cause).hint(hint)
    }

    /// Something that could not be looked at.
    pub(super) fn unanswered(id: &'static str, error: &Error) -> Self {
        let side = error.side();
        if error.is_lost() {
            let lost = Transient::new(side, "the connection was lost during the check");
            return Self::unreachable(side, &lost.into());
        }
        Self::fail(id, side.as_str(), error.to_string())
    }
}

impl Severity {
    /// `ok`, `info`, `warning` or `fail`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Fail => "fail",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Report {
    /// The worst severity of all findings; `Ok` of none.
    pub fn worst(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }

    /// The first finding that stands in the way of the migration.
    pub fn first_failure(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.severity == Severity::Fail)
    }

    /// Whether any finding stands in the way of the migration.
    pub fn failed(&self) -> bool {
        self.worst() == Severity::Fail
    }

    /// Whether the check failed, but on nothing that a one-time dump and restore needs: method `pg_dump` would work.
    pub fn only_replication_fails(&self) -> bool {
        let fails = self.findings.iter().filter(|finding| finding.severity == Severity::Fail);
        self.failed() && fails.into_iter().all(|finding| method::REPLICATION_ONLY.contains(&finding.id))
    }

    /// The finding of that identifier.
    pub fn get(&self, id: &str) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.id == id)
    }

    /// Adds a finding, unless it is there already: a lost connection fails every question that follows.
    pub fn push(&mut self, finding: Finding) {
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// What several looks found, in their order.
    pub(super) fn of(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut report = Self::default();
        report.extend(parts);
        report
    }

    /// Adds what others found.
    pub(super) fn extend(&mut self, parts: impl IntoIterator<Item = Self>) {
        parts.into_iter().flat_map(|part| part.findings).for_each(|finding| self.push(finding));
    }

    /// Adds what was found, or that it could not be looked at.
    pub(super) fn add<F: IntoIterator<Item = Finding>>(&mut self, id: &'static str, found: Result<F, Error>) {
        match found {
            Ok(found) => self.findings.extend(found),
            Err(error) => self.push(Finding::unanswered(id, &error)),
        }
    }

    /// A table for people, worst first: what is as it should be is only counted.
    pub fn render_table(&self, width: u16) -> String {
        let mut shown: Vec<&Finding> = self.findings.iter().filter(|f| f.severity != Severity::Ok).collect();
        shown.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        let passed = self.findings.len() - shown.len();
        let summary = format!("{} of {} checks passed: {}", passed, self.findings.len(), self.result());
        if shown.is_empty() {
            return format!("{summary}\n");
        }
        let mut table = Table::new();
        table.force_no_tty().set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
        table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["", "check", "found, and what to do"]);
        for finding in shown {
            table.add_row([finding.severity.to_string(), finding.id.to_owned(), finding.text()]);
        }
        format!("{}\n{summary}\n", table.trim_fmt())
    }

    fn result(&self) -> &'static str {
        match self.worst() {
            Severity::Ok | Severity::Info => "ok",
            worst @ (Severity::Warning | Severity::Fail) => worst.as_str(),
        }
    }
}

impl Finding {
    fn text(&self) -> String {
        let of = self.database.as_ref().map(|name| format!("database {name:?}: ")).unwrap_or_default();
        // A name may hold anything: an escape sequence for the terminal, or a line that looks like ours.
        let mut text = format!("{of}{}: {}", plain(&self.subject), plain_under(&self.cause, "  "));
        let lines: Vec<&str> = self.hint.lines().collect();
        for line in lines.iter().take(FINDING_LINES_SHOWN) {
            text.push_str("\n→ ");
            text.push_str(&plain(line));
        }
        if lines.len() > FINDING_LINES_SHOWN {
            let more = lines.len() - FINDING_LINES_SHOWN;
            text.push_str(&format!("\n→ … and {more} more: see --json"));
        }
        text
    }
}

impl Serialize for Report {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut report = serializer.serialize_struct("Report", 2)?;
        report.serialize_field("findings", &self.findings)?;
        report.serialize_field("result", self.result())?;
        report.end()
    }
}

/// The names, as many as a text can bear.
pub(in crate::migrate) fn listed<T: fmt::Display>(names: &[T]) -> String {
    let shown: Vec<String> = names.iter().take(FINDING_NAMES_MAX).map(T::to_string).collect();
    let more = names.len().saturating_sub(FINDING_NAMES_MAX);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

/// `1 table`, `2 tables`.
pub(super) fn counted(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// Bytes in the unit that suits them.
pub(super) fn size(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::Definite;

    #[test]
    fn shape() {
        let mut report = Report::default();
        assert_eq!((report.worst(), report.failed()), (Severity::Ok, false));
        report.push(Finding::ok("a", "source", "fine"));
        report.push(Finding::info("b", "source", "well"));
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(
            json,
            r#"{"findings":[{"id":"a","severity":"ok","subject":"source","cause":"fine","hint":""},{"id":"b","severity":"info","subject":"source","cause":"well","hint":""}],"result":"ok"}"#
        );
        report.push(Finding::fail("source-wal-level", "wal_level", "replica").hint("SET"));
        assert!(report.failed() && report.only_replication_fails());
        report.push(Finding::fail("target-empty", "target", "not empty"));
        assert!(report.failed() && !report.only_replication_fails());
    }

    #[test]
    fn table() {
        let mut report = Report::default();
        report.push(Finding::ok("passed", "source", "never shown"));
        report.push(Finding::warning("later", "tables", "some"));
        let hint: Vec<String> = (0..20).map(|i| format!("ALTER TABLE t{i} REPLICA IDENTITY FULL;")).collect();
        report.push(Finding::fail("first", "source", "word ".repeat(60)).hint(hint.join("\n")));
        let text = report.render_table(80);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.find("first") < text.find("later") && !text.contains("never"), "{text}");
        assert!(text.contains("t0 ") && !text.contains("t19 ") && text.contains("more"), "{text}");
        assert!(text.ends_with("1 of 3 checks passed: fail\n"), "{text}");
    }

    #[test]
    fn unreachable() {
        let definite = Definite::new("password refused").detail("user app").hint("check PGPASSWORD").into();
        let finding = Finding::unreachable(Side::Source, &definite);
        assert_eq!((finding.id, finding.cause.as_str()), ("source-reachable", "password refused: user app"));
        assert_eq!(finding.hint, "check PGPASSWORD");
        let finding = Finding::unreachable(Side::Target, &Transient::new(Side::Target, "timed out").into());
        assert_eq!(
            (finding.id, finding.cause.as_str(), finding.severity),
            ("target-reachable", "timed out", Severity::Fail)
        );
    }

    #[test]
    fn texts() {
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16384.0 PiB");
        assert_eq!(counted(1, "table"), "1 table");
        assert_eq!(counted(0, "table"), "0 tables");
        let names: Vec<usize> = (0..FINDING_NAMES_MAX + 2).collect();
        assert!(listed(&names).ends_with(" and 2 more"));
    }
}
