//! Defaults of columns: to set one of a table sets it in all below it, unless ONLY that is said. Pure.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use crate::catalog::{SchemaObject, SchemaObjectKind, Table};
use crate::pg::{Oid, QualifiedName, Sql};

use super::differing::Differing;

/// Tables by name, and what is above and below them: partitions and children.
pub(super) struct Hierarchy<'a> {
    names: HashMap<&'a QualifiedName, &'a Table>,
    ids: HashMap<Oid, &'a Table>,
    below: HashMap<Oid, Vec<Oid>>,
}

/// The source's defaults, and those that drift.
pub(super) struct Defaults<'a> {
    tables: &'a Hierarchy<'a>,
    now: HashMap<(&'a QualifiedName, &'a str), &'a str>,
    drifting: HashSet<(&'a QualifiedName, &'a str)>,
    /// Whether all below a table have the default of a column that it has: asked for each of them.
    alike: RefCell<HashMap<(Oid, &'a str), bool>>,
}

impl<'a> Hierarchy<'a> {
    pub(super) fn new(tables: &'a [Table]) -> Self {
        let mut below: HashMap<Oid, Vec<Oid>> = HashMap::new();
        for table in tables {
            for parent in &table.parents {
                below.entry(*parent).or_default().push(table.oid);
            }
        }
        let names = tables.iter().map(|table| (&table.name, table)).collect();
        Self { names, ids: tables.iter().map(|table| (table.oid, table)).collect(), below }
    }

    /// The table of this name.
    pub(super) fn named(&self, name: &QualifiedName) -> Option<&'a Table> {
        self.names.get(name).copied()
    }

    fn above(&self, table: &Table) -> Vec<&'a Table> {
        self.reached(table, |table| &table.parents)
    }

    fn below(&self, table: &Table) -> Vec<&'a Table> {
        self.reached(table, |table| self.below.get(&table.oid).map_or(&[], Vec::as_slice))
    }

    /// All that is reached from a table; not itself.
    fn reached<'b>(&'b self, from: &'b Table, next: impl Fn(&'b Table) -> &'b [Oid]) -> Vec<&'a Table>
    where
        'a: 'b,
    {
        let (mut found, mut seen) = (Vec::new(), HashSet::new());
        let mut left: Vec<Oid> = next(from).to_vec();
        while let Some(oid) = left.pop() {
            let Some(table) = self.ids.get(&oid).copied().filter(|_| seen.insert(oid)) else { continue };
            left.extend_from_slice(next(table));
            found.push(table);
        }
        found
    }
}

impl<'a> Defaults<'a> {
    pub(super) fn new(
        now: &'a [SchemaObject],
        drifting: &[Differing<'a>],
        tables: &'a Hierarchy<'a>,
    ) -> Self {
        let defaults = now.iter().filter(|object| object.key.kind == SchemaObjectKind::Default);
        let now = defaults.map(|object| ((&object.key.of, object.key.name.as_str()), object.shape.as_str()));
        let drifting = drifting.iter().filter(|found| found.key.kind == SchemaObjectKind::Default);
        let drifting = drifting.map(|found| (&found.key.of, found.key.name.as_str()));
        Self { tables, now: now.collect(), drifting: drifting.collect(), alike: RefCell::default() }
    }

    /// One statement for a table and all below it where all have the same default; else one for each. `None`: it comes with
    /// that of a table above.
    pub(super) fn statement(&self, found: Differing<'a>) -> Option<String> {
        let (name, column) = (&found.key.of, found.key.name.as_str());
        let table = self.tables.named(name);
        let above = table.map(|table| self.tables.above(table)).unwrap_or_default();
        let comes_with =
            |above: &Table| self.drifting.contains(&(&above.name, column)) && self.are_alike(above, column);
        if above.into_iter().any(comes_with) {
            return None;
        }
        let whole = table.is_none_or(|table| self.are_alike(table, column));
        let alter = Sql::new(if whole { "ALTER TABLE " } else { "ALTER TABLE ONLY " });
        let alter = alter.name(name).text(" ALTER COLUMN ").ident(column);
        let statement = match found.now {
            Some(now) => alter.text(" SET DEFAULT ").catalog(&now.shape),
            None => alter.text(" DROP DEFAULT"),
        };
        Some(statement.text(";").to_string())
    }

    fn are_alike(&self, table: &Table, column: &'a str) -> bool {
        let of = |table: &Table| self.now.get(&(&table.name, column)).copied();
        let key = (table.oid, column);
        if let Some(known) = self.alike.borrow().get(&key) {
            return *known;
        }
        let alike = self.tables.below(table).into_iter().all(|below| of(below) == of(table));
        self.alike.borrow_mut().insert(key, alike);
        alike
    }
}
