//! What is copied in one go, and with which statements.
//!
//! All tables together are cut into pieces that several jobs end at about the same time with. A table that is no larger
//! than two pieces, or than [`COPY_SHARED_BYTES_MIN`], is one: it is emptied in the transaction that copies it, and its
//! rows are written FROZEN, as if vacuumed. A larger one is copied in ranges of its pages by all jobs at once, in
//! transactions of their own: none of these may empty it, and so none may freeze. Reading a range costs the source an
//! eighth more CPU than reading all, and the sessions that fill one table wait for each other to extend it.
//!
//! Indexes are made when all tables are copied: a job that finds no table left waits for one below that size at most, so
//! there is little to gain by making them before, but for a large table before 14.

use crate::catalog::{Generated, Table, TargetTable};
use crate::limits::{
    COPY_FREEZE_BYTES_MIN, COPY_PIECE_BYTES_MIN, COPY_PIECES_PER_JOB, COPY_SHARED_BYTES_MIN,
};
use crate::pg::Sql;

use super::binary;

/// A table, or a range of one, to copy in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Which of the tables.
    pub table: usize,
    /// First page, and the one after the last; the last range has no end, since the table may have grown.
    pub pages: Option<(u64, Option<u64>)>,
    bytes: u64,
}

/// How a table's rows go over, as far as that is the same for all its pieces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manner {
    /// In binary.
    pub binary: bool,
    /// Emptied first and written frozen, where it is copied in one piece.
    pub freeze: bool,
    /// What becomes of the rows that are there, in the transaction that copies all.
    pub emptied: Emptied,
    /// The transaction has begun already.
    pub begun: bool,
}

/// What becomes of the target's rows when a table is copied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Emptied {
    /// There are none.
    #[default]
    Nothing,
    /// They go.
    Truncated,
    /// The same for a table that foreign keys of others refer to.
    Deleted,
    /// Of an extension's table those go that are not the extension's own: by its condition, `WHERE …` or empty.
    DeletedOf(String),
    /// They stay: it is an extension's table, and not ours to write to.
    NotOurs,
}

impl Emptied {
    /// Of a table that is copied already.
    pub fn again(target: Option<&TargetTable>) -> Self {
        match target {
            Some(target) if target.condition.is_some() => Self::of_extension(target),
            Some(target) if target.is_referenced => Self::Deleted,
            Some(_) | None => Self::Truncated,
        }
    }

    fn of_extension(target: &TargetTable) -> Self {
        match &target.condition {
            Some(condition) if target.writable => Self::DeletedOf(condition.clone()),
            Some(_) => Self::NotOurs,
            None => Self::Nothing,
        }
    }
}

impl Manner {
    /// That of `source`. Where it is not known what the rows come to, nothing is assumed.
    ///
    /// A table that rows may refer to, or that has triggers, is not emptied: TRUNCATE would fail, or do more than that.
    pub fn of(source: &Table, target: Option<&TargetTable>) -> Self {
        let Some(target) = target else { return Self::default() };
        if target.condition.is_some() {
            return Self { emptied: Emptied::of_extension(target), ..Self::default() };
        }
        let triggers = target.has_origin_triggers || target.has_replica_triggers || target.is_referenced;
        let freeze = !triggers && source.bytes >= COPY_FREEZE_BYTES_MIN;
        Self { binary: binary::pays(source, target), freeze, ..Self::default() }
    }

    /// Whether this piece's rows are written frozen.
    pub fn freezes(&self, piece: &Piece) -> bool {
        self.freeze && piece.pages.is_none()
    }
}

/// All tables in pieces, the largest first, so that no job is left alone with it at the end.
pub fn pieces(tables: &[Table], ranges: bool, jobs: usize) -> Vec<Piece> {
    let total: u64 = tables.iter().map(|table| table.bytes).sum();
    let size = (total / (jobs * COPY_PIECES_PER_JOB) as u64).max(COPY_PIECE_BYTES_MIN);
    let mut pieces = Vec::new();
    for (index, table) in tables.iter().enumerate() {
        let wanted = table.bytes / size;
        let has_columns = table.columns.iter().any(|column| column.generated == Generated::No);
        let whole = !ranges || table.extension.is_some();
        let small = wanted < 2 || table.bytes < COPY_SHARED_BYTES_MIN;
        if whole || jobs < 2 || !has_columns || small || table.pages < wanted {
            pieces.push(Piece { table: index, pages: None, bytes: table.bytes });
            continue;
        }
        let step = table.pages.div_ceil(wanted);
        let starts = (0..wanted).map(|n| n * step).filter(|start| *start < table.pages);
        for start in starts {
            let end = Some(start + step).filter(|end| *end < table.pages);
            pieces.push(Piece { table: index, pages: Some((start, end)), bytes: table.bytes / wanted });
        }
    }
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.bytes));
    pieces
}

/// COPY out of the source and into the target. Generated columns are left out, identity columns kept; of an extension's
/// table come the rows that are not the extension's own.
///
/// What goes into the target begins a transaction, unless that has begun.
pub fn statements(table: &Table, piece: &Piece, manner: &Manner) -> (Sql, Sql) {
    let columns = table.columns.iter().filter(|column| column.generated == Generated::No);
    let columns: Vec<&str> = columns.map(|column| column.name.as_str()).collect();
    let listed = |sql: Sql| {
        if columns.is_empty() {
            return sql;
        }
        sql.text(" (").list(&columns, ", ", |sql, column| sql.ident(column)).text(")")
    };
    let (format_out, format_in) = match (manner.binary, manner.freezes(piece)) {
        (false, false) => ("", ""),
        (true, false) => (" (FORMAT binary)", " (FORMAT binary)"),
        (false, true) => ("", " (FREEZE)"),
        (true, true) => (" (FORMAT binary)", " (FORMAT binary, FREEZE)"),
    };
    let begin = Sql::new(if manner.begun { "" } else { "BEGIN; " });
    let delete = |sql: Sql| sql.text("DELETE FROM ONLY ").name(&table.name);
    let begin = match &manner.emptied {
        Emptied::Truncated => begin.text("TRUNCATE ONLY ").name(&table.name).text("; "),
        Emptied::Nothing if manner.freezes(piece) => {
            begin.text("TRUNCATE ONLY ").name(&table.name).text("; ")
        }
        Emptied::Nothing | Emptied::NotOurs => begin,
        Emptied::Deleted => delete(begin).text("; "),
        Emptied::DeletedOf(condition) => delete(begin).text(" ").catalog(condition).text("; "),
    };
    let into = listed(begin.text("COPY ").name(&table.name)).text(" FROM STDIN").text(format_in);
    let select = || {
        let select = Sql::new("COPY (SELECT ").list(&columns, ", ", |sql, column| sql.ident(column));
        select.text(" FROM ONLY ").name(&table.name)
    };
    let condition = table.extension.as_ref().map(|of| of.condition.as_str()).filter(|it| !it.is_empty());
    let from = match (piece.pages, condition) {
        // For a table with children, COPY reads the table itself alone.
        (None, None) => listed(Sql::new("COPY ").name(&table.name)).text(" TO STDOUT"),
        (None, Some(condition)) => select().text(" ").catalog(condition).text(") TO STDOUT"),
        (Some((first, end)), _) => {
            let ranged = select().text(" WHERE ctid >= '(").page(first).text(",0)'::tid");
            let ranged = match end {
                Some(end) => ranged.text(" AND ctid < '(").page(end).text(",0)'::tid"),
                None => ranged,
            };
            ranged.text(") TO STDOUT")
        }
    };
    (from.text(format_out), into)
}
