//! What a table of the source was when it was copied, against what it is now.
//!
//! The stream brings rows, not what DDL does to those that are there. What DDL did can be told from three things:
//!
//! - **The file.** ALTER TABLE that computes values anew writes a new one; so do TRUNCATE, which the stream brings, and
//!   VACUUM FULL, CLUSTER, SET TABLESPACE and SET LOGGED, which leave the values as they are.
//! - **The versions of its columns**, `xmin` of their rows in `pg_attribute`. Whatever computes values anew (ALTER COLUMN
//!   TYPE, ADD COLUMN with a volatile default, an identity or an expression) makes or changes such a row; none of the
//!   others does. So a new file with columns of the same versions has the same values, or was emptied. Freezing does not
//!   change `xmin`.
//! - **Their numbers.** A column that has the name of another one has its values: dropped and added again, or renamed.
//!
//! A change that leaves file and versions alone and yet changes values does not exist; one that changes both and no value
//! does (SET STATISTICS and VACUUM FULL between two looks), and costs a copy.

use serde::{Deserialize, Serialize};

use crate::catalog::{Table, TableColumn};

/// A table's definition at the snapshot of its copy, or as it was found later to hold the same rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsCopied {
    columns: Vec<CopiedColumn>,
    /// What it inherits from, or is a partition of: `pg_class.oid`, in order.
    parents: Vec<u32>,
    /// The bounds of a partition.
    bounds: Option<String>,
    /// It was a partition before, and was detached since its copy.
    #[serde(default)]
    detached: bool,
}

/// A column then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CopiedColumn {
    number: i16,
    name: String,
    type_oid: u32,
    modifier: i32,
    not_null: bool,
    generated: String,
    identity: String,
    /// `None`: not known.
    version: Option<u32>,
}

/// What became of a table since.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drift {
    /// Why its rows have to be copied again.
    pub rows: Option<String>,
    /// Something is other than recorded, if only the file.
    pub any: bool,
}

impl AsCopied {
    /// What it is now.
    pub fn of(table: &Table) -> Self {
        Self {
            columns: table.columns.iter().map(CopiedColumn::of).collect(),
            parents: table.parents.iter().map(|parent| parent.get()).collect(),
            bounds: table.bounds.clone(),
            detached: false,
        }
    }

    /// What it is now, where `self` is what it was.
    pub fn becomes(&self, table: &Table) -> Self {
        let now = Self::of(table);
        let detached = now.bounds.is_none() && (self.detached || self.bounds.is_some());
        Self { detached, ..now }
    }

    /// It was a partition at its copy, and is none any more.
    pub const fn was_partition(&self) -> bool {
        self.detached
    }

    /// What can be said of a table of which an older Walferry recorded how many columns it ever had: those are as they are
    /// now, for all that is known.
    pub fn with_attributes(table: &Table, attributes: i16) -> Self {
        let mut known = Self::of(table);
        known.columns.retain(|column| column.number <= attributes);
        for column in &mut known.columns {
            column.version = None;
        }
        known
    }

    /// Compares it with what the table is now; `filenode` was its file, zero where that is not known.
    pub fn drift(&self, filenode: u32, now: &Table) -> Drift {
        let is = Self { detached: self.detached, ..Self::of(now) };
        let rewritten = filenode != 0 && filenode != now.filenode;
        Drift { rows: self.rows_changed(rewritten, &is), any: filenode != now.filenode || is != *self }
    }

    fn rows_changed(&self, rewritten: bool, is: &Self) -> Option<String> {
        let another = |now: &&CopiedColumn| {
            self.columns.iter().any(|then| then.name == now.name && then.number != now.number)
        };
        if let Some(column) = is.columns.iter().find(another) {
            return Some(format!("its column {:?} is another than the one that was copied", column.name));
        }
        let altered = |now: &&CopiedColumn| {
            let then = self.columns.iter().find(|then| then.number == now.number);
            then.is_none_or(|then| then.version.is_none() || then.version != now.version)
        };
        if let Some(column) = is.columns.iter().find(altered).filter(|_| rewritten) {
            return Some(format!("it was rewritten, and its column {:?} made or altered", column.name));
        }
        // Each table that has rows is published by its own name: a parent that it gains or loses changes none.
        None
    }
}

impl CopiedColumn {
    fn of(column: &TableColumn) -> Self {
        Self {
            number: column.number,
            name: column.name.clone(),
            type_oid: column.type_oid.get(),
            modifier: column.type_modifier,
            not_null: column.not_null,
            generated: column.generated.as_str().to_owned(),
            identity: column.identity.as_str().to_owned(),
            version: Some(column.version),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Oid;

    fn table() -> Table {
        let column = |number: i16, name: &str| TableColumn::example(number, name, 25);
        Table { filenode: 7, columns: vec![column(1, "a"), column(2, "b")], ..Table::example("t") }
    }

    fn check(change: impl FnOnce(&mut Table), rows: Option<&str>) {
        let mut now = table();
        change(&mut now);
        let drift = AsCopied::of(&table()).drift(7, &now);
        let why = drift.rows.clone().unwrap_or_default();
        assert_eq!(drift.rows.is_some(), rows.is_some(), "{drift:?}");
        assert!(why.contains(rows.unwrap_or_default()), "{drift:?}");
        assert_eq!(drift.any, now != table(), "{drift:?}");
    }

    #[test]
    fn what_leaves_the_rows_alone() {
        check(|_| {}, None);
        // VACUUM FULL, CLUSTER, TRUNCATE.
        check(|t| t.filenode = 8, None);
        // SET STATISTICS, SET DEFAULT.
        check(|t| t.columns[0].version = 9, None);
        // ADD COLUMN with a constant, a rename, SET NOT NULL, DROP COLUMN.
        check(|t| t.columns.push(TableColumn::example(3, "c", 25)), None);
        check(|t| t.columns[1] = TableColumn { version: 9, ..TableColumn::example(2, "c", 25) }, None);
        check(|t| t.columns[1].not_null = true, None);
        check(|t| drop(t.columns.pop()), None);
        // ATTACH PARTITION, INHERIT.
        check(|t| (t.parents, t.bounds) = (vec![Oid::new(9)], Some("DEFAULT".to_owned())), None);
        // varchar(9) to varchar(10).
        check(|t| (t.columns[1].type_modifier, t.columns[1].version) = (14, 9), None);
    }

    #[test]
    fn what_changes_them() {
        // ALTER TYPE … USING.
        check(|t| (t.filenode, t.columns[1].version) = (8, 9), Some("rewritten"));
        // ADD COLUMN with a volatile default, and VACUUM FULL soon after ADD COLUMN.
        let added = |t: &mut Table| {
            t.filenode = 8;
            t.columns.push(TableColumn::example(3, "c", 25));
        };
        check(added, Some("\"c\" made or altered"));
        // Dropped and added again; names swapped.
        check(|t| t.columns[1].number = 3, Some("is another than"));
        let swapped = |t: &mut Table| (t.columns[0].number, t.columns[1].number) = (2, 1);
        check(swapped, Some("is another than"));
    }

    #[test]
    fn what_an_older_version_recorded() {
        let then = AsCopied::with_attributes(&table(), 1);
        let drift = then.drift(7, &table());
        assert_eq!((drift.rows, drift.any), (None, true), "a column was added");
        let rewritten = Table { filenode: 8, ..table() };
        assert!(AsCopied::with_attributes(&table(), 2).drift(7, &rewritten).rows.is_some());
        assert!(AsCopied::with_attributes(&table(), 2).drift(0, &rewritten).rows.is_none());
    }

    #[test]
    fn kept_as_json() {
        let then = AsCopied::of(&table());
        let json = serde_json::to_string(&then).expect("plain data becomes JSON");
        assert_eq!(serde_json::from_str::<AsCopied>(&json).expect("JSON of its own"), then);
    }
}
