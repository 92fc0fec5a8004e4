//! What `--with-table` and `--skip-table` leave of a database.
//!
//! The schema is carried whole, so that views, functions and foreign keys find what they name. A table that is not moved
//! stays empty on the target, and is in no publication. A foreign key of a moved table that refers to one that is not, or
//! to a partitioned one not all of which is moved, would fail on the rows; it is left out.

use std::collections::HashSet;

use crate::catalog::{Reference, Table, TableKind};
use crate::config::TableFilter;
use crate::pg::QualifiedName;

/// The tables whose rows are moved. A partitioned one is among them where all of its partitions are, and are to be.
pub(super) fn moved(tables: &[Table], filter: &TableFilter, dbname: &str) -> Vec<Table> {
    if filter.takes_all() {
        return tables.to_vec();
    }
    let takes = |table: &Table| filter.takes(dbname, std::iter::once(&table.name).chain(&table.partition_of));
    let whole = |root: &Table| {
        let parts = tables.iter().filter(|table| table.partition_of.as_ref() == Some(&root.name));
        takes(root) && parts.filter(|part| part.is_leaf()).all(takes)
    };
    let is_moved = |table: &&Table| match table.kind {
        TableKind::Plain => takes(table),
        TableKind::Partitioned => whole(table),
    };
    tables.iter().filter(is_moved).cloned().collect()
}

/// Foreign keys of moved tables that refer to what is not moved.
pub(super) fn broken<'a>(
    references: &'a [Reference],
    tables: &[Table],
    moved: &[Table],
) -> Vec<&'a Reference> {
    let whole: HashSet<&QualifiedName> = moved.iter().map(|table| &table.name).collect();
    let roots = moved.iter().filter_map(|table| table.partition_of.as_ref());
    let partly: HashSet<&QualifiedName> = whole.iter().copied().chain(roots).collect();
    let of_users: HashSet<&QualifiedName> = tables.iter().map(|table| &table.name).collect();
    references
        .iter()
        .filter(|reference| partly.contains(&reference.from))
        .filter(|reference| of_users.contains(&reference.to) && !whole.contains(&reference.to))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Oid;

    fn tables() -> Vec<Table> {
        let leaf = |name: &str| {
            let root = QualifiedName::new("public", "root");
            Table { partition_of: Some(root), ..Table::example(name) }
        };
        let root = Table { kind: TableKind::Partitioned, ..Table::example("root") };
        vec![Table::example("a"), Table::example("b"), root, leaf("p1"), leaf("p2")]
    }

    fn filter(with: &[&str], skip: &[&str]) -> TableFilter {
        let own = |list: &[&str]| list.iter().map(|name| format!("public.{name}")).collect::<Vec<_>>();
        TableFilter::new(&own(with), &own(skip)).expect("patterns")
    }

    #[test]
    fn moved_tables() {
        let check = |with: &[&str], skip: &[&str], expected: &[&str]| {
            let moved = moved(&tables(), &filter(with, skip), "shop");
            let names: Vec<&str> = moved.iter().map(|table| table.name.name.as_str()).collect();
            assert_eq!(names, expected, "{with:?} {skip:?}");
        };
        check(&[], &[], &["a", "b", "root", "p1", "p2"]);
        check(&["a"], &[], &["a"]);
        check(&[], &["a"], &["b", "root", "p1", "p2"]);
        check(&["root"], &[], &["root", "p1", "p2"]);
        check(&[], &["root"], &["a", "b"]);
        check(&[], &["p1"], &["a", "b", "p2"]);
        check(&["p*"], &[], &["p1", "p2"]);
    }

    #[test]
    fn broken_references() {
        let reference = |from: &str, to: &str| Reference {
            oid: Oid::new(1),
            name: format!("{from}_{to}"),
            from: QualifiedName::new("public", from),
            to: QualifiedName::new("public", to),
        };
        let references = [
            reference("a", "b"),
            reference("b", "a"),
            reference("root", "a"),
            reference("p1", "a"),
            reference("a", "root"),
        ];
        let check = |skip: &[&str], expected: &[&str]| {
            let tables = tables();
            let moved = moved(&tables, &filter(&[], skip), "shop");
            let found = broken(&references, &tables, &moved);
            let names: Vec<&str> = found.iter().map(|reference| reference.name.as_str()).collect();
            assert_eq!(names, expected, "{skip:?}");
        };
        check(&[], &[]);
        check(&["b"], &["a_b"]);
        check(&["a"], &["b_a", "root_a", "p1_a"]);
        check(&["a", "p2"], &["b_a", "root_a", "p1_a"]);
        check(&["p2"], &["a_root"]);
        check(&["a", "root"], &["b_a"]);
    }
}
