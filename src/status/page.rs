//! The status as a page for a browser.
//!
//! One document with nothing to load and no script; it reloads itself. Every name and text is escaped.

use std::fmt::{self, Write};

use super::snapshot::{DatabaseStatus, ServiceStatus, StatusSnapshot, TableState, TableStatus};
use super::{json, table, units};
use crate::config::Method;
use crate::limits::PAGE_TABLES_MAX;
use crate::pg::plain_lines;

/// The page.
pub(super) fn html(snapshot: &StatusSnapshot) -> String {
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = write_page(&mut page, snapshot);
    page
}

/// Text in which nothing is markup, in an element or in a quoted attribute.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in plain_lines(self.0).chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                _ => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

const HEAD: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="refresh" content="5">
<meta name="viewport" content="width=device-width">
<title>Walferry</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.phase { padding: .1rem .5rem; border-radius: .5rem; font-size: 1rem; font-weight: normal; background: #8883; }
.failed { background: #c333; } .syncing, .done { background: #3a33; }
.error { border-left: 4px solid #c33; padding-left: .8rem; white-space: pre-wrap; }
progress { width: 100%; }
</style>
</head>
<body>
"#;

fn write_page(page: &mut String, snapshot: &StatusSnapshot) -> fmt::Result {
    page.write_str(HEAD)?;
    let overall = json::Overall::of(snapshot);
    let name = Escaped(&snapshot.migration);
    writeln!(page, "<h1>Migration {name} <span class=\"phase {0}\">{0}</span></h1>", overall.status)?;
    if snapshot.databases.is_empty() {
        writeln!(page, "<p>No database yet.</p>")?;
    }
    for database in &snapshot.databases {
        write_database(page, database)?;
    }
    page.write_str("</body>\n</html>\n")
}

fn write_database(page: &mut String, database: &DatabaseStatus) -> fmt::Result {
    let name = Escaped(&database.dbname);
    let class = ServiceStatus::of(database.phase);
    writeln!(page, "<h2>{name} <span class=\"phase {class}\">{}</span></h2>", database.phase)?;
    if !database.error.is_empty() {
        writeln!(page, "<p class=\"error\">{}\n{}</p>", Escaped(&database.error), Escaped(&database.hint))?;
    }
    page.write_str("<table>\n")?;
    if database.method == Method::PgDump {
        let reason = Escaped(&database.method_reason);
        writeln!(page, "<tr><th>method<td>{} {reason}</tr>", database.method)?;
    }
    writeln!(page, "<tr><th>lag<td>{}</tr>", table::lag(database))?;
    for (name, position) in [
        ("source's WAL", database.source_wal),
        ("applied", database.applied),
        ("confirmed", database.confirmed),
    ] {
        if let Some(position) = position {
            writeln!(page, "<tr><th>{name}<td>{position}</tr>")?;
        }
    }
    if let Some(slot) = &database.slot {
        let retained = units::bytes(slot.retained_bytes);
        let (name, wal_status) = (Escaped(slot.name.as_str()), Escaped(&slot.wal_status));
        writeln!(page, "<tr><th>slot<td>{name}: {wal_status}, the source keeps {retained}</tr>")?;
    }
    writeln!(page, "<tr><th>tables<td>{}</tr>", table::tables(database))?;
    for object in &database.objects_on_source {
        writeln!(page, "<tr><th>on the source<td>{}</tr>", Escaped(object))?;
    }
    for drift in database.schema_drift.iter().take(PAGE_TABLES_MAX) {
        let (object, change) = (Escaped(&drift.object), drift.change.as_str());
        writeln!(page, "<tr><th>not on the target<td>{object}, {change} on the source</tr>")?;
    }
    page.write_str("</table>\n")?;
    write_tables(page, database)
}

fn write_tables(page: &mut String, database: &DatabaseStatus) -> fmt::Result {
    let mut tables: Vec<&TableStatus> = database.tables.iter().collect();
    tables.sort_by_key(|table| match table.state {
        TableState::Failed => 0,
        TableState::Copying => 1,
        TableState::Waiting => 2,
        TableState::Copied => 3,
        TableState::Streaming => 4,
    });
    if tables.is_empty() {
        return Ok(());
    }
    page.write_str("<table>\n<tr><th>table<th>state<th>copied<th>rows<th>bytes</tr>\n")?;
    for table in tables.iter().take(PAGE_TABLES_MAX) {
        write!(page, "<tr><td>{}<td>{}<td>", Escaped(&table.name.to_string()), table.state)?;
        let (done, of) = progress(table);
        write!(page, "<progress value=\"{done}\" max=\"{of}\"></progress>")?;
        let (rows, bytes) = (units::count(table.rows_copied), units::bytes(table.bytes_copied));
        writeln!(page, "<td class=\"number\">{rows}<td class=\"number\">{bytes}</tr>")?;
    }
    page.write_str("</table>\n")?;
    match tables.len().checked_sub(PAGE_TABLES_MAX) {
        Some(more @ 1..) => writeln!(page, "<p>and {more} more tables: see <code>/status</code></p>"),
        _ => Ok(()),
    }
}

/// How much of a table is copied, of how much: in rows where the statistics have them, else in bytes.
pub(super) fn progress(table: &TableStatus) -> (u64, u64) {
    let (done, estimated) = match table.rows_estimated {
        Some(rows @ 1..) => (table.rows_copied, rows),
        _ => (table.bytes_copied, table.bytes_estimated),
    };
    match table.state {
        TableState::Copied | TableState::Streaming => (1, 1),
        // An estimate that was too small must not look like the end.
        TableState::Waiting | TableState::Copying | TableState::Failed => (done, estimated.max(done + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::QualifiedName;

    #[test]
    fn names_are_never_markup() {
        let mut snapshot = StatusSnapshot::new("<b>\"'&");
        let database = snapshot.database_mut("<script>alert(1)</script>");
        database.error = "</p><i>".to_owned();
        database.hint = "<hint>".to_owned();
        database.method = Method::PgDump;
        database.method_reason = "<reason>".to_owned();
        database.objects_on_source.push("<object>".to_owned());
        database.tables.push(TableStatus::new(QualifiedName::new("<s>", "<t>"), None, 0));
        let page = html(&snapshot);
        for markup in ["<script", "<b>", "<i>", "<hint>", "<reason>", "<object>", "<s>", "<t>"] {
            assert!(!page.contains(markup), "{markup}");
        }
        for text in ["&lt;b&gt;&quot;&#39;&amp;", "&lt;script&gt;", "&lt;hint&gt;", "&lt;t&gt;"] {
            assert!(page.contains(text), "{text}");
        }
    }

    #[test]
    fn progress_of_a_table() {
        let check = |state, rows: (u64, Option<u64>), bytes: (u64, u64), expected: (u64, u64)| {
            let mut table = TableStatus::new(QualifiedName::new("public", "t"), rows.1, bytes.1);
            table.state = state;
            table.rows_copied = rows.0;
            table.bytes_copied = bytes.0;
            assert_eq!(progress(&table), expected);
        };
        check(TableState::Waiting, (0, Some(10)), (0, 8192), (0, 10));
        check(TableState::Copying, (5, Some(10)), (100, 8192), (5, 10));
        check(TableState::Copying, (15, Some(10)), (100, 8192), (15, 16));
        check(TableState::Copying, (5, None), (100, 8192), (100, 8192));
        check(TableState::Copying, (0, Some(0)), (0, 0), (0, 1));
        check(TableState::Copied, (0, Some(0)), (0, 0), (1, 1));
        check(TableState::Streaming, (9, Some(10)), (0, 8192), (1, 1));
    }

    #[test]
    fn many_tables_do_not_make_a_page_without_end() {
        let mut snapshot = StatusSnapshot::new("default");
        let tables = &mut snapshot.database_mut("shop").tables;
        for index in 0..PAGE_TABLES_MAX + 3 {
            tables.push(TableStatus::new(QualifiedName::new("public", format!("t{index}")), None, 0));
        }
        tables[PAGE_TABLES_MAX + 2].state = TableState::Failed;
        let page = html(&snapshot);
        assert!(page.contains("and 3 more tables"));
        assert!(page.contains("<td>failed<td>"), "what failed comes first");
    }
}
