//! The status as tables for people: what `walferry status` prints.

use comfy_table::{Table, presets};

use super::json::time;
use super::snapshot::{DatabaseStatus, StatusSnapshot};
use super::units;
use crate::limits::SCHEMA_DRIFT_SHOWN_MAX;
use crate::pg::SourceLsn;
use crate::store::Phase;

/// One block for each database.
pub fn text(snapshot: &StatusSnapshot) -> String {
    if snapshot.databases.is_empty() {
        return format!("migration {}: no database yet\n", plain(&snapshot.migration));
    }
    let mut text = format!("migration {}\n", plain(&snapshot.migration));
    for database in &snapshot.databases {
        text.push('\n');
        text.push_str(&block(database));
        text.push('\n');
    }
    text
}

/// `text` with control characters as escapes, so that a name cannot move the cursor or colour the screen.
pub(super) fn plain(text: &str) -> String {
    crate::pg::plain(text).into_owned()
}

/// The lag in one phrase: `1.0 MB, 3.2 s`.
pub(super) fn lag(database: &DatabaseStatus) -> String {
    if let Some(not_followed) = database.not_followed() {
        return not_followed;
    }
    match (database.lag_bytes, database.lag_seconds) {
        (None, None) => "unknown".to_owned(),
        (bytes, seconds) => {
            let bytes = bytes.map(units::bytes);
            let seconds = seconds.map(units::seconds);
            bytes.into_iter().chain(seconds).collect::<Vec<_>>().join(", ")
        }
    }
}

/// The tables by state, those states left out that no table is in: `3 streaming, 1 failed`.
pub(super) fn tables(database: &DatabaseStatus) -> String {
    let counts: Vec<_> = database
        .tables_by_state()
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    if counts.is_empty() { "none yet".to_owned() } else { counts.join(", ") }
}

fn block(database: &DatabaseStatus) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_FULL_CONDENSED);
    table.set_header(["database", &plain(&database.dbname)]);
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            table.add_row([name, &plain_lines(&value)]);
        }
    };
    row("phase", database.phase.to_string());
    row("method", method(database));
    row("error", database.error.clone());
    row("what to do", what_to_do(database));
    row("lag", lag(database));
    row("positions", positions(database));
    row("tables", tables(database));
    row("copied", copied(database));
    row("applied", applied(database));
    row("slot", slot(database));
    row("on the source", database.objects_on_source.join("\n"));
    row("not on the target", schema_drift(database));
    row("NOLOGIN until all is done", database.roles_shut.join(", "));
    row("started", database.started_at.map(time).unwrap_or_default());
    row("as of", database.updated_at.map(time).unwrap_or_default());
    table.trim_fmt()
}

fn plain_lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}

fn method(database: &DatabaseStatus) -> String {
    if database.method_reason.is_empty() {
        database.method.to_string()
    } else {
        format!("{} ({})", database.method, database.method_reason)
    }
}

fn what_to_do(database: &DatabaseStatus) -> String {
    if !database.hint.is_empty() {
        return database.hint.clone();
    }
    if let (Phase::Done, Some(advice)) = (database.phase, database.after_a_dump()) {
        return advice;
    }
    let advice = match database.phase {
        Phase::Stopped => "run walferry migrate to go on",
        Phase::Failed => "mend what the error names, then run walferry migrate to go on",
        _ if !database.error.is_empty() => "nothing: it is tried again",
        Phase::Done => "run walferry remove when the old cluster is not needed any more",
        _ => "",
    };
    advice.to_owned()
}

fn positions(database: &DatabaseStatus) -> String {
    let known: Vec<_> = [
        ("source", database.source_wal),
        ("received", database.received),
        ("applied", database.applied),
        ("durable", database.durable),
        ("confirmed", database.confirmed),
    ]
    .into_iter()
    .filter_map(|(name, position): (_, Option<SourceLsn>)| Some(format!("{name:<9} {}", position?)))
    .collect();
    known.join("\n")
}

fn copied(database: &DatabaseStatus) -> String {
    let rows: u64 = database.tables.iter().map(|table| table.rows_copied).sum();
    let bytes: u64 = database.tables.iter().map(|table| table.bytes_copied).sum();
    if rows == 0 && bytes == 0 {
        return String::new();
    }
    format!("{} rows, {}", units::count(rows), units::bytes(bytes))
}

fn applied(database: &DatabaseStatus) -> String {
    if database.transactions_applied == 0 {
        return String::new();
    }
    let transactions = units::count(database.transactions_applied);
    let kinds: Vec<_> = database
        .changes_applied
        .by_kind()
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| format!("{} {kind}", units::count(count)))
        .collect();
    format!("{transactions} transactions ({})", kinds.join(", "))
}

/// What was made, changed or dropped on the source, and what makes the target's so.
fn schema_drift(database: &DatabaseStatus) -> String {
    let drift = &database.schema_drift;
    let mut lines: Vec<String> = drift
        .iter()
        .take(SCHEMA_DRIFT_SHOWN_MAX)
        .map(|drift| {
            format!("{} {} on the source:\n{}", drift.object, drift.change.as_str(), drift.statement)
        })
        .collect();
    let more = drift.len().saturating_sub(SCHEMA_DRIFT_SHOWN_MAX);
    lines.extend((more > 0).then(|| format!("and {more} more: --json")));
    lines.join("\n")
}

fn slot(database: &DatabaseStatus) -> String {
    let Some(slot) = &database.slot else { return String::new() };
    let retained = units::bytes(slot.retained_bytes);
    let left = match slot.safe_bytes {
        None => "no limit set".to_owned(),
        Some(left) => match u64::try_from(left) {
            Ok(left) => format!("{} more until it can be lost", units::bytes(left)),
            Err(_) => "it can be lost at any moment".to_owned(),
        },
    };
    format!("{}: {}, the source keeps {retained}, {left}", slot.name, slot.wal_status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{QualifiedName, SlotName};
    use crate::status::snapshot::{ChangeCounts, SlotStatus, TableState, TableStatus};

    #[test]
    fn shows_what_an_engineer_asks_first() {
        let mut snapshot = StatusSnapshot::new("default");
        let database = snapshot.database_mut("shop\u{1b}[31m");
        database.phase = Phase::Syncing;
        database.lag_bytes = Some(2048);
        database.lag_seconds = Some(0.5);
        database.applied = Some(SourceLsn::new(0xAB));
        database.transactions_applied = 1200;
        database.changes_applied = ChangeCounts { inserts: 5000, deletes: 1, ..ChangeCounts::default() };
        database.objects_on_source = vec!["slot walferry_shop".to_owned(), "publication p".to_owned()];
        database.slot = Some(SlotStatus {
            name: SlotName::new("walferry_shop").expect("a slot's name"),
            retained_bytes: 16 << 20,
            safe_bytes: Some(1 << 30),
            wal_status: "reserved".to_owned(),
        });
        for state in [TableState::Streaming, TableState::Streaming, TableState::Failed] {
            let mut table = TableStatus::new(QualifiedName::new("public", "t"), Some(1), 8192);
            table.state = state;
            table.rows_copied = 1000;
            database.tables.push(table);
        }
        let text = text(&snapshot);
        for part in [
            "shop\\u{1b}[31m",
            "syncing",
            "2.0 kB, 0.5 s",
            "applied   0/AB",
            "2 streaming, 1 failed",
            "3,000 rows",
            "1,200 transactions (5,000 insert, 1 delete)",
            "reserved, the source keeps 16.0 MB, 1.0 GB more until it can be lost",
            "publication p",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert!(!text.contains("error"), "{text}");
    }

    #[test]
    fn what_to_do_is_never_left_open() {
        let check = |phase, error: &str, hint: &str, expected: &str| {
            let mut database = DatabaseStatus::new("shop");
            database.phase = phase;
            database.error = error.to_owned();
            database.hint = hint.to_owned();
            assert_eq!(what_to_do(&database), expected);
        };
        check(Phase::Syncing, "", "", "");
        check(Phase::Failed, "slot is gone", "run walferry resync", "run walferry resync");
        check(Phase::Syncing, "source: connection closed", "", "nothing: it is tried again");
        check(Phase::Stopped, "", "", "run walferry migrate to go on");
    }

    #[test]
    fn an_empty_migration() {
        assert_eq!(text(&StatusSnapshot::new("default")), "migration default: no database yet\n");
    }
}
