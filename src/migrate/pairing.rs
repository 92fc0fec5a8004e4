//! Which recorded table is which of a server's tables: found by their ids at once, since schemas have thousands of both.

use std::collections::HashMap;

use crate::catalog::Table;
use crate::pg::{QualifiedName, RelationId};
use crate::store::RelationRow;

use super::drift::is_row_of;

/// What is recorded, to be found by the source's tables.
pub(super) struct Recorded<'a> {
    by_id: HashMap<RelationId, &'a RelationRow>,
    by_name: HashMap<&'a QualifiedName, &'a RelationRow>,
}

/// The tables of a server, to be found by what is recorded of them; the target's by name alone.
pub(super) struct Listed<'a> {
    by_id: HashMap<RelationId, &'a Table>,
    by_name: HashMap<&'a QualifiedName, &'a Table>,
}

impl<'a> Recorded<'a> {
    pub(super) fn new(rows: &'a [RelationRow]) -> Self {
        let by_id = rows.iter().filter_map(|row| row.origin.map(|origin| (origin.id, row))).collect();
        Self { by_id, by_name: rows.iter().map(|row| (&row.name, row)).collect() }
    }

    /// The table's row, whatever it is called now.
    pub(super) fn of(&self, table: &Table) -> Option<&'a RelationRow> {
        let by_id = self.by_id.get(&RelationId::new(table.oid.get())).copied();
        by_id.or_else(|| self.named(&table.name).filter(|row| is_row_of(row, table)))
    }

    /// The row of this name, which may be another table's than the one of that name on the source.
    pub(super) fn named(&self, name: &QualifiedName) -> Option<&'a RelationRow> {
        self.by_name.get(name).copied()
    }
}

impl<'a> Listed<'a> {
    pub(super) fn new(tables: &'a [Table]) -> Self {
        let by_id = tables.iter().map(|table| (RelationId::new(table.oid.get()), table)).collect();
        Self { by_id, by_name: tables.iter().map(|table| (&table.name, table)).collect() }
    }

    /// The row's table, whatever it is called now.
    pub(super) fn of(&self, row: &RelationRow) -> Option<&'a Table> {
        match row.origin {
            Some(origin) => self.by_id.get(&origin.id).copied(),
            None => self.named(&row.name),
        }
    }

    /// The table of this name.
    pub(super) fn named(&self, name: &QualifiedName) -> Option<&'a Table> {
        self.by_name.get(name).copied()
    }
}
